"""Gradient reaches the first window through the fast weights and stops where told; checkpointing changes none."""

import pytest
import torch

from .model_tester import random_ids
from .sleep_variants import VARIANTS, WINDOW, make_sleep


INPUT_IDS = random_ids(2, 3 * WINDOW + 2)


def gradients(model, labels=INPUT_IDS, **kwargs):
    model.zero_grad()
    model(INPUT_IDS, labels=labels, use_cache=False, **kwargs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def embedding_gradient(model, scored: slice, **kwargs):
    """How much the embedding of every token matters for the logits at `scored`, `[T]`."""
    inputs_embeds = model.get_input_embeddings()(INPUT_IDS).detach().requires_grad_()
    logits = model(inputs_embeds=inputs_embeds, use_cache=False, **kwargs).logits
    logits[:, scored].square().sum().backward()
    return inputs_embeds.grad.abs().amax((0, 2))


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return make_sleep(**VARIANTS[request.param])


@pytest.mark.parametrize("num_sleep_passes", [1, 3])
def test_gradient_reaches_the_first_window_through_the_fast_weights_alone(model, num_sleep_passes):
    """The last window's loss: keys and values were dropped, so that nothing else is left to carry it."""
    gradient = embedding_gradient(model, slice(3 * WINDOW, None), num_sleep_passes=num_sleep_passes)
    assert (gradient[: 3 * WINDOW] > 0).all()


@pytest.mark.parametrize("name", ["qwen3_5_text", "inserted", "sliding eviction, middle layers"])
@pytest.mark.parametrize(("num_windows", "first"), [(1, 3), (2, 2), (3, 1), (4, 0), (9, 0)])
def test_truncated_gradient_stops_at_a_window(name, num_windows, first):
    model = make_sleep(num_backprop_windows=num_windows, **VARIANTS[name])
    gradient = embedding_gradient(model, slice(3 * WINDOW, None))
    reached = gradient > 0
    assert reached.tolist() == [False] * (first * WINDOW) + [True] * (len(reached) - first * WINDOW)


def test_no_truncation_is_the_full_gradient(model):
    full = gradients(model)
    model.config.num_backprop_windows = 4
    same = gradients(model)
    assert all(torch.equal(same[name], full[name]) for name in full)


@pytest.mark.parametrize("num_backprop_windows", [None, 2])
def test_gradient_checkpointing_changes_no_gradient(model, num_backprop_windows):
    model.train()
    model.config.num_backprop_windows = num_backprop_windows
    plain = gradients(model, num_sleep_passes=3)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    checkpointed = gradients(model, num_sleep_passes=3)
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], atol=1e-6, rtol=1e-5)


def test_checkpointing_keeps_no_activations_of_a_window():
    """What is saved for the backward pass: a fraction of it, since windows are run again one by one."""

    def saved(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t
        ):
            model.model(INPUT_IDS, use_cache=False)
        return sum(sizes)

    model = make_sleep("qwen3_next").train()
    plain = saved(model)
    model.gradient_checkpointing_enable()
    assert saved(model) < plain / 4


def test_checkpointing_by_layers_is_refused():
    model = make_sleep("qwen3_next").train()
    with pytest.raises(ValueError, match="`use_reentrant` must be False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.model.backbone.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match="neither read nor wrote slot 0.*checkpointed by itself"):
        model(INPUT_IDS, use_cache=False)


def test_the_gradient_of_a_cached_forward_pass_is_that_of_an_uncached_one(model):
    """Training forward == inference, in the gradient too: states in the cache are values, which gradient passes."""
    expected = embedding_gradient(model, slice(None))
    inputs_embeds = model.get_input_embeddings()(INPUT_IDS).detach().requires_grad_()
    cache, logits = None, []
    for piece in inputs_embeds.split([3, 6, 5], dim=1):
        outputs = model(inputs_embeds=piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits.append(outputs.logits)
    torch.cat(logits, dim=1).square().sum().backward()
    torch.testing.assert_close(inputs_embeds.grad.abs().amax((0, 2)), expected, atol=1e-3, rtol=1e-3)


def test_an_inserted_layer_learns_from_the_start():
    """It changes nothing yet, and gets a gradient that will."""
    model = make_sleep()
    layer = model.model.memory_layers[0]
    with torch.no_grad():
        layer.o_proj.weight.zero_()
    assert gradients(model)["model.memory_layers.0.o_proj.weight"].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_finite(model, dtype):
    model.to(dtype).train()
    outputs = model(INPUT_IDS, labels=INPUT_IDS, num_sleep_passes=4, use_cache=False)
    assert outputs.logits.dtype is dtype
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
