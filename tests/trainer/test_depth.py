"""Depth sampling against plain references."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_loop.trainer.depth import DepthSchedule, StepDepth, curriculum_depth


SCHEDULES = st.builds(
    DepthSchedule,
    sampling=st.sampled_from(["fixed", "uniform", "poisson_lognormal"]),
    mean_loops=st.integers(1, 32),
    min_loops=st.integers(1, 4),
    max_loops=st.integers(4, 40),
    sigma=st.floats(0, 1),
    num_backprop_loops=st.none() | st.integers(1, 8),
    curriculum=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)


@given(schedule=SCHEDULES, step=st.integers(0, 999))
def test_depth_is_a_pure_function_of_seed_and_step(schedule, step):
    depth = schedule.depth_at(step, 1000)
    for other in (0, step // 2, 999):
        schedule.depth_at(other, 1000)
    assert schedule.depth_at(step, 1000) == depth
    assert depth.num_loops >= 1
    if schedule.sampling != "fixed":
        assert schedule.min_loops <= depth.num_loops <= schedule.max_loops


@given(schedule=SCHEDULES, step=st.integers(0, 999))
def test_backprop_is_cut_at_the_drawn_depth(schedule, step):
    depth = schedule.depth_at(step, 1000)
    if schedule.num_backprop_loops is None:
        assert depth.num_backprop_loops is None
    else:
        assert depth.num_backprop_loops == min(schedule.num_backprop_loops, depth.num_loops)


def test_global_random_states_stay_put():
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    DepthSchedule("poisson_lognormal", 4).depth_at(3, 10)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_seeds_and_steps_draw_differently():
    def draws(seed):
        return [DepthSchedule("poisson_lognormal", 8, seed=seed).depth_at(step, 100).num_loops for step in range(100)]

    assert draws(0) != draws(1)
    # neighbouring seeds must not repeat each other's draws one step later
    assert sum(a == b for a, b in zip(draws(0)[1:], draws(1)[:-1], strict=True)) < 40


@pytest.mark.parametrize("mean_loops", [1, 4, 16])
def test_poisson_lognormal_has_the_published_distribution(mean_loops):
    # Huginn's own lines: mu = log(mean) - sigma^2 / 2; rate = log_normal(mu, sigma); poisson(rate) + 1
    generator = torch.Generator().manual_seed(0)
    mu = math.log(mean_loops) - 0.5**2 / 2
    rate = torch.zeros(20_000).log_normal_(mean=mu, std=0.5, generator=generator)
    reference = torch.poisson(rate, generator=generator) + 1

    schedule = DepthSchedule("poisson_lognormal", mean_loops, seed=7)
    draws = torch.tensor([schedule.depth_at(step, 20_000).num_loops for step in range(20_000)]).float()
    assert draws.mean().item() == pytest.approx(mean_loops + 1, rel=0.03)
    assert draws.mean().item() == pytest.approx(reference.mean().item(), rel=0.04)
    assert draws.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    for quantile in (0.1, 0.5, 0.9):
        assert abs(draws.quantile(quantile) - reference.quantile(quantile)) <= 1


def test_uniform_reaches_both_bounds_equally_often():
    schedule = DepthSchedule("uniform", 6, min_loops=3, max_loops=9)
    counts = Counter(schedule.depth_at(step, 7000).num_loops for step in range(7000))
    assert sorted(counts) == list(range(3, 10))
    assert all(850 < count < 1150 for count in counts.values())


def test_fixed():
    schedule = DepthSchedule("fixed", 5, num_backprop_loops=8)
    assert {schedule.depth_at(step, 20) for step in range(20)} == {StepDepth(5, 5)}


@settings(max_examples=300)
@given(full=st.integers(1, 64), progress=st.floats(0, 1), warmup=st.floats(0.01, 1))
def test_curriculum_is_the_published_formula(full, progress, warmup):
    grown = curriculum_depth(full, progress, warmup)
    if progress < warmup:
        assert grown == max(1, math.ceil(full * (1 - math.sqrt(1 - progress / warmup))))
    else:
        assert grown == full
    assert 1 <= grown <= full


def test_curriculum_grows_over_its_share_of_the_run():
    schedule = DepthSchedule("fixed", 8, curriculum=0.75)
    depths = [schedule.depth_at(step, 100).num_loops for step in range(100)]
    assert depths[0] == 1
    assert depths == sorted(depths)
    assert depths[74] < 8 or depths[75] == 8
    assert set(depths[75:]) == {8}
    # the square root keeps most of the growth for the end of the warm-up
    assert depths[37] <= 3


def test_curriculum_of_uniform_grows_the_upper_bound():
    schedule = DepthSchedule("uniform", 6, min_loops=2, max_loops=10, curriculum=0.5)
    assert {schedule.depth_at(step, 1000).num_loops for step in range(20)} == {2}
    assert max(schedule.depth_at(step, 1000).num_loops for step in range(500, 1000)) == 10


def test_bad_calls():
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        DepthSchedule("fixed", 4).depth_at(-1, 10)
    with pytest.raises(ValueError, match="total_steps must be positive, got 0"):
        DepthSchedule("fixed", 4).depth_at(0, 0)
    with pytest.raises(ValueError, match="max_loops must be given"):
        DepthSchedule("uniform", 4)
    with pytest.raises(ValueError, match="max_loops must be at least min_loops=5, got 4"):
        DepthSchedule("poisson_lognormal", 4, min_loops=5, max_loops=4)
