# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The loops of one pass in which tokens exit by a rule, and rows of which every token has exited leave the batch.

A token that exits after loop r keeps its state of loop r, and the slots of all later loops hold its keys and values of
loop r ("best available" of https://huggingface.co/papers/2610.09013). A rule that never fires thus gives the result
without exits, and a batch that of its rows alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from .cache_slots import CacheSlot
from .exits import Exits, LoopStep, Memory
from .layer_calls import LayerInputs
from .loop_calls import LoopCalls
from .schedules import Call, RunCall


class ExitedSlot(CacheSlot):
    """A slot seen by the rows that are left: tokens that have exited keep their keys and values.

    Args:
        view (`CacheSlot`): the slot.
        call (`Call`): the layer call.
        batch (`ExitPass`): the rows that are left, which of their tokens have exited, and the deepest keys and values.
    """

    def __init__(self, view: CacheSlot, call: Call, batch: "ExitPass"):
        super().__init__(view.cache, view.slot)
        self.view, self.call, self.batch = view, call, batch

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.was_used = True
        batch, layer = self.batch, self.call.layer
        states = key_states, value_states
        if layer in batch.deepest:
            kept = batch.deepest[layer]
            if batch.some_done:
                is_done = batch.is_done[:, None, :, None]
                states = tuple(torch.where(is_done, batch.select(old), new) for old, new in zip(kept, states))
            if batch.rows is not None:
                states = tuple(old.index_copy(0, batch.rows, new) for old, new in zip(kept, states))
        batch.deepest[layer] = states
        keys, values = self.view.update(*states, layer_idx, *args, **kwargs)
        return batch.select(keys), batch.select(values)


class ReadSlot(CacheSlot):
    """A slot that a layer call reads without keeping what it adds.

    Args:
        cache (`Cache`): the cache.
        slot (`int`): the slot.
        rows (`torch.LongTensor`, *optional*): rows of the cache that the call is made for, by default all.
    """

    def __init__(self, cache: Any, slot: int, rows: torch.Tensor | None = None):
        super().__init__(cache, slot)
        self.rows = rows

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.was_used = True
        layer: Any = self.cache.layers[self.slot] if self.slot < len(self.cache.layers) else None
        if layer is None or layer.get_seq_length() == 0:
            return key_states, value_states
        num_visible = layer.get_mask_sizes(key_states.shape[-2])[0] - key_states.shape[-2]
        past = tuple(states[..., states.shape[-2] - num_visible :, :] for states in (layer.keys, layer.values))
        if self.rows is not None:
            past = tuple(states[self.rows] for states in past)
        return tuple(torch.cat(pair, dim=-2) for pair in zip(past, (key_states, value_states)))


class ExitPass:
    """The loops of one pass with exits.

    Args:
        schedule (`LoopedDepth`): the schedule.
        calls (`LoopCalls`): the layer calls of the pass, with a cache.
        exits (`Exits`): when tokens exit.
        read_logits (`Callable`, *optional*): computes logits of what the coda returned, for rules that look at them.
        gate (`Callable`, *optional*): computes the learned gate's probability of a state, for the rule that asks it.
    """

    def __init__(
        self,
        schedule: Any,
        calls: LoopCalls,
        exits: Exits,
        read_logits: Callable[[torch.Tensor], torch.Tensor] | None = None,
        gate: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.schedule, self.calls, self.exits = schedule, calls, exits
        self.cache_pass: Any = calls.cache_pass
        self.read_logits, self.gate = read_logits, gate
        # the rows that are left, `None` for all; which of their tokens have exited; whether any has
        self.rows: torch.Tensor | None = None
        self.is_done: Any = None
        self.some_done = False
        # index of a layer -> keys and values of every token in the last loop that the token ran
        self.deepest: dict[int, tuple[torch.Tensor, ...]] = {}
        # inputs of layer calls for all rows -> the same for the rows that are left, by `id`
        self.selected: dict[int, LayerInputs] = {}

    def run(self, state: torch.Tensor, encoded: torch.Tensor, num_loops: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the loops.

        Args:
            state (`torch.Tensor` of shape `[B, T, D]`): the state before the first loop.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
            num_loops (`int`): loops after which every token exits.

        Returns:
            `tuple[torch.Tensor, torch.LongTensor]`: the state in which every token exited, `[B, T, D]`, and the number
            of its loops, `[B, T]`.
        """
        exit_loops = torch.full(state.shape[:2], num_loops, device=state.device)
        self.is_done = torch.zeros_like(exit_loops, dtype=torch.bool)
        final, memory = state, None
        for loop in range(num_loops):
            updated = self.schedule.run_loop(loop, state, encoded, self.run_call, num_loops)
            if self.some_done:
                updated = torch.where(self.is_done[..., None], state, updated)
            final = updated if self.rows is None else final.index_copy(0, self.rows, updated)
            if loop + 1 == num_loops:
                break
            done, memory = self.ask_rule(loop, updated, state, memory)
            newly = done & ~self.is_done
            state = updated
            if not newly.any():
                continue
            exit_loops.masked_fill_(self.scatter(newly), loop + 1)
            self.is_done, self.some_done = self.is_done | newly, True
            row_is_left = ~self.is_done.all(dim=1)
            if not row_is_left.all():
                (left,) = row_is_left.nonzero(as_tuple=True)
                if len(left) == 0:
                    self.fill_slots(loop + 1, num_loops)
                    break
                self.rows = left if self.rows is None else self.rows[left]
                self.selected.clear()
                self.is_done, state, encoded = self.is_done[left], state[left], encoded[left]
                memory = None if memory is None else memory[left]
                self.some_done = bool(self.is_done.any())
        return final, exit_loops

    def run_call(self, call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one layer call of the core on the rows that are left, `[B', T, D]`."""
        view = ExitedSlot(self.cache_pass.view(call), call, self)
        return self.calls.backbone.run_call(call, hidden_states, self.inputs(call), layer_cache=view)

    def read_call(self, call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one layer call of the coda on the rows that are left, without keeping its keys and values."""
        view = ReadSlot(self.cache_pass.cache, self.cache_pass.slot(call), self.rows)
        return self.calls.backbone.run_call(call, hidden_states, self.inputs(call), layer_cache=view)

    def ask_rule(
        self, loop: int, state: torch.Tensor, previous: torch.Tensor, memory: Memory
    ) -> tuple[torch.Tensor, Memory]:
        """Return which tokens of the rows that are left are done after a loop, `[B', T]`, and the rule's memory."""
        read_call: RunCall = self.read_call
        read: Any = self.read_logits
        gate: Any = self.gate
        step = LoopStep(
            loops=torch.full(state.shape[:1], loop + 1, device=state.device),
            state=state,
            previous=previous,
            read_logits=lambda: read(self.schedule.finish(self.schedule.run_coda(state, read_call))),
            gate=lambda: gate(state),
        )
        done, memory = self.exits.rule(step, memory)
        if loop + 1 < self.exits.min_loops:
            done = torch.zeros_like(done)
        return done, memory

    def fill_slots(self, first_loop: int, num_loops: int) -> None:
        """Write the deepest keys and values to the slots of the loops that no row runs."""
        slots: dict[int, Call] = {}
        for loop in range(first_loop, num_loops):
            slots |= {self.cache_pass.slot(call): call for call in self.schedule.core_calls(loop)}
        for call in slots.values():
            if call.layer in self.deepest:
                self.cache_pass.view(call).update(*self.deepest[call.layer], call.slot)

    def inputs(self, call: Call) -> LayerInputs:
        """Return the inputs of a layer call for the rows that are left."""
        inputs = self.calls.inputs_of(call)
        if self.rows is None:
            return inputs
        if id(inputs) not in self.selected:
            self.selected[id(inputs)] = select_rows(inputs, self.rows)
        return self.selected[id(inputs)]

    def select(self, states: torch.Tensor) -> torch.Tensor:
        """Select the rows that are left from `[B, ...]`."""
        return states if self.rows is None else states[self.rows]

    def scatter(self, flags: torch.Tensor) -> torch.Tensor:
        """Return the flags `[B', T]` of the rows that are left as those of the whole batch, `[B, T]`."""
        if self.rows is None:
            return flags
        size = next(iter(self.deepest.values()))[0].shape[0]
        return flags.new_zeros(size, flags.shape[1]).index_copy(0, self.rows, flags)


def select_rows(inputs: LayerInputs, rows: torch.Tensor) -> LayerInputs:
    """Return the inputs of layer calls for some rows of the batch.

    Args:
        inputs (`LayerInputs`): the inputs for all rows; what is the same for all may have one row.
        rows (`torch.LongTensor`): the rows.

    Raises:
        ValueError: if the masks are no tensors.
    """

    def select(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[rows] if value.ndim > 0 and value.shape[0] > 1 else value
        if isinstance(value, dict):
            return {name: select(item) for name, item in value.items()}
        return type(value)(select(item) for item in value) if isinstance(value, list | tuple) else value

    masks = inputs.masks.values() if isinstance(inputs.masks, dict) else [inputs.masks]
    if not all(isinstance(mask, torch.Tensor | None) for mask in masks):
        raise ValueError("`exit_criterion` needs an attention function whose masks are tensors, such as 'sdpa'")
    names = ("position_ids", "position_embeddings", "masks", "kwargs")
    return dataclasses.replace(inputs, **{name: select(getattr(inputs, name)) for name in names})


__all__ = ["ExitPass", "ReadSlot", "select_rows"]
