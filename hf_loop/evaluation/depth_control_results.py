"""The losses of a model under the controls of its depth, and what share of the naive gap each explains."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..field_values import build
from ..files import fault_named, read_json, write_text
from .results import package_versions


# in nats; of a smaller gap no share can be told from rounding
MIN_GAP = 1e-4
# readouts that are fitted at every depth
READOUTS = ("temperature", "gains", "affine")


@dataclass(frozen=True)
class ControlledDepth:
    """Losses at one depth, in nats for each labelled token.

    Args:
        loops (`int`): k.
        prefix (`float`): after k loops, the naive cut.
        repeat (`float`): after k loops, and loop k again until all loops have run.
        suffix (`float`): after the last k loops only.
        frozen (`float`): after k loops, and the step of loop k added again until all loops have run.
        temperature (`float`): after k loops, with a fitted temperature.
        gains (`float`): after k loops, with fitted gains and biases of the state's features.
        affine (`float`): after k loops, with a fitted affine map of the state.
        fitted_temperature (`float`): that temperature.
    """

    loops: int
    prefix: float
    repeat: float
    suffix: float
    frozen: float
    temperature: float
    gains: float
    affine: float
    fitted_temperature: float


# of `ControlledDepth`; JSON has no infinity
NUMBERS = tuple(item.name for item in fields(ControlledDepth) if item.name != "loops")


@dataclass
class DepthControls:
    """The controls of one model on one text or task.

    Args:
        label (`str`): what was measured, as the figure names it.
        num_loops (`int`): the full depth R.
        shares_loops (`bool`): whether all loops compute the same function of the state. Then repeat(k) is the whole
            model and suffix(k) is prefix(k) by definition, and neither explains anything.
        num_fit_tokens (`int`): labelled tokens that the readouts were fitted to.
        num_test_tokens (`int`): labelled tokens that were measured.
        settings (`dict`): digests of the weights, the configuration and the texts; losses under others cannot be
            compared.
        rows (`list[ControlledDepth]`): the depths, ascending; full depth is the last.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    label: str
    num_loops: int
    shares_loops: bool
    num_fit_tokens: int
    num_test_tokens: int
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[ControlledDepth] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=package_versions)

    def row(self, loops: int) -> ControlledDepth:
        """Return the losses at a measured depth.

        Raises:
            ValueError: if that depth was not measured.
        """
        for row in self.rows:
            if row.loops == loops:
                return row
        raise ValueError(f"loops={loops} was not measured; measured: {[row.loops for row in self.rows]}")

    def gap(self, loops: int) -> float:
        """Return the loss after so many loops minus that of full depth: what the naive sweep shows."""
        return self.row(loops).prefix - self.row(self.num_loops).prefix

    def explained_share(self, loops: int) -> dict[str, float | None]:
        """Return the share of the gap at a depth that each control explains.

        - `temperature`, `gains`, `affine`: by how much the gap shrinks if both depths are read with their own fitted
          readout. This is no lack of computation: the state held it.
        - `repeat`: what running loop k again in place of the others wins back; only the rest needs *different* loops.
        - `frozen`: what moving on as loop k did wins back; only the rest needs loops that look at the state again.

        Shares overlap and need not add up to 1; one below 0 says that the control makes it worse.

        Args:
            loops (`int`): the depth.

        Returns:
            `dict[str, float | None]`: the shares; `None` where there is no gap to explain or the control is the whole
            model by definition.

        Raises:
            ValueError: if that depth was not measured.
        """
        row, full, gap = self.row(loops), self.row(self.num_loops), self.gap(loops)
        # written so that NaN has no shares either
        if not MIN_GAP < gap < math.inf:
            return dict.fromkeys((*READOUTS, "repeat", "frozen"), None)
        shares: dict[str, float | None] = {
            name: 1 - (getattr(row, name) - getattr(full, name)) / gap for name in READOUTS
        }
        shares["repeat"] = None if self.shares_loops else (row.prefix - row.repeat) / gap
        shares["frozen"] = (row.prefix - row.frozen) / gap
        return shares

    def to_dict(self) -> dict[str, Any]:
        """Return the controls as lists and numbers, with the shares; what is not finite becomes `None`."""
        is_whole = any(row.loops == self.num_loops for row in self.rows)
        rows = []
        for row in self.rows:
            numbers = {name: _finite(getattr(row, name)) for name in NUMBERS}
            shares = self.explained_share(row.loops) if is_whole else {}
            finite = {name: None if share is None else _finite(share) for name, share in shares.items()}
            rows.append(asdict(row) | numbers | {"explained_share": finite})
        return asdict(self) | {"rows": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "DepthControls":
        """Make controls from what [`~DepthControls.to_dict`] returned.

        Raises:
            ValueError: if a field is missing, unknown or of another type.
        """
        rows = []
        for index, row in enumerate(data.get("rows", [])):
            # computed from the rest
            stored = {name: value for name, value in row.items() if name != "explained_share"}
            stored |= {name: math.inf for name in NUMBERS if stored.get(name, 0) is None}
            rows.append(build(ControlledDepth, stored, f"row {index}"))
        return build(cls, {**data, "rows": rows}, "the controls of depth")

    def save(self, path: str | Path) -> None:
        """Write the controls to a JSON file, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "DepthControls":
        """Read controls written by [`~DepthControls.save`].

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold controls of depth.
        """
        data = read_json(path)
        with fault_named(f"{path} does not hold controls of depth"):
            return cls.from_dict(data)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
