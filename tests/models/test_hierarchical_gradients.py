"""Which stack calls carry gradient, against back-propagation through the schedule written out."""

import pytest
import torch
from torch import nn

from .hierarchical_variants import VARIANTS, reference_logits, tiny_hierarchical
from .model_tester import random_ids


INPUT_IDS = random_ids(2, 8)
# (slow cycle, call in it) at two fast calls, 0 and 1, and a slow one, 2, in each of three cycles
ALL_CALLS = {(cycle, call) for cycle in range(3) for call in range(3)}
CARRYING = {
    "full": ({"injection": "none"}, ALL_CALLS),
    "last_cycle": ({"injection": "add", "gradient": "last_cycle"}, {(2, 0), (2, 1), (2, 2)}),
    "one_step": ({"injection": "add", "gradient": "one_step"}, {(2, 1), (2, 2)}),
    # the prelude gets gradient through the injection of the last cycle
    "last_cycle, between other layers": (VARIANTS["outer layers and final norm"], {(2, 0), (2, 1), (2, 2)}),
    "last_k of the last cycle": (
        {"gradient": "last_k", "backprop_low_cycles": [2]},
        {(0, 1), (0, 2), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)},
    ),
    "last_k of two cycles": (
        {"gradient": "last_k", "backprop_low_cycles": [0, 5]},
        {(0, 1), (0, 2), (1, 2), (2, 0), (2, 1), (2, 2)},
    ),
}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return named


def trained(model, **kwargs) -> dict[str, torch.Tensor]:
    model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **kwargs).loss.backward()
    return gradients(model)


def reference(model, detached) -> dict[str, torch.Tensor]:
    logits = reference_logits(model, INPUT_IDS, model.config.num_loops, detached)
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), INPUT_IDS[:, 1:].flatten()).backward()
    return gradients(model)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CARRYING)
def test_gradient_passes_the_calls_it_should_and_no_other(name):
    schedule, carrying = CARRYING[name]
    model = tiny_hierarchical(**schedule)
    actual = trained(model)
    assert_same(actual, reference(model, ALL_CALLS - carrying))
    if carrying != ALL_CALLS:
        full = reference(model, ())
        fast_layer = "model.backbone.layers.0.mlp.down_proj.weight"
        assert not torch.allclose(actual[fast_layer], full[fast_layer], rtol=1e-2)


def test_truncation_by_argument_cuts_whole_cycles():
    model = tiny_hierarchical()
    assert_same(trained(model, num_backprop_loops=1), reference(model, {call for call in ALL_CALLS if call[0] < 2}))
    for num_backprop_loops in (3, 9):
        full = trained(model)
        truncated = trained(model, num_backprop_loops=num_backprop_loops)
        assert all(torch.equal(truncated[name], full[name]) for name in full)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_checkpointing_changes_no_gradient(name):
    model = tiny_hierarchical(**VARIANTS[name]).train()
    plain = trained(model)
    model.gradient_checkpointing_enable()
    assert_same(trained(model), plain)


@pytest.mark.parametrize("name", VARIANTS)
def test_low_precision_stays_finite(name):
    model = tiny_hierarchical(**VARIANTS[name]).to(torch.bfloat16).train()
    outputs = model(INPUT_IDS, labels=INPUT_IDS, num_loops=6)
    assert outputs.logits.dtype is torch.bfloat16
    outputs.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
