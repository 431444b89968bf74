"""Layers that ignore their cache, as those of a future release might. Needs nothing of hf_loop."""

import inspect


NAMES = ("cache", "past_key_values", "layer_past")


def swallow(layer):
    """The layer takes its cache among further keywords and does nothing with it."""

    class Swallowing(type(layer)):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states, **without_cache(kwargs))

    layer.__class__ = Swallowing


def rename(layer):
    """The layer's argument for the cache has a new name, and further keywords are taken."""
    own = next(name for name in NAMES if name in inspect.signature(type(layer).forward).parameters)

    class Renamed(type(layer)):
        def forward(self, hidden_states, kv_store=None, **kwargs):
            return super().forward(hidden_states, **{own: kv_store}, **without_cache(kwargs))

    layer.__class__ = Renamed


def without_cache(kwargs):
    return {name: value for name, value in kwargs.items() if name not in NAMES}


WAYS = {"swallowed": swallow, "renamed": rename}
