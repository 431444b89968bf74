"""Steps, cycles and answers over loops, on numbers whose result is known and on the machine."""

import pytest
import torch

from hf_loop.analysis import (
    Captured,
    CapturedCall,
    capture,
    count_flips,
    find_cycles,
    first_lasting_right,
    logit_lens,
    loop_dynamics,
    overthinking,
    path_independence,
)
from hf_loop.analysis.places import Place
from hf_loop.models.schedules import Call

from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from .constructed import chase, make_constructed, make_row, node_token


# a > b > c > d > d, and e > f > e
CHAIN = [1, 2, 3, 3, 5, 4]


def captured_of(states: list[list[float]], start: list[float] | None = None) -> Captured:
    """A pass over one token with these states after its loops."""
    place = Place(0, 0, 0, 1)

    def item(loop: int, state: list[float]) -> CapturedCall:
        return CapturedCall(Call(0, loop, loop), place, torch.tensor([[state]]))

    starts = [] if start is None else [item(0, start)]
    return Captured(loop_ends=[item(loop, state) for loop, state in enumerate(states)], loop_starts=starts)


def test_steps_by_hand():
    dynamics = loop_dynamics(captured_of([[3.0, 4.0], [3.0, 0.0], [6.0, 0.0]], start=[0.0, 4.0]))
    # steps (3, 0), (0, -4), (3, 0) from states of norm 4, 5, 3
    assert dynamics.step_norm.flatten().tolist() == pytest.approx([3 / 4, 4 / 5, 1.0])
    assert dynamics.cosine.flatten().tolist() == pytest.approx([float("nan"), 0.0, 0.0], nan_ok=True)
    assert dynamics.acceleration.flatten().tolist() == pytest.approx([float("nan"), 5.0, 5.0], nan_ok=True)
    assert dynamics.distance_to_final.flatten().tolist() == pytest.approx([5 / 6, 3 / 6, 0.0])
    # without a start, nothing is known of the first step
    dynamics = loop_dynamics(captured_of([[3.0, 4.0], [3.0, 0.0], [6.0, 0.0]]))
    assert dynamics.step_norm.flatten().tolist() == pytest.approx([float("nan"), 4 / 5, 1.0], nan_ok=True)
    assert dynamics.cosine.flatten().tolist()[:2] == pytest.approx([float("nan")] * 2, nan_ok=True)


@pytest.mark.parametrize(
    ("states", "period", "since"),
    [
        ("abcdef", 0, 0),
        ("abcccc", 1, 3),
        ("aaaaaa", 1, 1),
        ("abcbcbc", 2, 2),
        ("abcabcabc", 3, 1),
        # equal once, by chance: no period of two is seen twice
        ("abcdc", 0, 0),
        ("abcdefgabcd", 0, 0),
    ],
)
def test_periods(states, period, since):
    points = torch.randn(26, 4, generator=torch.Generator().manual_seed(0)).tolist()
    captured = captured_of([points[ord(state) - ord("a")] for state in states])
    found = find_cycles(captured)
    assert [value.item() for value in found] == [period, since]


def test_the_tolerance_is_relative():
    captured = captured_of([[100.0, 0.0], [100.0, 0.05], [100.0, 0.0], [100.0, 0.05]])
    assert find_cycles(captured, tolerance=1e-3)[0].item() == 1
    assert find_cycles(captured, tolerance=1e-4)[0].item() == 2
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        find_cycles(captured, tolerance=0.0)


def test_the_machine_reaches_its_fixed_point_or_cycle():
    captured = capture(make_constructed(num_loops=9), make_row(CHAIN, [0, 2, 3, 4]))
    periods, since = find_cycles(captured)
    # a needs three steps to d, c one; d is there and e in its cycle after the first loop; edges never change
    assert periods[0].tolist() == [1] * 7 + [1, 1, 1, 2]
    assert since[0].tolist() == [1] * 7 + [3, 1, 1, 1]
    dynamics = loop_dynamics(captured)
    assert (dynamics.step_norm[3:, 0, 7] < 1e-6).all() and (dynamics.step_norm[:3, 0, 7] > 0.5).all()
    # in a cycle of two every step undoes the one before
    torch.testing.assert_close(dynamics.cosine[1:, 0, -1], torch.full((8,), -1.0))


