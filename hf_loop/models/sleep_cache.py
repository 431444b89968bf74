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
"""Reading into the cache of a sleep model, whose rows may be at different places of their windows.

Rows that take equally many tokens run together, and rows whose windows are equally long sleep together: padding inside
a pass would let the fast weights of linear attention decay.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import Cache

from .configuration_sleep import SleepConfig
from .sleep_passes import Place, SleepPasses
from .sleep_states import LayerState, merge_columns, select_rows
from .token_rows import Round, TokenRows, plan_rounds


def check_sleep_cache(cache: Cache, config: SleepConfig) -> None:
    """Refuse a cache that was not made for this model.

    Raises:
        ValueError: it has other layers, or moves them off the device.
    """
    # by name: code that came with a checkpoint has classes of its own
    kinds = [getattr(layer, "_layer_type", None) for layer in cache.layers]
    if kinds != config.layer_types:
        raise ValueError(
            f"`cache` must be made for this model, as by DynamicCache(config=model.config), with "
            f"{config.num_hidden_layers} layers; got {len(kinds)} layers of {type(cache).__name__}"
        )
    if cache.offloading:
        raise ValueError("`cache` must not have `offloading`: all layers' states are needed in every pass")


def read_window(
    passes: SleepPasses, cache: Cache, rows: TokenRows, hidden_states: torch.Tensor, num_passes: int
) -> tuple[list[Round], list[list[torch.Tensor]]]:
    """Read new tokens, sleeping wherever a window fills.

    Args:
        passes (`SleepPasses`): the layers.
        cache (`Cache`): is changed.
        rows (`TokenRows`): the tokens of every row, in the order of the batch.
        hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
        num_passes (`int`): passes over a full window.

    Returns:
        `tuple`: the rounds the tokens were read in, and the outputs of `wake` `[B, n, D]` in each.
    """
    window: Any = cache.layers[0]
    window.begin(hidden_states.shape[0])
    window.num_columns += hidden_states.shape[1]
    tokens = rows.take(hidden_states)
    size = passes.config.sleep_window
    rounds = list(plan_rounds(rows.lengths, window.filled, size, keep_rows=True))
    outputs = []
    for round_ in rounds:
        outputs.append(_read_round(passes, cache, round_, round_.take(tokens)))
        sleep_rows(passes, cache, [row for row, filled in enumerate(window.filled) if filled == size], num_passes)
    return rounds, outputs


def _read_round(passes: SleepPasses, cache: Cache, round_: Round, tokens: torch.Tensor) -> list[torch.Tensor]:
    """One round of tokens `[B, n, D]`, and the outputs of `wake`."""
    window: Any = cache.layers[0]
    gathered: list[torch.Tensor] = []
    for count in sorted(set(round_.counts) - {0}):
        rows = [row for row, taken in enumerate(round_.counts) if taken == count]
        index = _row_index(rows, len(round_.counts), tokens.device)
        place, states = _select(cache, rows, index)
        outputs, core_output, states = passes.wake(select_rows(tokens, index)[:, :count], states, place)
        if window.hidden_states is not None:
            core_output = torch.cat([select_rows(window.hidden_states, index), core_output], dim=1)
        for row in rows:
            window.filled[row] += count
            window.seen[row] += count
        _merge(cache, index, states, core_output)
        if index is None:
            return outputs
        gathered = gathered or [torch.zeros_like(tokens, dtype=output.dtype) for output in outputs]
        padding = (0, 0, 0, tokens.shape[1] - count)
        gathered = [
            whole.index_copy(0, index, nn.functional.pad(part, padding)) for whole, part in zip(gathered, outputs)
        ]
    return gathered


def sleep_rows(passes: SleepPasses, cache: Cache, rows: list[int], num_passes: int) -> None:
    """Let `rows` sleep over their open windows.

    Args:
        passes (`SleepPasses`): the layers.
        cache (`Cache`): is changed.
        rows (`list[int]`): the rows, none with an empty window.
        num_passes (`int`): passes.
    """
    window: Any = cache.layers[0]
    for filled in sorted({window.filled[row] for row in rows}):
        group = [row for row in rows if window.filled[row] == filled]
        index = _row_index(group, len(window.filled), window.hidden_states.device)
        place, states = _select(cache, group, index)
        core_output = select_rows(window.hidden_states, index)[:, -filled:]
        states = passes.sleep(core_output, states, place, num_passes)
        for row in group:
            kept = min(window.kept[row] + filled, passes.config.sleep_window - 1)
            window.kept[row] = 0 if passes.config.eviction == "hard" else kept
            window.filled[row] = 0
        _merge(cache, index, states, core_output[:, :0])


def _row_index(rows: list[int], batch_size: int, device: torch.device) -> torch.Tensor | None:
    return None if len(rows) == batch_size else torch.tensor(rows, device=device)


def _select(cache: Cache, rows: list[int], index: torch.Tensor | None) -> tuple[Place, list[LayerState]]:
    """Where `rows` are, and their states without the columns that none of them needs."""
    window, *layers = cast(list[Any], cache.layers)
    place = Place(*([numbers[row] for row in rows] for numbers in (window.filled, window.kept, window.seen)))
    return place, [_keep_last(layer.state.select(index), max(window.lengths(rows))) for layer in layers]


def _merge(cache: Cache, index: torch.Tensor | None, states: list[LayerState], core_output: torch.Tensor) -> None:
    """Put the states of rows back, and drop the columns that no row needs any more."""
    window, *layers = cast(list[Any], cache.layers)
    batch_size = len(window.filled)
    num_columns = max(window.lengths(list(range(batch_size))))
    for layer, state in zip(layers, states):
        layer.state = _keep_last(layer.state.merge(state, index, batch_size), num_columns)
    hidden_states: Any = merge_columns(window.hidden_states, core_output, index, batch_size, 1)
    window.hidden_states = hidden_states[:, hidden_states.shape[1] - max(window.filled) :]


def _keep_last(state: LayerState, num_columns: int) -> LayerState:
    if state.num_columns() <= num_columns:
        return state
    return state.columns(state.num_columns() - num_columns, state.num_columns())


__all__ = ["check_sleep_cache", "read_window", "sleep_rows"]
