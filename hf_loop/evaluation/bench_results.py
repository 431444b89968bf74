"""The results of a benchmark of decoding, in a file from which an interrupted one goes on."""

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..field_values import build
from ..files import fault_named, read_json, write_text
from .bench_quality import Quality
from .bench_runs import Memory
from .results import package_versions
from .scan_results import check_same_settings


BENCH_FILE = "bench.json"
# where a setting may be refused, besides a batch size
TEXT = "text"


class Spread(NamedTuple):
    """The median of some numbers, and the quartiles around it."""

    low: float
    median: float
    high: float


def spread(numbers: list[float]) -> Spread | None:
    """Return the median and the quartiles of some numbers, `None` of none."""
    if not numbers:
        return None
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    return Spread(*statistics.quantiles(numbers, n=4, method="inclusive"))


@dataclass
class BenchRow:
    """What was measured of one way to decode.

    Args:
        name (`str`): its name.
        kind (`str`): what it changes, see [`BenchSetting`].
        quality (`Quality`, *optional*): how well it predicts the text.
        memory (`dict[str, Memory]`): its memory, by batch size.
        refused (`dict[str, str]`): why the model refuses it, by batch size or `"text"`.
    """

    name: str
    kind: str
    quality: Quality | None = None
    memory: dict[str, Memory] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class Bench:
    """A benchmark of one model.

    Args:
        label (`str`): the model, as the figure names it.
        num_loops (`int`): its own number of loops.
        settings (`dict`): what the numbers depend on: digests of model and text, sizes, device, threads. Rows under
            other settings cannot be compared.
        rows (`list[BenchRow]`): the ways to decode; the first is what the others are compared with.
        rounds (`dict[str, list[dict[str, list[float]]]]`): by batch size, the rounds in which runs were timed one
            after the other: by name, the seconds for each generated token on the clock and of all processors.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    label: str
    num_loops: int
    settings: dict[str, Any]
    rows: list[BenchRow] = field(default_factory=list)
    rounds: dict[str, list[dict[str, list[float]]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=package_versions)

    def row(self, name: str, kind: str) -> BenchRow:
        """Return the row of a name, which is added if it is not there."""
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            found = BenchRow(name, kind)
            self.rows.append(found)
        return found

    def num_runs(self, name: str, batch: int) -> int:
        """Return how often a row was timed."""
        return sum(name in times for times in self.rounds.get(str(batch), []))

    def speed(self, name: str, batch: int) -> Spread | None:
        """Return the tokens that a row generates in a second, all rows of the batch together."""
        return spread([1 / times[name][0] for times in self.rounds.get(str(batch), []) if name in times])

    def ratio(self, name: str, batch: int, of_processor: bool = False) -> Spread | None:
        """Return the time of a row over that of the first row in the same round; below 1 it is faster.

        Args:
            name (`str`): the row.
            batch (`int`): the batch size.
            of_processor (`bool`, *optional*, defaults to `False`): whether to compare the time of all processors
                instead of that on the clock.
        """
        first, which = self.rows[0].name, int(of_processor)
        rounds = [times for times in self.rounds.get(str(batch), []) if name in times and first in times]
        return spread([times[name][which] / times[first][which] for times in rounds if times[first][which] > 0])

    def save(self, path: str | Path) -> None:
        """Write the benchmark to a JSON file, whole or not at all; numbers that are not finite become `null`."""
        write_text(path, json.dumps(_finite(asdict(self)), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Bench":
        """Read a benchmark written by [`~Bench.save`].

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold a benchmark.
        """
        data = read_json(path)
        with fault_named(f"{path} does not hold a benchmark"):
            rows = [_read_row(row) for row in data["rows"]]
            return build(cls, data | {"rows": rows}, "the benchmark")

    def check_settings(self, settings: dict[str, Any], path: str | Path) -> None:
        """Check that this benchmark, read from `path`, was measured under `settings` (some or all of them).

        Raises:
            ValueError: if not; the message names what differs.
        """
        check_same_settings(self.settings, settings, path)


def _read_row(data: dict[str, Any]) -> BenchRow:
    quality = data["quality"]
    if quality is not None:
        perplexity = math.inf if quality["perplexity"] is None else quality["perplexity"]
        quality = build(Quality, quality | {"perplexity": perplexity}, "a quality")
    memory = {batch: build(Memory, item, "a memory") for batch, item in data["memory"].items()}
    return build(BenchRow, data | {"quality": quality, "memory": memory}, "a row")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