def test_the_first_right_loop_is_the_number_of_steps():
    model = make_constructed(num_loops=6)
    reading = logit_lens(model, capture(model, make_row(CHAIN, [0, 1, 2])))
    answers = reading.top()[0][:, 0, -3:, 0]
    assert first_lasting_right(answers == node_token(3)).tolist() == [3, 2, 1]
    assert count_flips(answers).tolist() == [2, 1, 0]
    # right in passing is not right
    cycle = logit_lens(model, capture(model, make_row(CHAIN, [4])))
    is_right = cycle.top()[0][:, 0, -1, 0] == node_token(chase(CHAIN, 4, 1)[-1])
    assert is_right.tolist() == [True, False] * 3
    assert first_lasting_right(is_right).item() == 0


def test_answers_by_hand():
    is_right = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 1]]).bool()
    assert first_lasting_right(is_right).tolist() == [3, 0, 2]
    assert count_flips(torch.tensor([[1, 5], [1, 6], [2, 5]])).tolist() == [1, 2]
    assert overthinking([0.2, 0.9, 0.7]) == pytest.approx(0.2)
    assert overthinking([0.2, 0.9]) == 0
    with pytest.raises(ValueError, match="accuracy is empty"):
        overthinking([])


def test_a_contraction_forgets_its_start_and_the_identity_does_not():
    # with the core switched off and a decaying injection, every loop halves what is left of the start
    model = tiny_looped(num_prelude_layers=1, injection="diagonal", state_init="normal", state_std=1.0, num_loops=8)
    with torch.no_grad():
        for layer in model.model.core_layers():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        injection = model.model.injection
        injection.A_log.zero_()
        injection.dt_bias.fill_(0.0)  # softplus(0) = log 2
    result = path_independence(model, random_ids(2, 5))
    ratio = result.distance[1:] * 1.0 / result.distance[:-1]
    assert result.distance[0].mean() > 0.1
    assert result.distance[-1].max() < 0.02
    assert (ratio < 0.9).all()
    with torch.no_grad():
        injection.A_log.fill_(-30.0)
        injection.B.weight.zero_()
    kept = path_independence(model, random_ids(2, 5))
    torch.testing.assert_close(kept.distance[0], kept.distance[-1], atol=1e-4, rtol=1e-4)


def test_starts_by_hand():
    model, row = make_constructed(num_loops=3), make_row(CHAIN, [0])
    # a small move of the state does not move the pointer, and the answers agree
    result = path_independence(model, row, scale=0.05, num_starts=3)
    assert result.distance.shape == (3, 1, 8)
    assert result.agreement[0, -1] == 1
    # moves of this size in random directions are sqrt(2) times as far apart
    assert result.distance[0].mean() == pytest.approx(0.05 * 2**0.5, rel=0.2)
    again = path_independence(model, row, scale=0.05, num_starts=3)
    assert torch.equal(again.distance, result.distance)
    with pytest.raises(ValueError, match="`num_starts` must be at least 2"):
        path_independence(model, row, num_starts=1)


@pytest.mark.parametrize("make", [tiny_hierarchical, lambda: make_composed("sleep", "looped")])
def test_other_families(make):
    model, input_ids = make(), random_ids(1, 9)
    captured = capture(model, input_ids)
    num_loops = len(captured.loop_states)
    assert loop_dynamics(captured).step_norm.shape == (num_loops, 1, 9)
    assert find_cycles(captured)[0].shape == (1, 9)
    assert path_independence(model, input_ids, num_starts=2).distance.shape == (num_loops, 1, 9)


def test_a_model_without_loops_is_refused():
    with pytest.raises(ValueError, match="has no loops"):
        loop_dynamics(capture(make_feedback(), random_ids(1, 5)))
