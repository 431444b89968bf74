# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Passes over a window: the one in which its tokens are predicted, and those in which the model sleeps.

    wake:    h = coda(s),  s = core(prelude(embed(window)))         the fast weights take in the window once
    sleep:   N - 1 times:  s = core(s);   then coda(s)              and N times in all

The core are the layers of `config.sleep_range`, all by default. Training and generation run the same passes, so a
window that was read token by token is left as one that was read whole: the first of the N passes of Algorithm 1
(https://huggingface.co/papers/2605.26099) is the one that predicts, and sleep goes on from where it ended instead of
running it again from the fast weights at the start of the window. Layers after the core run once a window there, on
the result of the last pass; since they have seen the first one already, they start again from those fast weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .backbone import Backbone, LayerInputs
from .configuration_sleep import SleepConfig
from .sleep_states import LayerState, PassStates
from .transformers_seams import attention_function, sliding_window_overlay


class Place(NamedTuple):
    """Where the rows of a batch are before a pass; see `SleepWindowLayer`.

    Args:
        filled (`list[int]`): tokens in each row's open window.
        kept (`list[int]`): tokens before the window whose keys and values each row still has.
        seen (`list[int]`): tokens each row has had in all.
    """

    filled: list[int]
    kept: list[int]
    seen: list[int]


class SleepPasses:
    """The layers of a sleep model, run over windows. Made where it is used and thrown away: it owns no module.

    Args:
        config (`SleepConfig`): the schedule.
        backbone (`Backbone`): the decoder.
        memory_layers (`nn.ModuleList`): the inserted layers.
        all_layers (`bool`): whether `wake` gives the output of every layer.
        kwargs (`dict`): whatever else the layers are to be given.
    """

    def __init__(
        self,
        config: SleepConfig,
        backbone: Backbone,
        memory_layers: nn.ModuleList,
        all_layers: bool,
        kwargs: dict[str, Any],
    ):
        self.config = config
        self.all_layers = all_layers
        self.backbone = backbone
        self.kwargs = kwargs
        self.core_start, self.core_end = config.sleep_range
        self.num_layers = len(backbone.layers)
        # states are ordered as the layers of the backbone, then the inserted ones
        self.inserted = {
            index: (self.num_layers + number, layer)
            for number, (index, layer) in enumerate(zip(config.memory_layers, memory_layers))
        }
        self.layer_of_state = [*range(self.num_layers), *config.memory_layers]

    def empty_states(self) -> list[LayerState]:
        """The states before the first token."""
        return [LayerState()] * len(self.layer_of_state)

    def wake(
        self, hidden_states: torch.Tensor, states: Sequence[LayerState], place: Place
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[LayerState]]:
        """Read tokens of open windows, as the backbone would.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            states (`Sequence[LayerState]`): what the layers carry.
            place (`Place`): where the rows are.

        Returns:
            `tuple`: the last layer's output (with `all_layers` every layer's, after the input), the output of the core
            (which sleep goes on from), and the states.
        """
        view = PassStates(states)
        lengths = [kept + filled for kept, filled in zip(place.kept, place.filled)]
        starts = place.filled if self.config.restarts_positions else place.seen
        inputs = self._prepare(hidden_states, view, lengths, starts)
        outputs = [hidden_states]
        core_output = self._run(0, self.core_end, hidden_states, inputs, view, outputs)
        self._run(self.core_end, self.num_layers, core_output, inputs, view, outputs)
        return outputs if self.all_layers else outputs[-1:], core_output, view.states

    def sleep(
        self, core_output: torch.Tensor, states: Sequence[LayerState], place: Place, num_passes: int
    ) -> list[LayerState]:
        """Write open windows into the fast weights and close them.

        Args:
            core_output (`torch.Tensor` of shape `[B, T, D]`): of `wake`, for the tokens of the windows.
            states (`Sequence[LayerState]`): the states after them.
            place (`Place`): where the rows are after them, with as many in the window of one row as of another.
            num_passes (`int`): passes in all, `wake` being the first.

        Returns:
            `list[LayerState]`: the states at the start of the next window.
        """
        states = list(states)
        if num_passes > 1:
            filled = place.filled[0]
            starts = [0 if self.config.restarts_positions else seen - filled for seen in place.seen]
            view = PassStates([self._reopen(state, filled) for state in states])
            inputs = self._prepare(core_output, view, place.kept, starts)
            hidden_states = core_output
            for _ in range(num_passes - 1):
                states = [
                    self._reopen(state, filled) if self.core_start <= layer < self.core_end else state
                    for layer, state in zip(self.layer_of_state, states)
                ]
                view = PassStates(states)
                hidden_states = self._run(self.core_start, self.core_end, hidden_states, inputs, view)
                states = view.states
            view = PassStates(
                [
                    self._reopen(state, filled)._replace(recurrent=state.start_recurrent, conv=state.start_conv)
                    if layer >= self.core_end
                    else state
                    for layer, state in zip(self.layer_of_state, states)
                ]
            )
            self._run(self.core_end, self.num_layers, hidden_states, inputs, view)
            states = view.states
        return [self._close(state, layer) for layer, state in zip(self.layer_of_state, states)]

    def _reopen(self, state: LayerState, filled: int) -> LayerState:
        """The state of a window of `filled` tokens before the next pass over it."""
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
        self, hidden_states: torch.Tensor, view: PassStates, lengths: list[int], starts: list[int]
    ) -> LayerInputs:
        """Masks and positions of tokens that follow `lengths` tokens of each row, the first at position `starts`."""
        num_tokens, device = hidden_states.shape[1], hidden_states.device
        num_columns = view.num_columns
        attention_mask = None
        if any(length != num_columns for length in lengths):
            columns = torch.arange(num_columns + num_tokens, device=device)
            attention_mask = (columns >= num_columns - torch.tensor(lengths, device=device)[:, None]).long()
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
            view,  # ty: ignore[invalid-argument-type]  a cache to whoever asks it
            True,
            and_mask_function=overlay,
            **self.kwargs,
        )

    def _run(
        self,
        start: int,
        end: int,
        hidden_states: torch.Tensor,
        inputs: LayerInputs,
        view: PassStates,
        outputs: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Layers `start` up to `end` with what is inserted after them; the output of each is added to `outputs`."""
        inputs = dataclasses.replace(inputs, cache=view)
        for index in range(start, end):
            hidden_states = self.backbone.run_layer(index, index, hidden_states, inputs)
            if index in self.inserted:
                number, layer = self.inserted[index]
                state = view.states[number]
                hidden_states, recurrent, conv = layer(hidden_states, state.recurrent, state.conv)
                view.states[number] = state._replace(recurrent=recurrent, conv=conv)
            if outputs is not None:
                outputs.append(hidden_states)
        return hidden_states


__all__ = ["Place", "SleepPasses"]
