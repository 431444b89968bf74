"""Means over seeds with their spread, differences of paired runs with confidence intervals, and verdicts."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
NORMAL_QUANTILE = 1.96

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class SeedSpread:
    """Some numbers, one for each seed.

    Args:
        values (`tuple[float, ...]`): the numbers; not empty.
        row_variance (`float`): variance of their mean that comes from the rows they were measured on, which all seeds
            share.
    """

    values: tuple[float, ...]
    row_variance: float = 0.0

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        """The lowest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest."""
        return max(self.values)

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the mean, `None` of fewer than two numbers.

        Its half is the root of two squares: Student's t times the standard error over the seeds, and the normal
        quantile times that over the rows.
        """
        count = len(self.values)
        if count < 2:
            return None
        over_seeds = t_quantile(count - 1) * statistics.stdev(self.values) / math.sqrt(count)
        half = math.hypot(over_seeds, NORMAL_QUANTILE * math.sqrt(self.row_variance))
        return self.mean - half, self.mean + half

    def format(self, decimals: int = 2) -> str:
        """Return the mean, with the range where the numbers differ: `0.91 (0.88 to 0.95)`."""
        mean, low, high = (f"{number:.{decimals}f}" for number in (self.mean, self.low, self.high))
        return mean if low == high else f"{mean} ({low} to {high})"


def t_quantile(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t.

    Beyond the table it is the series in the inverse of the degrees of freedom (Abramowitz and Stegun, 26.7.5), which
    is right there to 5 decimals.
    """
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def spread_of(values: Sequence[float]) -> SeedSpread | None:
    """Return the spread of some numbers, `None` of none."""
    return SeedSpread(tuple(values)) if values else None


def verdict(differences: SeedSpread) -> Verdict:
    """Return whether paired differences show that one is better: their confidence interval does not hold 0.

    Fewer than two differences show nothing.
    """
    interval = differences.interval()
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference shown"
    return "better" if interval[0] > 0 else "worse"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats, by rising cost.

    Args:
        points (`Sequence[tuple[float, float]]`): cost (lower is better) and accuracy (higher is better) of each.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
