# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The memories of a feedback model's layers, within one forward pass and in a cache."""

from typing import Any, NamedTuple

import torch

from .feedback_plan import BlockPlan
from .memory_checks import State, check_present, check_states
from .transformers_seams import CacheLayerMixin


class LayerMemory(NamedTuple):
    """What one layer carries from chunk to chunk.

    Args:
        keys, values (`torch.Tensor` of shape `[R, H, f + W, head_dim]`, *optional*): keys and values of the feedback
            memory, then the ring buffer of those of past tokens.
        feedback (`torch.Tensor` of shape `[R, f, D]`, *optional*): the feedback memory, once there is one.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    feedback: torch.Tensor | None = None

    def map(self, function) -> "LayerMemory":
        """Apply `function` to every tensor."""
        return LayerMemory(*(None if tensor is None else function(tensor) for tensor in self))


class BlockCache:
    """The cache of one layer call, with keys and values `[feedback memory | past and present tokens | tail]`.

    After the call, `keys` and `values` are those of the layer's new memory.

    Args:
        memory (`LayerMemory`): the layer's memory before the call.
        plan (`BlockPlan`): the plan of the chunk.
        in_place (`bool`): whether to write into `memory`. It must not be changed while gradient is recorded, because
            checkpointing may run earlier blocks again.
    """

    def __init__(self, memory: LayerMemory, plan: BlockPlan, in_place: bool):
        self.memory = memory
        self.plan = plan
        self._write_tokens = _write_in_place if in_place else _write_copy
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.was_used = False

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.was_used = True
        self.keys, all_keys = self._write(self.memory.keys, key_states)
        self.values, all_values = self._write(self.memory.values, value_states)
        return all_keys, all_values

    def is_recording_past(self, layer_idx):
        return False

    def _write(self, buffer: torch.Tensor | None, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.plan
        lead, tokens, tail = states.split(plan.query_counts, dim=2)
        missing = plan.feedback_length + plan.capacity - (0 if buffer is None else buffer.shape[2])
        if missing > 0:
            room = tokens.new_zeros(*tokens.shape[:2], missing, tokens.shape[3])
            buffer = room if buffer is None else torch.cat([buffer, room], dim=2)
        buffer = self._write_tokens(buffer, lead, tokens, plan)
        return buffer, buffer if plan.num_tail == 0 else torch.cat([buffer, tail], dim=2)


def _write_copy(buffer: Any, lead: torch.Tensor, tokens: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    feedback, past = buffer.split([plan.feedback_length, plan.capacity], dim=2)
    feedback = _new_lead(feedback, lead, plan)
    if plan.first_index is None:
        return torch.cat([feedback, past.scatter(2, *_scattered(past, tokens, plan))], dim=2)
    end = plan.first_index + plan.num_tokens
    return torch.cat([feedback, past[:, :, : plan.first_index], tokens, past[:, :, end:]], dim=2)


def _write_in_place(buffer: Any, lead: torch.Tensor, tokens: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    if plan.num_lead:
        buffer[:, :, : plan.num_lead] = _new_lead(buffer[:, :, : plan.num_lead], lead, plan)
    past = buffer[:, :, plan.feedback_length :]
    if plan.first_index is None:
        past.scatter_(2, *_scattered(past, tokens, plan))
    else:
        past[:, :, plan.first_index : plan.first_index + plan.num_tokens] = tokens
    return buffer


def _new_lead(feedback: torch.Tensor, lead: torch.Tensor, plan: BlockPlan) -> torch.Tensor:
    if not plan.num_lead:
        return feedback
    # sequences without tokens in this chunk ran at arbitrary positions: keep their old keys
    return lead if plan.first_index is not None else torch.where(plan.has_tokens[..., None], lead, feedback)


def _scattered(past: torch.Tensor, tokens: torch.Tensor, plan: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return index and values of a scatter that writes the tokens and, beyond them, what the buffer holds already."""
    index = plan.ring_index[:, None, :, None].expand(-1, past.shape[1], -1, past.shape[3])
    return index, torch.where(plan.is_token[:, None, :, None], tokens, past.gather(2, index))


