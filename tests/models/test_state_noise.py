"""The noise of the initial state: truncated normal, and the same in any slice."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from hf_loop.models.state_noise import (
    example_seeds,
    positions_in_example,
    random_integers,
    sine_normal,
    truncated_normal,
)

from .looped_variants import tiny_looped
from .model_tester import random_ids


def noise(seeds, positions, num_channels=16, std=1.0):
    seeds, positions = torch.tensor(seeds)[:, None], torch.tensor(positions)
    return truncated_normal(seeds, positions, num_channels, std, torch.float32)


def test_it_is_a_normal_cut_at_three_standard_deviations():
    sample = noise([3], [list(range(4000))], num_channels=64, std=0.5)
    assert sample.abs().max() <= 1.5
    # the standard deviation of a standard normal cut at 3
    cut = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
    assert abs(sample.mean()) < 5e-3
    assert abs(sample.std() - 0.5 * cut) < 5e-3
    within_one = (sample.abs() < 0.5).float().mean()
    assert abs(within_one - math.erf(1 / math.sqrt(2)) / math.erf(3 / math.sqrt(2))) < 5e-3
    # neither neighbouring positions nor channels follow each other
    assert abs((sample[0, 1:] * sample[0, :-1]).mean()) < 5e-3
    assert abs((sample[..., 1:] * sample[..., :-1]).mean()) < 5e-3


@settings(max_examples=25, deadline=None, derandomize=True)
@given(start=st.integers(0, 5000), length=st.integers(1, 20), seed=st.integers(-(2**62), 2**62))
def test_a_slice_is_the_noise_of_the_slice(start, length, seed):
    positions = list(range(start, start + length))
    whole = noise([seed], [list(range(start + length))]) if start < 200 else noise([seed], [positions])
    assert torch.equal(whole[:, -length:], noise([seed], [positions]))
    assert torch.equal(noise([seed, 1], [positions, positions])[0], noise([seed], [positions])[0])
    assert not torch.equal(noise([seed], [positions]), noise([seed + 1], [positions]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(start=st.integers(0, 5000), length=st.integers(1, 20), seed=st.integers(-(2**62), 2**62))
def test_a_slice_of_the_sine_noise_is_the_noise_of_the_slice(start, length, seed):
    positions, seeds = torch.arange(start, start + length)[None], torch.tensor([[seed]])
    made = sine_normal(seeds, positions, 16, 0.5, torch.float32, state_seed=42)
    alone = [sine_normal(seeds, positions[:, [index]], 16, 0.5, torch.float32, 42) for index in range(length)]
    assert torch.equal(made, torch.cat(alone, dim=1))
    assert not torch.equal(made, sine_normal(seeds + 1, positions, 16, 0.5, torch.float32, 42))
    assert not torch.equal(made, sine_normal(seeds, positions, 16, 0.5, torch.float32, 43))


def test_the_sine_noise_is_normal_and_has_known_phases():
    sample = sine_normal(torch.zeros(1, 1).long(), torch.arange(400)[None], 64, 0.5, torch.float32, state_seed=0)
    assert abs(sample.mean()) < 1e-2
    assert abs(sample.std() - 0.5) < 1e-2
    within_one = (sample.abs() < 0.5).float().mean()
    assert abs(within_one - math.erf(1 / math.sqrt(2))) < 1e-2
    # channel 0 at position 0 with no phase, computed in double precision: the sine's last bits change the third digit
    scaled = 43758.5453123 * math.sin(0.123457)
    assert sample[0, 0, 0].item() == pytest.approx(0.5 * NormalDist().inv_cdf(scaled % 1), abs=2e-2)
    # example 3 of a state with seed 42 has the phase of example 3 + 42 * 130363 / 104729, if that were one
    first, second = torch.tensor([[3]]), torch.tensor([[3 * 104_729 + 42 * 130_363]])
    phases = sine_normal(first, torch.arange(2)[None], 4, 1.0, torch.float32, state_seed=42)
    inverse = pow(104_729, -1, 16_777_213)
    same = sine_normal(second * inverse % 16_777_213, torch.arange(2)[None], 4, 1.0, torch.float32, state_seed=0)
    assert torch.equal(phases, same)


def test_examples_differ_in_training_and_nothing_touches_the_global_generator():
    model = tiny_looped(injection="add", state_init="normal")
    input_ids = random_ids(2, 6)
    before = torch.get_rng_state()
    model(input_ids)
    model.train()(input_ids)
    assert torch.equal(before, torch.get_rng_state())

    encoded, positions = torch.zeros(2, 6, 64), torch.arange(6)[None]
    seeds = example_seeds(input_ids, positions)
    rows = model.model.make_initial_state(encoded, positions, seeds)
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows, model.model.make_initial_state(encoded, positions, seeds))
    rows = model.model.make_initial_state(encoded, positions, None)
    assert torch.equal(rows[0], rows[1])
    same = input_ids[:1].repeat(2, 1)
    logits = {mode: model.train(mode)(same, use_cache=False).logits for mode in (True, False)}
    assert not torch.allclose(logits[True], logits[False])
    # what a cache holds meets the same noise as what comes after it, so that none is made of other noise
    cache = DynamicCache(config=model.config)
    torch.testing.assert_close(model.train()(same, cache=cache).logits, logits[False])
    assert model(same, use_cache=True).cache is None


def test_example_seeds_follow_the_tokens_and_their_order():
    seeds = example_seeds(torch.tensor([[3, 4, 5], [3, 4, 5], [4, 3, 5]]), torch.arange(3)[None])
    assert seeds[0, 0] == seeds[1, 0] != seeds[2, 0]


def test_example_seeds_follow_neither_padding_nor_other_documents_of_the_row():
    alone = example_seeds(torch.tensor([[3, 4, 5]]), torch.arange(3)[None])[0, 0]
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = torch.tensor([[0, 9, 3, 4, 5], [3, 4, 5, 9, 0]])
    assert (example_seeds(padded, positions_in_example(mask, 5), mask) == alone).all()
    packed = torch.tensor([[7, 8, 3, 4, 5, 6]])
    seeds = example_seeds(packed, torch.tensor([[0, 1, 0, 1, 2, 0]]))
    assert (seeds[0, 2:5] == alone).all()
    assert len(set(seeds[0].tolist())) == 3


def test_random_integers_are_zero_half_of_the_time_and_uniform_otherwise():
    drawn = random_integers(torch.arange(4000)[:, None], 9)[:, 0]
    counts = drawn.bincount(minlength=10)
    assert len(counts) == 10
    assert abs(counts[0] - 2200) < 150
    assert (counts[1:] - 200).abs().max() < 60
    assert (random_integers(torch.arange(50), 0) == 0).all()
