"""Gradient of the feedback model: through segments and memory, stopped on request, the same under checkpointing."""

import pytest
import torch

from .feedback_variants import BLOCK_SIZE, VARIANTS, WITH_MEMORY, make_feedback
from .model_tester import left_pad, random_ids


def gradient_of_the_last_block(model, num_blocks: int = 5) -> torch.Tensor:
    """The length of the gradient of the last block's loss at the embedding of every token."""
    input_ids = random_ids(1, num_blocks * BLOCK_SIZE)
    embeddings = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    logits[:, -BLOCK_SIZE:].square().sum().backward()
    return embeddings.grad[0].norm(dim=-1)


@pytest.mark.parametrize("variant", WITH_MEMORY)
def test_gradient_reaches_the_first_block_from_the_last(variant):
    gradient = gradient_of_the_last_block(make_feedback(**VARIANTS[variant]).train())
    assert (gradient > 0).all()


@pytest.mark.parametrize("variant", [*WITH_MEMORY, "no memory"])
def test_stop_gradient_ends_it_at_the_border_of_the_block(variant):
    gradient = gradient_of_the_last_block(make_feedback(**VARIANTS[variant], stop_gradient=True).train())
    assert (gradient[-BLOCK_SIZE:] > 0).all()
    assert gradient[:-BLOCK_SIZE].max() == 0


def test_without_a_memory_gradient_ends_with_the_segments():
    # four layers, each of which sees one block back
    gradient = gradient_of_the_last_block(make_feedback(feedback_length=0).train(), num_blocks=7)
    assert gradient[2 * BLOCK_SIZE] > 0
    assert gradient[: 2 * BLOCK_SIZE].max() == 0


def gradients(model, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_over_blocks_changes_no_gradient(variant):
    model = make_feedback(**VARIANTS[variant]).train()
    rows = [random_ids(1, length, length)[0] for length in (17, 10, 3)]
    input_ids, attention_mask = left_pad(rows)
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    expected = gradients(model, **inputs)
    model.gradient_checkpointing_enable()
    checkpointed = gradients(model, **inputs)
    assert expected.keys() == checkpointed.keys()
    for name, gradient in expected.items():
        assert torch.equal(gradient, checkpointed[name]), name


def test_checkpointing_keeps_one_block_of_activations():
    model = make_feedback(num_memory_segments=0).train()
    input_ids = random_ids(1, 12 * BLOCK_SIZE)

    def saved_elements() -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda x: x
        ):
            model(input_ids, use_cache=False)
        return sum(sizes)

    everything = saved_elements()
    model.gradient_checkpointing_enable()
    assert saved_elements() < everything / 4


def test_gradient_with_only_some_layers_trained_is_that_of_all():
    # frozen layers in front make keys that record no gradient, and must not be written over all the same
    model = make_feedback().train()
    inputs = {"input_ids": random_ids(2, 4 * BLOCK_SIZE + 1), "labels": random_ids(2, 4 * BLOCK_SIZE + 1)}
    expected = gradients(model, **inputs)
    model.requires_grad_(False)
    model.model.backbone.layers[-1].requires_grad_(True)
    model.gradient_checkpointing_enable()
    for name, gradient in gradients(model, **inputs).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("length", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
@pytest.mark.parametrize("variant", WITH_MEMORY)
def test_every_parameter_has_a_gradient_however_short_the_sequences(variant, length):
    # distributed training waits for all of them
    model = make_feedback(**VARIANTS[variant]).train()
    input_ids = random_ids(2, length + 1)[:, :length]
    model(input_ids, use_cache=False).logits.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_every_parameter_has_a_gradient_when_a_memory_is_given():
    model = make_feedback().train()
    given = torch.zeros(4, 2, 64)
    model(random_ids(2, 3 * BLOCK_SIZE), initial_feedback=given, use_cache=False).logits.sum().backward()
    assert model.model.feedback_embedding.weight.grad.abs().max() == 0


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(ValueError, match="`use_reentrant` must be False"):
        make_feedback().gradient_checkpointing_enable({"use_reentrant": True})


def test_checkpointing_the_backbone_by_itself_is_refused():
    model = make_feedback().train()
    model.model.backbone.gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match="layer 0 of the llama backbone neither read nor wrote slot 0"):
        model(random_ids(1, 9), use_cache=False)
