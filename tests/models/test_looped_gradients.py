"""Truncated back-propagation and gradient checkpointing change what they should and nothing else."""

import pytest
import torch

from .looped_variants import VARIANTS, tiny_looped
from .model_tester import random_ids


INPUT_IDS = random_ids(2, 8)


def gradients(model, **kwargs):
    model.zero_grad()
    model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **kwargs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return tiny_looped(**VARIANTS[request.param])


@pytest.mark.parametrize(("num_loops", "num_backprop_loops"), [(4, 1), (4, 2), (5, 4)])
def test_only_the_last_loops_carry_gradient(model, num_loops, num_backprop_loops):
    outputs = model(
        INPUT_IDS, num_loops=num_loops, num_backprop_loops=num_backprop_loops, output_loop_states=True, use_cache=False
    )
    tracked = [state.requires_grad for state in outputs.loop_states]
    assert tracked == [False] * (num_loops - num_backprop_loops) + [True] * num_backprop_loops


def test_all_loops_with_gradient_is_the_full_gradient(model):
    full = gradients(model, num_loops=4)
    for num_backprop_loops in (4, 9):
        same = gradients(model, num_loops=4, num_backprop_loops=num_backprop_loops)
        assert all(torch.equal(same[name], full[name]) for name in full)


def test_truncation_changes_the_gradient_but_not_the_loss(model):
    kwargs = {"labels": INPUT_IDS, "num_loops": 4, "use_cache": False}
    assert torch.equal(model(INPUT_IDS, **kwargs).loss, model(INPUT_IDS, num_backprop_loops=1, **kwargs).loss)
    full, truncated = gradients(model, num_loops=4), gradients(model, num_loops=4, num_backprop_loops=1)
    core = f"model.backbone.layers.{model.config.num_prelude_layers}.mlp.down_proj.weight"
    assert not torch.allclose(full[core], truncated[core])


@pytest.mark.parametrize("num_loops", [1, 3])
def test_the_truncated_gradient_is_that_of_a_detached_state(num_loops):
    """By hand: run three loops, detach, and let only the rest see gradient."""
    model = tiny_looped()
    truncated = gradients(model, num_loops=3 + num_loops, num_backprop_loops=num_loops)

    model.zero_grad()
    state = model(INPUT_IDS, num_loops=3, output_loop_states=True, use_cache=False).loop_states[-1].detach()
    model(inputs_embeds=state, labels=INPUT_IDS, num_loops=num_loops, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if name != "model.backbone.embed_tokens.weight":
            torch.testing.assert_close(truncated[name], parameter.grad)


@pytest.mark.parametrize("num_backprop_loops", [None, 2])
def test_gradient_checkpointing_changes_no_gradient(model, num_backprop_loops):
    model.train()
    plain = gradients(model, num_loops=4, num_backprop_loops=num_backprop_loops)
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, num_loops=4, num_backprop_loops=num_backprop_loops)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_finite(model, dtype):
    model.to(dtype).train()
    outputs = model(INPUT_IDS, labels=INPUT_IDS, num_loops=6)
    assert outputs.logits.dtype is dtype
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
