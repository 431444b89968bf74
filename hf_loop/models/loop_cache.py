# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Cache policies: which keys and values of earlier tokens a loop reads.

    own         every loop has slots of its own and reads what the same loop of earlier tokens wrote
    last_loop   one set of slots for all loops: every loop reads what the last loop of earlier tokens wrote, and what
                itself wrote of the tokens of this pass (https://huggingface.co/papers/2510.25741, table 14)
    cyclic:N    N sets of slots: loop r has set r mod N (https://huggingface.co/papers/2502.05171, section 5.2)
    window:N    as `own`, but every loop after the first reads the last N positions only

`own` is exact: results with a cache equal those without. So is `window:N`, of a model with that window. Under the two
others a loop reads keys and values that a model without a cache would not have, and the result depends on how many
tokens are in each pass.
"""

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .cache_slots import CacheSlot
from .growing_layer import GrowingLayer
from .schedules import Call


class CachePolicy(NamedTuple):
    """A cache policy, written `name` or `name:size`.

    Args:
        name (`str`): `"own"`, `"last_loop"`, `"cyclic"` or `"window"`.
        size (`int`, *optional*): sets of slots of `"cyclic"`, positions of `"window"`.
    """

    name: str = "own"
    size: int | None = None

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}:{self.size}"

    def stored_loops(self, num_loops: int) -> int:
        """Return the number of loops that have slots of their own."""
        if self.name == "last_loop":
            return 1
        return min(self.size, num_loops) if self.name == "cyclic" and self.size is not None else num_loops

    @property
    def window(self) -> int | None:
        """Number of positions that later loops read, `None` for all."""
        return self.size if self.name == "window" else None


def parse_policy(cache_policy: Any) -> CachePolicy:
    """Read a cache policy such as `"own"`, `"last_loop"`, `"cyclic:2"` or `"window:256"`; `None` is `"own"`.

    Raises:
        ValueError: if it is none of these, or its size is not a positive integer.
    """
    if cache_policy is None:
        return CachePolicy()
    name, colon, size = cache_policy.partition(":") if isinstance(cache_policy, str) else ("", "", "")
    if name in ("own", "last_loop") and not colon:
        return CachePolicy(name)
    if name in ("cyclic", "window") and size.isdecimal() and int(size) > 0:
        return CachePolicy(name, int(size))
    raise ValueError(
        "`cache_policy` must be 'own', 'last_loop', 'cyclic:N' or 'window:N' with a whole number N of at least 1, "
        f"got {cache_policy!r}"
    )


class LoopCache(DynamicCache):
    """The cache of a looped model, under a cache policy.

    Args:
        config (`LoopedConfig`): the configuration, with the number of loops of the calls that will use the cache.
        cache_policy (`str`, *optional*, defaults to `"own"`): the policy.

    Raises:
        ValueError: if there is no such policy, or the decoder has layers that it does not work with.
    """

    def __init__(self, config: Any, cache_policy: str | None = None):
        self.policy = parse_policy(cache_policy)
        self.num_loops: int = config.num_loops
        stored_loops = self.policy.stored_loops(self.num_loops)
        super().__init__(config=config.with_num_loops(stored_loops))
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]
        schedule = config.depth()
        # slot of every layer call -> slot that holds it
        self.stored = {call.slot: call.slot for call in config.calls(num_loops=0)}
        for loop in range(self.num_loops):
            shared = zip(schedule.core_calls(loop), schedule.core_calls(loop % stored_loops))
            self.stored |= {call.slot: stored.slot for call, stored in shared}
        if self.policy.window is not None:
            for loop in range(1, self.num_loops):
                for call in schedule.core_calls(loop):
                    self.layers[call.slot] = DynamicSlidingWindowLayer(sliding_window=self.policy.window)
        if self.policy.name != "own":
            self._check_layers(config)

    def _check_layers(self, config: Any) -> None:
        decoder = config.decoder_config
        layer_types = set(getattr(decoder, "layer_types", None) or ())
        allowed = {"full_attention"} if self.policy.window is not None else {"full_attention", "sliding_attention"}
        others = layer_types - allowed
        if not others and not all(isinstance(layer, DynamicLayer) for layer in self.layers):
            others = {type(layer).__name__ for layer in self.layers}
        if others:
            raise ValueError(
                f"`cache_policy={str(self.policy)!r}` works with {' and '.join(sorted(allowed))} layers, but the "
                f"{decoder.model_type} backbone has {', '.join(sorted(others))}"
            )

    @property
    def is_shared(self) -> bool:
        """Whether loops share slots."""
        return len(set(self.stored.values())) < len(self.stored)


class SharedSlot(CacheSlot):
    """A slot that several loops of a pass write in turn, each in place of the one before it.

    Args:
        cache (`LoopCache`): the cache.
        slot (`int`): the slot.
        before (`dict[int, dict]`): fields of the slots' layers before the pass, by slot; filled here.
    """

    def __init__(self, cache: LoopCache, slot: int, before: dict[int, dict[str, Any]]):
        super().__init__(cache, slot)
        self.before = before

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        layer = self.cache.layers[self.slot]
        if self.slot in self.before:
            # these layers replace their tensors, or write behind their end
            vars(layer).update(self.before[self.slot])
            if isinstance(layer, GrowingLayer):
                layer.rewind()
        else:
            self.before[self.slot] = copy.copy(vars(layer))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def crop_slots(cache: Any, slots: Iterable[int], num_tokens: int) -> None:
    """Remove the last `num_tokens` tokens from some slots of a cache that nothing else reads."""
    for slot in slots:
        layer = cache.layers[slot]
        layer.crop(-num_tokens)
        if isinstance(layer, GrowingLayer):
            layer.rewind()


class CachePass:
    """One pass over tokens with a cache: finds the slot of every layer call.

    Args:
        cache (`Cache`): a [`LoopCache`] or another cache with a slot for every layer call.
    """

    def __init__(self, cache: Any):
        self.cache = cache
        self.stored: dict[int, int] | None = getattr(cache, "stored", None)
        self.is_shared = self.stored is not None and cache.is_shared
        self.before: dict[int, dict[str, Any]] = {}

    def slot(self, call: Call) -> int:
        """Return the slot that holds a layer call."""
        return call.slot if self.stored is None else self.stored[call.slot]

    def view(self, call: Call) -> CacheSlot:
        """Return a view of the slot of a layer call."""
        if self.is_shared and call.loop is not None:
            return SharedSlot(self.cache, self.slot(call), self.before)
        return CacheSlot(self.cache, self.slot(call))


def open_cache(cache: Any, config: Any, has_exits: bool, cache_policy: str | None, is_kept: bool) -> Any:
    """Return the cache of a pass: `cache` if it fits, or a new one if exits or the policy need it.

    Args:
        cache (`Cache`, *optional*): the cache that the call was given.
        config (`LoopedConfig`): the configuration, with the number of loops of the call.
        has_exits (`bool`): whether tokens exit, for which keys and values of this pass are kept.
        cache_policy (`str`, *optional*): the policy that the call was given.
        is_kept (`bool`): whether the call returns its cache.

    Raises:
        ValueError: if the cache has another policy, or tokens cannot exit with it.
    """
    if cache is None:
        if not has_exits and (cache_policy is None or not is_kept):
            return None
        # one set of slots holds all that the loops of a single pass read
        cache = LoopCache(config, "last_loop" if cache_policy is None and not is_kept else cache_policy)
        if has_exits:
            check_attention_cache(cache, "exit_criterion")
        return cache
    policy = getattr(cache, "policy", CachePolicy())
    if cache_policy is not None and parse_policy(cache_policy) != policy:
        raise ValueError(f"`cache` has the policy {str(policy)!r}, got cache_policy={cache_policy!r}")
    if has_exits:
        check_attention_cache(cache, "exit_criterion")
    return cache


def check_attention_cache(cache: Any, name: str) -> None:
    """Refuse a cache that does not hold, on one device, the keys and values of attention layers and nothing else.

    Raises:
        ValueError: if it is another cache; the message says that the argument `name` needs this one.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        kind = type(cache).__name__
    elif getattr(cache, "offloading", False):
        kind = "an offloaded cache"
    else:
        kind = ", ".join(sorted({type(layer).__name__ for layer in layers if not _is_attention(layer)}))
    if kind:
        raise ValueError(f"`{name}` needs a dynamic cache of attention layers on one device, got {kind}")


def _is_attention(layer: Any) -> bool:
    """Return whether a layer of a cache grows, and has keys and values but no state."""
    return isinstance(layer, DynamicLayer) and not hasattr(layer, "conv_states")


__all__ = [
    "CachePass",
    "CachePolicy",
    "LoopCache",
    "SharedSlot",
    "check_attention_cache",
    "open_cache",
    "parse_policy",
]
