# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The cache of one layer call: a single slot of the model's cache.

A layer reads and writes the cache at its own index. If it is called more than once in a forward pass, each call needs
a slot of its own, so every call is given a [`CacheSlot`], which replaces the index by the slot.
"""

from transformers import Cache


class CacheSlot:
    """One slot of a cache, whatever layer index it is addressed by.

    A new one is made for every layer call, so that several threads can run one model at once.

    Args:
        cache (`Cache`): the cache of the whole model.
        slot (`int`): the slot of this layer call.
    """

    def __init__(self, cache: Cache, slot: int):
        self.cache = cache
        self.slot = slot
        # whether the layer has read or written the slot
        self.was_used = False

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.was_used = True
        if getattr(self.cache, "offloading", False):
            # the cache prefetches slot + 1, but the slot after the prelude's last is not the next one used
            self.cache.prefetch(self.slot, self.cache.only_non_sliding)
        return self.cache.update(key_states, value_states, self.slot, *args, **kwargs)

    def get_conv_state(self, layer_idx, *args, **kwargs):
        self.was_used = True
        return self.cache.get_conv_state(self.slot, *args, **kwargs)

    def update_conv_state(self, conv_states, layer_idx, *args, **kwargs):
        self.was_used = True
        return self.cache.update_conv_state(conv_states, self.slot, *args, **kwargs)

    def get_recurrent_state(self, layer_idx, *args, **kwargs):
        self.was_used = True
        return self.cache.get_recurrent_state(self.slot, *args, **kwargs)

    def update_recurrent_state(self, recurrent_states, layer_idx, *args, **kwargs):
        self.was_used = True
        return self.cache.update_recurrent_state(recurrent_states, self.slot, *args, **kwargs)

    def has_previous_state(self, layer_idx=None, *args, **kwargs):
        return self.cache.has_previous_state(self.slot, *args, **kwargs)

    def is_recording_past(self, layer_idx):
        return self.cache.is_recording_past(self.slot)

    def update_indexer(self, indexer_key_states, layer_idx, *args, **kwargs):
        self.was_used = True
        return self.cache.update_indexer(indexer_key_states, self.slot, *args, **kwargs)

    def get_seq_length(self, layer_idx=0):
        return self.cache.get_seq_length(self.slot)

    def get_query_offset(self, layer_idx=0):
        return self.cache.get_query_offset(self.slot)

    def get_mask_sizes(self, query_length, layer_idx):
        return self.cache.get_mask_sizes(query_length, self.slot)

    def __getattr__(self, name):
        return getattr(self.cache, name)


def check_num_slots(cache: Cache, num_slots: int, num_loops: int | None) -> None:
    """Refuse a cache that was filled or sized for another number of loops.

    Args:
        cache (`Cache`): the cache handed to the forward pass.
        num_slots (`int`): layer calls of this forward pass.
        num_loops (`int`, *optional*): loops of this forward pass, for the message.

    Raises:
        ValueError: if the cache has another number of slots.
    """
    if not isinstance(cache, Cache):
        # the paged cache of continuous batching, which is sized by the configuration of this call
        return
    made_for = getattr(cache, "num_loops", None)
    if made_for is not None:
        # a cache whose loops may share slots
        if made_for != num_loops:
            raise ValueError(f"`cache` was made for num_loops={made_for}, got num_loops={num_loops}")
        return
    grows = cache.layer_class_to_replicate is not None and len(cache.layers) == 0
    if not grows and len(cache.layers) != num_slots:
        if num_loops is None:
            raise ValueError(f"`cache` has {len(cache.layers)} slots but this model needs {num_slots}")
        raise ValueError(
            f"`cache` has {len(cache.layers)} slots but num_loops={num_loops} needs {num_slots}: continue a cache "
            "with the number of loops that it was started with"
        )