class FeedbackCacheLayer(CacheLayerMixin):
    """The cache slot of one layer call: its [`LayerMemory`], and how many tokens each sequence has had.

    `DynamicCache(config=model.config)` is made of these. The counts are the same for all slots; the first keeps them.

    Attributes:
        num_tokens (`list[int]`, *optional*): real tokens of each sequence, those of a loaded memory included.
        num_loaded (`list[int]`, *optional*): tokens of each sequence that came with a loaded memory; the attention
            mask has no columns for them.
        has_feedback (`list[bool]`, *optional*): whether each sequence has a memory.
        keys_are_stale (`list[bool]`, *optional*): whether each sequence's memory has changed since its keys were
            computed.
        schedule (`dict`, *optional*): the fields of the model that filled the cache on which its layout depends.
        cumulative_length (`int`): number of input columns, padding included.
    """

    _layer_type = "feedback_attention"
    is_sliding = False

    def __init__(self, **kwargs):
        super().__init__()
        self.feedback: torch.Tensor | None = None
        self.num_tokens: list[int] | None = None
        self.num_loaded: list[int] | None = None
        self.has_feedback: list[bool] | None = None
        self.keys_are_stale: list[bool] | None = None
        self.schedule: dict[str, Any] | None = None
        self.cumulative_length = 0

    @property
    def memory(self) -> LayerMemory:
        """The memory of the layer call."""
        return LayerMemory(self.keys, self.values, self.feedback)

    def store(self, memory: LayerMemory, num_columns: int) -> None:
        """Store the memory after `num_columns` more columns of input."""
        self.keys, self.values, self.feedback = memory
        self.cumulative_length += num_columns
        self.is_initialized = True
        if memory.keys is not None:
            self.device, self.dtype = memory.keys.device, memory.keys.dtype

    def lazy_initialization(self, key_states, value_states):
        raise ValueError("a feedback cache must be filled by the feedback model: pass it to `forward` as `cache`")

    def update(self, key_states, value_states, *args, **kwargs):
        raise ValueError("a feedback cache must be filled by the feedback model: pass it to `forward` as `cache`")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError("a feedback memory cannot be cropped: tokens cannot be removed from what it has compressed")

    def reset(self) -> None:
        self.__init__()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_sequences(lambda tensor: tensor.index_select(0, indices.to(tensor.device)), lambda: indices.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        def indices() -> list[int]:
            return [index for index in range(len(self.num_tokens or [])) for _ in range(repeats)]

        self._map_sequences(lambda tensor: tensor.repeat_interleave(repeats, dim=0), indices)

    def _map_sequences(self, map_tensor, make_indices) -> None:
        self.keys, self.values, self.feedback = self.memory.map(map_tensor)
        if self.num_tokens is not None:
            indices = make_indices()
            for name in ("num_tokens", "num_loaded", "has_feedback", "keys_are_stale"):
                setattr(self, name, [getattr(self, name)[index] for index in indices])

    def memory_state(self) -> dict[str, torch.Tensor]:
        """Return everything needed to continue, as tensors by name."""
        state = {"keys": self.keys, "values": self.values, "feedback": self.feedback}
        if self.num_tokens is not None:
            state["num_tokens"] = torch.tensor(self.num_tokens)
            state["has_feedback"] = torch.tensor(self.has_feedback)
            state["keys_are_stale"] = torch.tensor(self.keys_are_stale)
        return {name: tensor for name, tensor in state.items() if tensor is not None}

    @staticmethod
    def check_memory(states: list[State], witness: list[State], config: Any) -> None:
        """Refuse the tensors of a memory file that this model would not have saved.

        Args:
            states (`list[dict]`): the tensors of every cache slot.
            witness (`list[dict]`): those of the model's own memory of one token.
            config (`FeedbackConfig`): configuration of the model.

        Raises:
            ValueError: names the first tensor that does not fit.
        """
        length, width = config.feedback_length, config.hidden_size
        for own in witness if config.feedback_source == "layer" else witness[:1]:
            # one token has no memory yet
            own.setdefault("feedback", own["keys"].new_empty(1, length, width))
        check_states(states, witness)
        for name in ("num_tokens", "has_feedback", "keys_are_stale", "keys", "values"):
            check_present(states, witness, name, None)
        if states[0]["has_feedback"].any():
            check_present(states, witness, "feedback", None)
        # the ring buffer has the same size everywhere, and every token that it must still hold
        size, needed = states[0]["keys"].shape[2], int(states[0]["num_tokens"].max())
        limit = config.num_memory_segments
        if limit is not None:
            needed = min(needed, (limit + 1) * config.block_size)
        for name in ("keys", "values"):
            check_present(states, witness, name, max(size, length + needed))

    def load_memory_state(self, state: dict[str, torch.Tensor]) -> None:
        """Restore a [`~FeedbackCacheLayer.memory_state`]; columns of input are counted from 0 again."""
        self.store(LayerMemory(state.get("keys"), state.get("values"), state.get("feedback")), num_columns=0)
        if "num_tokens" in state:
            self.num_tokens = state["num_tokens"].tolist()
            self.num_loaded = state["num_tokens"].tolist()
            self.has_feedback = state["has_feedback"].tolist()
            self.keys_are_stale = state["keys_are_stale"].tolist()


__all__ = ["BlockCache", "FeedbackCacheLayer", "LayerMemory"]
