"""Masks of two subroutines: what each of them can do, how they overlap, and a file from which a search goes on."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..evaluation.results import package_versions
from ..evaluation.scan_results import check_same_settings
from ..field_values import build
from ..files import fault_named, read_json, write_text


SUBROUTINES = ("a", "b")
Subroutine = Literal["a", "b"]
# accuracy on the tests of both subroutines
Accuracies = dict[str, float]


@dataclass(frozen=True)
class MaskRun:
    """One mask that was trained, and what the subnetwork and the network without it can do.

    Args:
        network (`str`): `"trained"`, the model, or `"random"`, the control: one of the same configuration whose
            weights are random.
        subroutine (`str`): the subroutine, `"a"` or `"b"`, on whose rows the mask was trained.
        per_loop (`bool`): whether every loop has a mask of its own.
        seed (`int`): seed of the mask's training, and of the random network and the random mask.
        kept (`float`): share of the masked weights that is in the subnetwork.
        subnetwork (`dict[str, float]`): accuracy of the subnetwork on the tests of both subroutines.
        ablated (`dict[str, float]`): accuracy of the network without it.
        random_subnetwork, random_ablated (`dict[str, float]`): the same for a random mask that keeps as many weights
            of every matrix.
        ablated_in_loop (`list[dict[str, float]]`): accuracy when the subnetwork is ablated in one loop only, for each;
            empty for the random network.
        loop_overlap (`list[list[float]]`): intersection over union of the masks of every two loops; empty for a mask
            that all loops share.
        chance_overlap (`list[list[float]]`): what random masks of these sizes would give.
    """

    network: Literal["trained", "random"]
    subroutine: Literal["a", "b"]
    per_loop: bool
    seed: int
    kept: float
    subnetwork: Accuracies
    ablated: Accuracies
    random_subnetwork: Accuracies
    random_ablated: Accuracies
    ablated_in_loop: list[Accuracies] = field(default_factory=list)
    loop_overlap: list[list[float]] = field(default_factory=list)
    chance_overlap: list[list[float]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, bool, int]:
        """What was trained; each key is trained once."""
        return self.network, self.subroutine, self.per_loop, self.seed


@dataclass(frozen=True)
class MaskPair:
    """The overlap of two masks that all loops share.

    Args:
        first, second (`str`): the masks, as `"a, seed 0"`.
        overlap (`float`): intersection over union.
        chance (`float`): what random masks of these sizes would give.
    """

    first: str
    second: str
    overlap: float
    chance: float


@dataclass
class ModularityResults:
    """Masks of two subroutines of one model.

    Args:
        label (`str`): what was measured, as the figure names it.
        loops (`list[int]`): the loops, from 0.
        chance (`dict[str, float]`): what the most frequent answer gives on the test of each subroutine.
        accuracy (`dict[str, float]`): accuracy of the whole model on both tests.
        settings (`dict`): what the numbers depend on: digests of the model and the rows, how masks were trained.
        runs (`list[MaskRun]`): what was measured.
        pairs (`list[MaskPair]`): overlaps of masks of the trained network: of one subroutine under two seeds, which
            says how well a mask is determined, and of the two subroutines.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    label: str
    loops: list[int]
    chance: Accuracies
    accuracy: Accuracies
    settings: dict[str, Any]
    runs: list[MaskRun] = field(default_factory=list)
    pairs: list[MaskPair] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=package_versions)

    def difference(self, accuracies: Accuracies, subroutine: str) -> float:
        """Return how much more of the task of `subroutine` than of the other one accuracies above chance leave.

        With equal chance levels this is the difference of https://huggingface.co/papers/2301.10884, whose accuracies
        are clipped below at chance; with two levels each accuracy is taken from its own.
        """
        above = {name: max(accuracies[name] - self.chance[name], 0.0) for name in SUBROUTINES}
        return above[subroutine] - above[other(subroutine)]

    def sub_diff(self, run: MaskRun) -> float:
        """Return SubDiff: how much better the subnetwork is at its own subroutine than at the other one.

        At most 1 minus the chance level of its own; 0 where a subnetwork does both or none.
        """
        return self.difference(run.subnetwork, run.subroutine)

    def abl_diff(self, run: MaskRun) -> float:
        """Return AblDiff: how much better the network without the subnetwork is at the other subroutine.

        At most 1 minus the chance level of the other; 0 where ablation harms both or none.
        """
        return self.difference(run.ablated, other(run.subroutine))

    def random_sub_diff(self, run: MaskRun) -> float:
        """Return SubDiff of the random mask of the same size."""
        return self.difference(run.random_subnetwork, run.subroutine)

    def random_abl_diff(self, run: MaskRun) -> float:
        """Return AblDiff of the random mask of the same size."""
        return self.difference(run.random_ablated, other(run.subroutine))

    def runs_of(self, network: str, subroutine: str, per_loop: bool) -> list[MaskRun]:
        """Return the runs of one kind, one for each seed."""
        return [run for run in self.runs if run.key[:3] == (network, subroutine, per_loop)]

    def kinds(self) -> Iterator[tuple[str, list[MaskRun], bool]]:
        """Yield for each kind of mask that was measured its name, its runs, and whether its random mask is meant."""
        for subroutine in SUBROUTINES:
            shared = self.runs_of("trained", subroutine, False)
            per_loop = self.runs_of("trained", subroutine, True)
            for name, runs, is_random in (
                ("one mask", shared, False),
                ("one per loop", per_loop, False),
                ("random masks", shared, True),
                ("random network", self.runs_of("random", subroutine, False), False),
            ):
                if runs:
                    yield name, runs, is_random

    def save(self, path: str | Path) -> None:
        """Write the results to a JSON file, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "ModularityResults":
        """Read results written by [`~ModularityResults.save`].

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold such results.
        """
        data = read_json(path)
        with fault_named(f"{path} does not hold results of masks"):
            data |= {
                "runs": [build(MaskRun, run, f"run {index}") for index, run in enumerate(data["runs"])],
                "pairs": [build(MaskPair, pair, f"pair {index}") for index, pair in enumerate(data["pairs"])],
            }
            return build(cls, data, "the results")

    def check_settings(self, settings: dict[str, Any], path: str | Path) -> None:
        """Check that these results, read from `path`, were measured under `settings`.

        Raises:
            ValueError: if not; the message names what differs.
        """
        check_same_settings(self.settings, settings, path)

    def to_markdown(self) -> str:
        """Return the tables: what each kind of mask does, and the overlaps; means over seeds with their spread."""
        lines = [
            f"{self.label}: accuracy {self.accuracy['a']:.3f} on A (chance {self.chance['a']:.3f}), "
            f"{self.accuracy['b']:.3f} on B (chance {self.chance['b']:.3f}).",
            "",
            "| mask of | kind | seeds | kept | subnetwork on A | on B | SubDiff | ablated on A | on B | AblDiff |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name, runs, is_random in self.kinds():
            subnetworks = [run.random_subnetwork if is_random else run.subnetwork for run in runs]
            ablated = [run.random_ablated if is_random else run.ablated for run in runs]
            own = runs[0].subroutine
            columns = [
                [run.kept for run in runs],
                *([each[test] for each in subnetworks] for test in SUBROUTINES),
                [self.difference(each, own) for each in subnetworks],
                *([each[test] for each in ablated] for test in SUBROUTINES),
                [self.difference(each, other(own)) for each in ablated],
            ]
            cells = " | ".join(mean_and_spread(values) for values in columns)
            lines.append(f"| {own.upper()} | {name} | {len(runs)} | {cells} |")
        best = ", ".join(f"{1 - self.chance[name]:.3f} ({name.upper()})" for name in SUBROUTINES)
        lines += ["", f"SubDiff is at most 1 - chance of the mask's own subroutine, AblDiff of the other: {best}.", ""]
        return "\n".join(lines + self._overlap_lines())

    def _overlap_lines(self) -> list[str]:
        lines = ["| overlap (intersection over union) | masks | found | random masks |", "|---|---:|---:|---:|"]
        for subroutine in SUBROUTINES:
            runs = self.runs_of("trained", subroutine, True)
            if runs and len(runs[0].loop_overlap) > 1:
                found, chance = ([_off_diagonal(matrix(run)) for run in runs] for matrix in (_found, _chance))
                lines.append(
                    f"| {subroutine.upper()}: two loops | {len(runs)} x {len(runs[0].loop_overlap)} | "
                    f"{mean_and_spread(found)} | {mean_and_spread(chance)} |"
                )
        for name, pairs in (
            ("A: two seeds", [pair for pair in self.pairs if pair.first[0] == pair.second[0] == "a"]),
            ("B: two seeds", [pair for pair in self.pairs if pair.first[0] == pair.second[0] == "b"]),
            ("A and B", [pair for pair in self.pairs if pair.first[0] != pair.second[0]]),
        ):
            if pairs:
                found, chance = [pair.overlap for pair in pairs], [pair.chance for pair in pairs]
                lines.append(f"| {name} | {len(pairs)} | {mean_and_spread(found)} | {mean_and_spread(chance)} |")
        return [*lines, ""] if len(lines) > 2 else []


def other(subroutine: str) -> Subroutine:
    """Return the other subroutine."""
    return "b" if subroutine == "a" else "a"


def mean_and_spread(values: list[float]) -> str:
    """Return the mean of values as text, with their standard deviation if there are several."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _found(run: MaskRun) -> list[list[float]]:
    return run.loop_overlap


def _chance(run: MaskRun) -> list[list[float]]:
    return run.chance_overlap


def _off_diagonal(matrix: list[list[float]]) -> float:
    """Return the mean of a matrix over pairs of two different loops."""
    return statistics.fmean(value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j)


__all__ = ["SUBROUTINES", "Accuracies", "MaskPair", "MaskRun", "ModularityResults", "mean_and_spread", "other"]
