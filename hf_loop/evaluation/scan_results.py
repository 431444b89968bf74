"""The results of a scan over layer ranges, in a file from which an interrupted scan goes on."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..field_values import build
from ..files import fault_named, read_json, write_text
from ..models.checks import check_positive_int, whole_number
from .results import package_versions


UPDATES = ("replace", "damped")
# of a cell; JSON has no infinity
NUMBERS = ("perplexity", "standard_error")


@dataclass(frozen=True)
class ScanCell:
    """The perplexity with one range of layers looped.

    Args:
        first (`int`): the first looped layer, counted from 0.
        last (`int`): the last looped layer; the range includes it.
        num_loops (`int`): how often the range ran.
        update (`str`): `"replace"` or `"damped"`, as `loop_update` of [`LoopedConfig`].
        perplexity (`float`): on all predicted tokens.
        standard_error (`float`): standard error of the mean difference between this cell's and the base model's
            negative log-likelihood of a token, as if tokens were independent. Times the ratio, it is the uncertainty
            of the ratio. That is much smaller than the uncertainty of either perplexity, since both are measured on
            the same tokens.
    """

    first: int
    last: int
    num_loops: int
    update: Literal["replace", "damped"]
    perplexity: float
    standard_error: float

    @property
    def key(self) -> tuple[int, int, str, int]:
        """What was run; a scan measures each key once."""
        return self.first, self.last, self.update, self.num_loops


@dataclass
class LayerScan:
    """Perplexities of one pretrained model on one text with different ranges of its layers looped.

    Args:
        label (`str`): what was measured, as the figure names it.
        num_layers (`int`): layers of the model.
        num_tokens (`int`): predicted tokens.
        base_perplexity (`float`): perplexity of the model as it is, which is what one loop of any range gives.
        settings (`dict`): what the numbers depend on besides the range: digests of the weights, the configuration and
            the text, the type of the weights, the window. Cells under other settings cannot be compared.
        cells (`list[ScanCell]`): what was measured.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    label: str
    num_layers: int
    num_tokens: int
    base_perplexity: float
    settings: dict[str, Any]
    cells: list[ScanCell] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=package_versions)

    def ratio(self, cell: ScanCell) -> float:
        """The cell's perplexity over the base model's; below 1 the loop helps."""
        return cell.perplexity / self.base_perplexity

    def best(self, count: int | None = None) -> list[ScanCell]:
        """Return the cells by ascending perplexity, the first `count` of them or all."""
        return sorted(self.cells, key=lambda cell: (cell.perplexity, cell.key))[:count]

    def panels(self) -> dict[tuple[str, int], list[ScanCell]]:
        """Group the cells by `(update, num_loops)`, plain repetition first, then by loop count."""
        keys = sorted({(UPDATES.index(cell.update), cell.num_loops) for cell in self.cells})
        panels: dict[tuple[str, int], list[ScanCell]] = {(UPDATES[index], count): [] for index, count in keys}
        for cell in self.cells:
            panels[cell.update, cell.num_loops].append(cell)
        return panels

    def to_csv(self) -> str:
        """Return a table of all cells with their ratio to the base, best first; lines end with a line feed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*(item.name for item in fields(ScanCell)), "ratio"])
        for cell in self.best():
            writer.writerow([*asdict(cell).values(), self.ratio(cell)])
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the scan to a JSON file, whole or not at all; numbers that are not finite become `null`."""
        cells = [asdict(cell) | {name: _finite(getattr(cell, name)) for name in NUMBERS} for cell in self.cells]
        data = asdict(self) | {"base_perplexity": _finite(self.base_perplexity), "cells": cells}
        write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "LayerScan":
        """Read a scan written by [`~LayerScan.save`].

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold a scan.
        """
        data = read_json(path)
        with fault_named(f"{path} does not hold a layer scan"):
            cells = [
                build(ScanCell, cell | {name: _or_infinite(cell[name]) for name in NUMBERS}, f"cell {index}")
                for index, cell in enumerate(data["cells"])
            ]
            data |= {"base_perplexity": _or_infinite(data["base_perplexity"]), "cells": cells}
            return build(cls, data, "the scan")

    def check_settings(self, settings: dict[str, Any], path: str | Path) -> None:
        """Check that this scan, read from `path`, was measured under `settings` (some or all of them).

        Raises:
            ValueError: if not; the message names what differs.
        """
        check_same_settings(self.settings, settings, path)


def check_same_settings(stored: dict[str, Any], settings: dict[str, Any], path: str | Path) -> None:
    """Check that results, read from `path`, were measured under `settings` (some or all of them).

    Raises:
        ValueError: if not; the message names what differs.
    """
    differences = [
        f"{name} {stored.get(name)} there, {value} here"
        for name, value in settings.items()
        if stored.get(name) != value
    ]
    if differences:
        raise ValueError(f"{path} was measured with other settings ({'; '.join(differences)}); use another folder")


def layer_ranges(
    num_layers: int,
    *,
    stride: int = 1,
    min_length: int = 1,
    max_length: int | None = None,
    within: tuple[int, int] | None = None,
) -> list[tuple[int, int]]:
    """Make the ranges of layers to try, a regular grid over the first layer and the length.

    Args:
        num_layers (`int`): layers of the model.
        stride (`int`, *optional*, defaults to 1): the step of the first layer and of the length; a stride of `n` makes
            about `n * n` times fewer ranges.
        min_length (`int`, *optional*, defaults to 1): the smallest number of layers in a range.
        max_length (`int`, *optional*): the largest number of layers in a range, by default no limit.
        within (`tuple[int, int]`, *optional*): the first and the last layer that a range may hold, by default all.

    Returns:
        `list[tuple[int, int]]`: `(first, last)` of every range, both included, counted from 0, ascending.

    Raises:
        ValueError: if an argument is out of range, or no range is left.
    """
    ((low, high),) = check_ranges([within or (0, num_layers - 1)], num_layers)
    stride = check_positive_int("stride", stride)
    min_length = check_positive_int("min_length", min_length)
    max_length = None if max_length is None else check_positive_int("max_length", max_length)
    longest = high - low + 1 if max_length is None else min(max_length, high - low + 1)
    if min_length > longest:
        raise ValueError(f"min_length {min_length} leaves no range: at most {longest} layers can be looped")
    lengths = range(min_length, longest + 1, stride)
    starts = range(low, high + 1, stride)
    return [(first, first + length - 1) for first in starts for length in lengths if first + length - 1 <= high]


def check_ranges(ranges: Sequence[tuple[int, int]], num_layers: int) -> list[tuple[int, int]]:
    """Return `ranges` as a list after checking it against a model of `num_layers` layers.

    Raises:
        ValueError: if there are none, or one runs backwards, passes the end, or is named twice.
    """
    if len(ranges) == 0:
        raise ValueError("ranges is empty; give at least one (first, last)")
    checked = []
    for given in ranges:
        first, last = (whole_number(end) for end in given)
        if first is None or last is None:
            raise ValueError(f"ranges must hold pairs of integers, got ({given[0]!r}, {given[1]!r})")
        if first > last:
            raise ValueError(f"ranges: ({first}, {last}) runs backwards; give the first layer first")
        if first < 0 or last >= num_layers:
            problem = "does not fit" if first < 0 else "passes the end"
            raise ValueError(f"ranges: ({first}, {last}) {problem}: the model has the layers 0 to {num_layers - 1}")
        checked.append((first, last))
    if len(set(checked)) != len(checked):
        raise ValueError(f"ranges must name each range once, got {checked}")
    return checked


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value
