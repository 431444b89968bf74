"""The rows that deep supervision works on: each stays for as many steps as it has segments, then makes room."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from ..files import atomic_path, read_safetensors
from ..models import HierarchicalCarry
from .puzzle_batches import widen


# keeps these draws apart from others that are made from the seed and the step
DRAW = 0xDEE9


@dataclass
class MicroBatch:
    """The rows of one micro-batch.

    Attributes:
        rows (`dict[str, torch.Tensor]`): what the model reads and is asked for, by name, each `[B, ...]`.
        carry (`HierarchicalCarry`): where their next segment starts.
        halted (`torch.BoolTensor` of shape `[B]`): rows `[B]` that make room for new ones.
    """

    rows: dict[str, torch.Tensor]
    carry: HierarchicalCarry
    halted: torch.Tensor


class PersistentRows:
    """The micro-batches of a training step, on one process, from one step to the next.

    A step brings every micro-batch as many new rows as it holds. A new row replaces the row at its own index if that
    one has halted; otherwise it is discarded, as in HRM's and TRM's code. So the same data loader serves as anywhere
    else, and how a batch is cut into micro-batches and processes changes nothing.
    """

    def __init__(self) -> None:
        self.micro_batches: dict[int, MicroBatch] = {}

    def refill(self, index: int, fresh: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Any]:
        """Give the rows of a micro-batch with the halted ones replaced, and their carry (`None` where all are new).

        Raises:
            ValueError: if the new rows are of another shape, or have other columns.
        """
        micro_batch = self.micro_batches.get(index)
        if micro_batch is None:
            return fresh, None
        fresh, micro_batch = _of_one_size(fresh, micro_batch)
        shapes, expected = (
            {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in rows.items()}
            for rows in (fresh, micro_batch.rows)
        )
        if shapes != expected:
            raise ValueError(f"new rows must be like those that are under way, {expected}, got {shapes}")
        halted = micro_batch.halted
        rows = {
            name: torch.where(halted.view(-1, *[1] * (held.ndim - 1)), fresh[name], held)
            for name, held in micro_batch.rows.items()
        }
        carry: Any = micro_batch.carry
        steps = torch.where(halted, 0, carry.steps)
        return rows, HierarchicalCarry(high=carry.high, steps=steps, low=carry.low)

    def keep(self, index: int, rows: dict[str, torch.Tensor], carry: HierarchicalCarry, halted: torch.Tensor) -> None:
        """Put the rows of a micro-batch back, with where they have come to."""
        self.micro_batches[index] = MicroBatch(rows, carry, halted)

    def mean_segments(self) -> float | None:
        """Segments that the rows have run, on average; `None` before the first step."""
        steps: list[Any] = [micro_batch.carry.steps for micro_batch in self.micro_batches.values()]
        return float(torch.cat(steps).float().mean()) if steps else None

    def save(self, folder: Path, rank: int) -> None:
        """Write the rows of this process into a checkpoint's folder."""
        tensors = {}
        for index, micro_batch in self.micro_batches.items():
            named = {f"rows.{name}": tensor for name, tensor in micro_batch.rows.items()}
            named |= {f"carry.{name}": tensor for name, tensor in micro_batch.carry.items()}
            named["halted"] = micro_batch.halted
            tensors |= {f"{index}.{name}": tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        with atomic_path(folder / file_name(rank)) as temporary:
            save_file(tensors, temporary)

    def load(self, folder: Path, rank: int, device: torch.device) -> None:
        """Read the rows of this process from a checkpoint's folder."""
        path = folder / file_name(rank)
        micro_batches: dict[int, dict[str, torch.Tensor]] = {}
        for full_name, tensor in read_safetensors(path)[0].items():
            index, _, name = full_name.partition(".")
            micro_batches.setdefault(int(index), {})[name] = tensor.to(device)
        self.micro_batches = {index: _as_micro_batch(named) for index, named in micro_batches.items()}


def _of_one_size(fresh: dict[str, torch.Tensor], under_way: MicroBatch) -> tuple[dict[str, torch.Tensor], MicroBatch]:
    """Pad new rows and those under way to the cells of the largest puzzle among them."""
    batches = (fresh, under_way.rows)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    if lengths[0] == lengths[1] and not any("attention_mask" in batch for batch in batches):
        return fresh, under_way
    fresh, rows = (widen(batch, max(lengths)) for batch in batches)
    missing = max(lengths) - lengths[1]
    carry = under_way.carry.map(lambda state: pad(state, (0, 0, 0, missing)) if state.ndim == 3 else state)
    return fresh, MicroBatch(rows, carry, under_way.halted)


def _as_micro_batch(named: dict[str, torch.Tensor]) -> MicroBatch:
    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): named[name] for name in named if name.startswith(prefix)}

    return MicroBatch(part("rows."), HierarchicalCarry(**part("carry.")), named["halted"])


def file_name(rank: int) -> str:
    """Name the file of a process in a checkpoint's folder."""
    return f"deep_supervision_{rank}.safetensors"


def fewest_segments(seed: int, step: int, rows: slice, exploration: float, max_segments: int) -> np.ndarray:
    """Draw the segments that rows must have run before they may halt after optimizer step `step`.

    With probability `exploration` a number from 2 to `max_segments`, else 0 (2506.21734). A function of the arguments
    alone: all processes draw for all rows, and a resumed run repeats it.

    Args:
        seed (`int`): seed of the run.
        step (`int`): the step, from 0.
        rows (`slice`): rows of the whole batch, over all micro-batches and processes, to draw for.
        exploration (`float`): the probability.
        max_segments (`int`): segments after which every row halts.
    """
    # two numbers a row, so that a row's do not depend on how many rows are drawn for
    draws = np.random.default_rng([seed, step, DRAW]).random((rows.stop, 2))[rows]
    counts = np.minimum(max_segments, 2 + (draws[:, 1] * (max_segments - 1)).astype(np.int64))
    return np.where(draws[:, 0] < exploration, counts, 0)
