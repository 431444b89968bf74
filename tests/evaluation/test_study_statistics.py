import math
import statistics

import pytest

from hf_loop.evaluation.study_statistics import SeedSpread, pareto_front, spread_of, t_quantile, verdict


def test_mean_range_and_interval():
    spread = SeedSpread((0.5, 0.6, 0.7))
    assert (spread.mean, spread.low, spread.high) == (pytest.approx(0.6), 0.5, 0.7)
    # by hand: 0.6 +- 4.303 * 0.1 / sqrt(3)
    low, high = spread.interval()
    assert (low, high) == (pytest.approx(0.6 - 0.24844, abs=1e-4), pytest.approx(0.6 + 0.24844, abs=1e-4))
    assert spread.format() == "0.60 (0.50 to 0.70)"
    assert SeedSpread((0.501, 0.499)).format() == "0.50"
    assert SeedSpread((1.0,)).interval() is None
    assert spread_of([]) is None


def test_rows_widen_the_interval():
    # both roots by hand: 0.24844 over the seeds, 1.96 * sqrt(0.0025) = 0.098 over the rows
    low, high = SeedSpread((0.5, 0.6, 0.7), row_variance=0.0025).interval()
    assert (high - low) / 2 == pytest.approx(math.hypot(0.24844, 0.098), abs=1e-4)
    # every seed two rows of a hundred ahead is no difference
    assert verdict(SeedSpread((0.02, 0.02, 0.02), row_variance=0.0004)) == "no difference shown"


# of the tables of Student's t in textbooks
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (20, 2.086), (21, 2.080), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)],
)
def test_quantiles_are_those_of_the_table(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)
    values = tuple(float(i % 2) for i in range(degrees + 1))
    low, high = SeedSpread(values).interval()
    assert high - low == pytest.approx(2 * quantile * statistics.stdev(values) / math.sqrt(degrees + 1), rel=1e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.4, 0.5, 0.45), "better"),
        ((-0.4, -0.5, -0.45), "worse"),
        # the same mean as the first, but the seeds disagree
        ((0.0, 1.0, 0.35), "no difference shown"),
        ((0.0, 0.0, 0.0), "no difference shown"),
        ((0.9,), "no difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(values, expected):
    assert verdict(SeedSpread(values)) == expected


def test_the_front_holds_what_nothing_beats():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (4.0, 0.9)]
    assert pareto_front(points) == [1, 3, 0]
    assert pareto_front([]) == []
