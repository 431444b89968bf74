"""A growing layer holds what transformers' dynamic layer holds, whatever is done to it."""

import copy
import random

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from hf_loop.models.growing_layer import ROOM, GrowingLayer


@pytest.mark.parametrize("seed", range(5))
def test_random_operations_give_the_same_tensors(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    plain, growing, batch = DynamicLayer(), GrowingLayer(), 3
    for _ in range(60):
        operation = draw.choice(["update"] * 6 + ["crop", "reorder", "repeat", "select", "reset"])
        if operation == "update" or not plain.is_initialized:
            states = torch.randn(2, batch, 2, draw.choice([1, 1, 1, 7, ROOM]), 4)
            for got, expected in zip(growing.update(*states), plain.update(*states)):
                assert torch.equal(got, expected)
        elif operation == "crop":
            removed = -draw.randint(0, max(0, plain.get_seq_length() - 1))
            plain.crop(removed), growing.crop(removed)
        elif operation == "reorder":
            order = torch.randint(0, batch, (batch,))
            plain.reorder_cache(order), growing.reorder_cache(order)
        elif operation == "repeat" and batch < 12:
            plain.batch_repeat_interleave(2), growing.batch_repeat_interleave(2)
            batch = plain.keys.shape[0]
        elif operation == "select":
            kept = torch.randperm(batch)[: max(1, batch // 2)]
            plain.batch_select_indices(kept), growing.batch_select_indices(kept)
            batch = plain.keys.shape[0] if plain.get_seq_length() else batch
        elif operation == "reset":
            plain.reset(), growing.reset()
        assert plain.get_seq_length() == growing.get_seq_length()


def test_what_was_kept_from_before_stays():
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, 2, 5, 4))
    before, copied = dict(vars(layer)), layer.keys.clone()
    first, second = torch.randn(2, 2, 1, 2, 3, 4)
    layer.update(*first)
    vars(layer).update(before)
    layer.rewind()
    keys, _ = layer.update(*second)
    assert torch.equal(keys, torch.cat([copied, second[0]], dim=-2))


def test_a_shallow_copy_goes_on_by_itself():
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, 2, 5, 4))
    other, prompt = copy.copy(layer), layer.keys.clone()
    first, second = torch.randn(2, 2, 1, 2, 3, 4)
    keys, _ = layer.update(*first)
    other.update(*second)
    assert torch.equal(keys, torch.cat([prompt, first[0]], dim=-2))


def test_gradient_flows():
    layer = GrowingLayer()
    states = torch.randn(2, 1, 2, 5, 4, requires_grad=True)
    keys, _ = layer.update(*states)
    layer.update(*torch.randn(2, 1, 2, 1, 4))
    keys.sum().backward()
    assert torch.equal(states.grad[0], torch.ones(1, 2, 5, 4))


def test_a_layer_filled_in_inference_mode_goes_on_outside():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(*torch.randn(2, 1, 2, 5, 4))
    assert layer.update(*torch.randn(2, 1, 2, 1, 4))[0].shape == (1, 2, 6, 4)
