"""A metric as a function of the number of loops, and the range of loops in which a model is safe to use."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..field_values import build
from ..models.checks import whole_number


METRICS = ("accuracy", "perplexity")
# the fields of a curve with an entry for each loop count, which may be no finite number
MEASURED = ("values", "sequence_accuracy")

# tolerance of `safe_range` when none is given: accuracy may drop by 0.02, perplexity may rise by 5 %
DEFAULT_TOLERANCE = {"accuracy": 0.02, "perplexity": 0.05}


def check_loops(loops: Sequence[int]) -> list[int]:
    """Return `loops` as a list after checking it.

    Args:
        loops (`Sequence[int]`): loop counts to evaluate, each at least 1 and named once.

    Raises:
        ValueError: if `loops` is empty, holds something other than a positive integer, or repeats a count.
    """
    if len(loops) == 0:
        raise ValueError("loops is empty; give at least one loop count")
    counts = []
    for count in loops:
        number = whole_number(count)
        if number is None or number < 1:
            raise ValueError(f"loops must hold integers of at least 1, got {count!r}")
        counts.append(number)
    if len(set(counts)) != len(counts):
        raise ValueError(f"loops must name each loop count once, got {counts}")
    return counts


@dataclass
class LoopCurve:
    """A metric measured at several loop counts.

    Args:
        metric (`str`): `"accuracy"` (higher is better) or `"perplexity"` (lower is better).
        label (`str`): what was measured, as the figure's legend names it.
        num_loops (`list[int]`): the loop counts, ascending.
        values (`list[float]`): the metric at each loop count.
        trained_loops (`float`, *optional*): the (mean) number of loops the model was trained with, if known.
        sequence_accuracy (`list[float]`, *optional*): with `"accuracy"`: the share of examples in which every scored
            token was right, at each loop count.
        guessing (`float`, *optional*): with `"accuracy"`: what the one answer that is right most often gives.

    Raises:
        ValueError: if a field is not as described.
    """

    metric: Literal["accuracy", "perplexity"]
    label: str
    num_loops: list[int]
    values: list[float]
    trained_loops: float | None = None
    sequence_accuracy: list[float] | None = None
    guessing: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        self.num_loops = check_loops(self.num_loops)
        if self.num_loops != sorted(self.num_loops):
            raise ValueError(f"num_loops must ascend, got {self.num_loops}")
        if len(self.values) != len(self.num_loops):
            raise ValueError(f"values has {len(self.values)} entries for {len(self.num_loops)} loop counts")
        if self.sequence_accuracy is not None and len(self.sequence_accuracy) != len(self.num_loops):
            raise ValueError(
                f"sequence_accuracy has {len(self.sequence_accuracy)} entries for {len(self.num_loops)} loop counts"
            )
        if self.guessing is not None and not 0 <= self.guessing <= 1:
            raise ValueError(f"guessing must be a share from 0 to 1, got {self.guessing}")
        if self.trained_loops is not None and not 1 <= self.trained_loops < math.inf:
            raise ValueError(f"trained_loops must be at least 1, got {self.trained_loops}")

    def value_at(self, num_loops: int) -> float:
        """Return the metric at a measured loop count.

        Raises:
            ValueError: if that count was not measured.
        """
        if num_loops not in self.num_loops:
            raise ValueError(f"num_loops={num_loops} was not measured; measured: {self.num_loops}")
        return self.values[self.num_loops.index(num_loops)]

    def joined(self, other: "LoopCurve") -> "LoopCurve":
        """Return a curve with the loop counts of both, where `other` is the same measurement at other counts."""
        rows = [(count, curve, index) for curve in (self, other) for index, count in enumerate(curve.num_loops)]
        rows.sort(key=lambda row: row[0])
        lists = {
            name: None if getattr(self, name) is None else [getattr(curve, name)[index] for _, curve, index in rows]
            for name in ("num_loops", *MEASURED)
        }
        return replace(self, **lists)

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as lists and numbers. What is not finite becomes `None`, since JSON has no word for it."""
        lists = {name: getattr(self, name) for name in MEASURED}
        return asdict(self) | {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in lists.items()
            if values is not None
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LoopCurve":
        """Make a curve from what [`~LoopCurve.to_dict`] returned.

        Raises:
            ValueError: if a field is missing, unknown or of another type.
        """
        absent = math.inf if data.get("metric") == "perplexity" else math.nan
        lists = {name: data[name] for name in MEASURED if isinstance(data.get(name), list)}
        data = data | {
            name: [absent if value is None else value for value in values] for name, values in lists.items()
        }
        return build(cls, data, "a loop curve")


def reference_loops(curve: LoopCurve) -> int:
    """Return the measured loop count nearest to the trained depth (the smaller one of two equally near)."""
    if curve.trained_loops is None:
        raise ValueError(f"The curve {curve.label!r} does not say at how many loops its model was trained")
    trained_loops = curve.trained_loops
    return min(curve.num_loops, key=lambda count: (abs(count - trained_loops), count))


def has_safe_range(curve: LoopCurve) -> bool:
    """Whether a curve says at how many loops its model was trained, and the value there is a finite number."""
    return curve.trained_loops is not None and math.isfinite(curve.value_at(reference_loops(curve)))


def safe_range(curve: LoopCurve, tolerance: float | None = None) -> tuple[int, int]:
    """Return the range of loop counts at which the model is about as good as at its trained depth.

    Starting from the measured count nearest to the trained depth, the range grows in both directions over the
    measured counts as long as each is within the tolerance of the value there. A count that is *better* than the
    trained depth is inside. The range ends at a measured count: nothing is known of others.

    Args:
        curve (`LoopCurve`): the measurement; its `trained_loops` must be known.
        tolerance (`float`, *optional*): for accuracy, the absolute loss allowed (defaults to 0.02); for perplexity,
            the relative increase allowed (defaults to 0.05).

    Returns:
        `tuple[int, int]`: the smallest and the largest safe loop count.

    Raises:
        ValueError: if the tolerance is negative, the trained depth unknown, or the value there no finite number.
    """
    tolerance = DEFAULT_TOLERANCE[curve.metric] if tolerance is None else tolerance
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    position = curve.num_loops.index(reference_loops(curve))
    reference = curve.values[position]
    if not math.isfinite(reference):
        raise ValueError(
            f"{curve.label!r} has no safe range: its {curve.metric} at {curve.num_loops[position]} loops, the trained "
            f"depth, is {reference}"
        )

    def is_safe(value: float) -> bool:
        if curve.metric == "accuracy":
            return value >= reference - tolerance
        return value <= reference * (1 + tolerance)

    low = high = position
    while low > 0 and is_safe(curve.values[low - 1]):
        low -= 1
    while high + 1 < len(curve.values) and is_safe(curve.values[high + 1]):
        high += 1
    return curve.num_loops[low], curve.num_loops[high]
