"""The quality of ways to decode, against definitions that are slow and plain."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_loop.evaluation.bench_quality import (
    ScriptedExits,
    decodes_in_steps,
    oracle_loops,
    score,
    score_oracle,
)
from hf_loop.evaluation.perplexity import perplexity_over_loops
from hf_loop.models import GivenExits

from ..models.looped_variants import VARIANTS, tiny_looped
from ..models.model_tester import random_ids


NUM_LOOPS = 4


def make_model(variant="prelude and coda"):
    return tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])


def test_fixed_depth_is_the_perplexity_of_a_sweep():
    model, window = make_model(), random_ids(6, 9)
    for num_loops in (1, 4):
        quality = score(model, [window], {"num_loops": num_loops})
        expected = perplexity_over_loops(model, list(window), [num_loops]).values[0]
        assert quality.perplexity == pytest.approx(expected, rel=1e-5)
        assert quality.loops == num_loops
        with torch.no_grad():
            best = model(window[:, :-1], num_loops=num_loops).logits.argmax(-1)
        assert quality.accuracy == pytest.approx((best == window[:, 1:]).float().mean().item())


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_loops": 2},
        {"exit_criterion": "state_change", "exit_threshold": 0.5},
        {"cache_policy": "window:3"},
    ],
    ids=str,
)
def test_one_pass_is_token_by_token_where_it_is_used(arguments):
    model, windows = make_model("damped"), [random_ids(3, 9), random_ids(2, 6, seed=1)]
    assert not decodes_in_steps(model, arguments)
    whole, steps = (score(model, windows, arguments, in_steps=in_steps) for in_steps in (False, True))
    assert steps.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert (steps.accuracy, steps.loops) == (whole.accuracy, whole.loops)


@pytest.mark.parametrize(
    "arguments", [{"cache_policy": "last_loop"}, {"exit_criterion": "entropy", "exit_threshold": 4.5}], ids=str
)
def test_what_one_pass_would_change_is_measured_token_by_token(arguments):
    model, windows = make_model(), [random_ids(3, 9)]
    assert decodes_in_steps(model, arguments)
    quality = score(model, windows, arguments)
    assert quality == score(model, windows, arguments, in_steps=True)
    assert quality.perplexity != score(model, windows, arguments, in_steps=False).perplexity
    # without a coda the logits of a token are its own
    rule = {"exit_criterion": "entropy"}
    assert decodes_in_steps(make_model(), rule) and not decodes_in_steps(make_model("plain"), rule)


def test_the_oracle_takes_the_fewest_loops():
    model, window = make_model(), random_ids(3, 9)
    with torch.no_grad():
        logits = torch.stack(model(window[:, :-1], output_loop_logits=True).loop_logits)
    found = oracle_loops(model, window, NUM_LOOPS), oracle_loops(model, window, NUM_LOOPS, margin=0.01)
    for row in range(3):
        for token in range(8):
            best = logits[:, row, token].argmax(-1).tolist()
            assert found[0][row, token] == 1 + next(loop for loop in range(4) if best[loop] == best[-1])
            losses = [cross_entropy(each, window[row, token + 1]).item() for each in logits[:, row, token]]
            assert found[1][row, token] == 1 + next(loop for loop in range(4) if losses[loop] <= losses[-1] + 0.01)
    assert 1 < found[0].float().mean() < NUM_LOOPS
    quality = score_oracle(model, [window], NUM_LOOPS, None)
    assert quality.loops == pytest.approx(found[0].float().mean().item())
    with torch.no_grad():
        exited = model(window[:, :-1], exit_criterion=GivenExits(found[0])).logits
    loss = cross_entropy(exited.flatten(0, 1), window[:, 1:].flatten()).item()
    assert quality.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_scripted_exits_are_given_exits_over_several_passes():
    model, window = make_model(), random_ids(3, 8)
    exit_loops = torch.randint(1, NUM_LOOPS + 1, (3, 8), generator=torch.Generator().manual_seed(0))
    rule, cache = ScriptedExits(exit_loops), None
    expected = model(window, exit_criterion=GivenExits(exit_loops)).logits
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        outputs = model(window[:, part], past_key_values=cache, use_cache=True, exit_criterion=rule)
        cache = outputs.past_key_values
        assert torch.equal(outputs.exit_loops, exit_loops[:, part])
        torch.testing.assert_close(outputs.logits, expected[:, part], atol=2e-5, rtol=1e-5)
