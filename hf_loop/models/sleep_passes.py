# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The passes over a window: one that reads it and predicts its tokens (wake), and those of sleep.

    wake:     s = core(prelude(embed(window)));  h = coda(s)      fast weights are updated once
    sleep:    N - 1 times:  s = core(s);   then coda(s)           fast weights have been updated N times

The core is the layers of `config.sleep_range`, by default all. Algorithm 1 of
https://huggingface.co/papers/2605.26099 makes N passes. Here the first of them is the one that predicts, and sleep
continues from its result instead of repeating it from the fast weights at the start of the window. Training and
generation run the same passes, so a window gives the same fast weights whether it is read whole or token by token.
In Algorithm 1 the layers after the core run once per window, on the result of the last pass. In wake they have already
run on that of the first, so sleep runs them again from their fast weights at the start of the window.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .backbone import Backbone, LayerInputs
from .configuration_sleep import SleepConfig
from .position_limit import check_table
from .schedules import Call, run_calls
from .sleep_states import LayerState, PassStates, WindowPosition
from .transformers_seams import attention_function, sliding_window_overlay


class SleepPasses:
    """Runs the passes of a sleep model over windows. Made for one forward pass; it owns no module.

    Args:
        config (`SleepConfig`): configuration of the model.
        backbone (`Backbone`): runs the layers.
        memory_layers (`nn.ModuleList`): the inserted layers, one for each of `config.memory_layers`.
        all_layers (`bool`): whether `wake` returns the output of every layer call.
        keywords (`dict`): further keyword arguments of the layers.
        depth (`dict`): arguments of the depth schedule.
    """

    def __init__(
        self,
        config: SleepConfig,
        backbone: Backbone,
        memory_layers: nn.ModuleList,
        all_layers: bool,
        keywords: dict[str, Any],
        depth: dict[str, Any],
    ):
        self.config = config
        self.all_layers = all_layers
        self.backbone = backbone
        self.keywords = keywords
        self.depth = depth
        calls = sorted(config.calls(), key=lambda call: call.slot)
        inserted_calls = config.inserted_calls(calls)
        # states are in the order of the slots of a pass, then of the calls of inserted layers
        modules = dict(zip(config.memory_layers, memory_layers))
        self.inserted = {
            call.slot: (len(calls) + number, modules[call.layer]) for number, call in enumerate(inserted_calls)
        }
        self.layer_of_state = [call.layer for call in [*calls, *inserted_calls]]
        self.core_start, self.core_end = config.sleep_range

    def empty_states(self) -> list[LayerState]:
        """Return the states before the first token."""
        return [LayerState()] * len(self.layer_of_state)

    def wake(
        self, hidden_states: torch.Tensor, states: Sequence[LayerState], position: WindowPosition
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[LayerState]]:
        """Read tokens of open windows, as the backbone would.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            states (`Sequence[LayerState]`): the states before the tokens.
            position (`WindowPosition`): the positions of the sequences before the tokens.

        Returns:
            `tuple[list[torch.Tensor], torch.Tensor, list[LayerState]]`: the last layer's output, after the input and
            those of all earlier calls if `all_layers`; the output of the core, from which sleep continues; and the
            states after the tokens.
        """
        pass_states = PassStates(states)
        starts = position.filled if self.config.restarts_positions else position.seen
        inputs = self._prepare(hidden_states, pass_states, position.lengths(), starts)
        outputs = [hidden_states]
        core_output = self._run(0, self.core_end, hidden_states, inputs, pass_states, outputs)
        last_output = self._run(self.core_end, None, core_output, inputs, pass_states, outputs)
        return [*outputs[:-1], last_output] if self.all_layers else [last_output], core_output, pass_states.states

    def sleep(
        self, core_output: torch.Tensor, states: Sequence[LayerState], position: WindowPosition, num_passes: int
    ) -> list[LayerState]:
        """Write open windows into the fast weights and close them.

        Args:
            core_output (`torch.Tensor` of shape `[B, T, D]`): output of the core in `wake`, for all tokens of the
                windows.
            states (`Sequence[LayerState]`): the states after these tokens.
            position (`WindowPosition`): the positions after these tokens; all windows must have equally many.
            num_passes (`int`): number of passes, `wake` included.

        Returns:
            `list[LayerState]`: the states at the start of the next window.
        """
        states = list(states)
        if num_passes > 1:
            filled = position.filled[0]
            starts = [0 if self.config.restarts_positions else seen - filled for seen in position.seen]
            pass_states = PassStates([self._reopen(state, filled) for state in states])
            inputs = self._prepare(core_output, pass_states, position.kept, starts)
            hidden_states = core_output
            for _ in range(num_passes - 1):
                states = [
                    self._reopen(state, filled) if self.core_start <= layer < self.core_end else state
                    for layer, state in zip(self.layer_of_state, states)
                ]
                pass_states = PassStates(states)
                hidden_states = self._run(self.core_start, self.core_end, hidden_states, inputs, pass_states)
                states = pass_states.states
            pass_states = PassStates(
                [
                    self._reopen(state, filled)._replace(recurrent=state.start_recurrent, conv=state.start_conv)
                    if layer >= self.core_end
                    else state
                    for layer, state in zip(self.layer_of_state, states)
                ]
            )
            self._run(self.core_end, None, hidden_states, inputs, pass_states)
            states = pass_states.states
        return [self._close(state, layer) for layer, state in zip(self.layer_of_state, states)]

    def _reopen(self, state: LayerState, filled: int) -> LayerState:
        """Return the state before the next pass over a window of `filled` tokens, without their keys and values."""
        state = state.columns(0, state.num_columns() - filled)
        return state._replace(conv=None) if self.config.reset_conv else state

    def _close(self, state: LayerState, layer: int) -> LayerState:
        num_columns = state.num_columns()
        num_kept = 0 if self.config.eviction == "hard" else min(num_columns, self.config.sleep_window - 1)
        state = state.columns(num_columns - num_kept, num_columns)
        conv = None if self.config.reset_conv else state.conv
        state = state._replace(conv=conv, start_recurrent=None, start_conv=None)
        if layer >= self.core_end:
            state = state._replace(start_recurrent=state.recurrent, start_conv=conv)
        return state

    def _prepare(
        self, hidden_states: torch.Tensor, pass_states: PassStates, lengths: list[int], starts: list[int]
    ) -> LayerInputs:
        """Make masks and positions of tokens that follow `lengths` tokens of each sequence, starting at `starts`."""
        num_tokens, device = hidden_states.shape[1], hidden_states.device
        num_columns = pass_states.num_columns
        attention_mask = None
        if any(length != num_columns for length in lengths):
            columns = torch.arange(num_columns + num_tokens, device=device)
            attention_mask = (columns >= num_columns - torch.tensor(lengths, device=device)[:, None]).long()
        check_table(self.backbone, max(starts) + num_tokens)
        starts = starts[:1] if len(set(starts)) == 1 else starts
        position_ids = torch.tensor(starts, device=device)[:, None] + torch.arange(num_tokens, device=device)
        overlay = None
        window = self.config.sleep_window
        if self.config.eviction == "sliding" and num_columns + num_tokens > window:
            implementation = attention_function(self.backbone.config)
            if "flash" in implementation:
                raise ValueError(
                    "`eviction='sliding'` needs an `attn_implementation` that takes a mask, such as 'sdpa', got "
                    f"{implementation!r}"
                )
            overlay = sliding_window_overlay(window)
        return self.backbone.prepare(
            hidden_states,
            attention_mask,
            position_ids,
            pass_states,  # ty: ignore[invalid-argument-type]  a cache to whoever asks it
            True,
            and_mask_function=overlay,
            **self.keywords,
        )

    def _run(
        self,
        start: int,
        end: int | None,
        hidden_states: torch.Tensor,
        inputs: LayerInputs,
        pass_states: PassStates,
        outputs: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Run layers `start` to `end` with the layers inserted after them, and append every output to `outputs`.

        If all layers sleep, the core is a whole pass, and no layer follows it.
        """
        inputs = dataclasses.replace(inputs, cache=pass_states)

        def run_call(call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
            hidden_states = self.backbone.run_call(call, hidden_states, inputs)
            if call.slot in self.inserted:
                number, layer = self.inserted[call.slot]
                state = pass_states.states[number]
                hidden_states, recurrent, conv = layer(hidden_states, state.recurrent, state.conv)
                pass_states.states[number] = state._replace(recurrent=recurrent, conv=conv)
            if outputs is not None:
                outputs.append(hidden_states)
            return hidden_states

        if self.config.sleep_layers is not None:
            return run_calls(hidden_states, run_call, self.config.calls()[start:end])
        return hidden_states if end is None else self.backbone.depth.run(hidden_states, run_call, **self.depth)


__all__ = ["SleepPasses"]
