"""The states after every loop of many rows, for probes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from .capture import capture


def loop_states(
    model: Any,
    rows: Sequence[Any],
    positions: int | Sequence[int] | None = -1,
    *,
    num_loops: int | None = None,
    include_start: bool = False,
    batch_size: int = 64,
) -> torch.Tensor:
    """Run a model on rows and return the state after every loop.

    Args:
        model (`PreTrainedModel`): a model with loops.
        rows (`Sequence`): token ids of every row, `[T]` each.
        positions (`int` or `Sequence[int]`, *optional*, defaults to -1): the position to keep, one for all rows or one
            for each; negative ones count from a row's end. `None` keeps all, of rows of one length.
        num_loops (`int`, *optional*): loops to run, by default those of the configuration.
        include_start (`bool`, *optional*, defaults to `False`): whether the state before the first loop comes first.
        batch_size (`int`, *optional*, defaults to 64): rows in one forward pass.

    Returns:
        `torch.Tensor` of shape `[N, R, D]`, or `[N, R, T, D]` for all positions: the states, on the CPU.

    Raises:
        ValueError: if the model has no loops, there are no rows, their number is not that of the positions, a position
            is outside of its row, or all positions are asked for of rows of several lengths.
    """
    tokens = [torch.as_tensor(row) for row in rows]
    if not tokens:
        raise ValueError("rows is empty; there is nothing to run")
    lengths = [len(row) for row in tokens]
    if positions is None and len(set(lengths)) > 1:
        raise ValueError(f"positions must be given for rows of several lengths, got {min(lengths)} to {max(lengths)}")
    places = None if positions is None else _places(positions, lengths)
    kept = []
    for first in range(0, len(tokens), batch_size):
        batch = tokens[first : first + batch_size]
        given = {"input_ids": pad_sequence(batch, batch_first=True)}
        if len({len(row) for row in batch}) > 1:
            given["attention_mask"] = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
        captured = capture(model, given, num_loops=num_loops)
        states = captured.loop_states
        if not states:
            raise ValueError(f"model must have loops, got {type(model).__name__} without")
        if include_start:
            if captured.start_state is None:
                raise ValueError(f"include_start must be False for {type(model).__name__}, whose core is not looped")
            states = [captured.start_state, *states]
        stacked = torch.stack(states, dim=1)
        if places is not None:
            index = torch.tensor(places[first : first + batch_size], device=stacked.device)
            stacked = stacked[torch.arange(len(batch), device=stacked.device), :, index]
        kept.append(stacked.float().cpu())
    return torch.cat(kept)


def _places(positions: int | Sequence[int], lengths: Sequence[int]) -> list[int]:
    given = [positions] * len(lengths) if isinstance(positions, int) else list(positions)
    if len(given) != len(lengths):
        raise ValueError(f"positions must be one for each of {len(lengths)} rows, got {len(given)}")
    for row, (position, length) in enumerate(zip(given, lengths, strict=True)):
        if not -length <= position < length:
            raise ValueError(f"positions: {position} is outside of row {row}, which has {length} tokens")
    return [position % length for position, length in zip(given, lengths, strict=True)]


__all__ = ["loop_states"]
