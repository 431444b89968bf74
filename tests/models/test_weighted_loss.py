"""The weighted loss against transformers' own and against a loop over tokens."""

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_loop.models.weighted_loss import weighted_causal_lm_loss


VOCAB_SIZE = 11


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, VOCAB_SIZE, generator=generator)
    labels = torch.randint(0, VOCAB_SIZE, (3, 7), generator=generator)
    labels[torch.rand(3, 7, generator=generator) < 0.4] = -100
    return logits, labels, torch.rand(3, 7, generator=generator)


@pytest.mark.parametrize("num_items_in_batch", [None, 5, torch.tensor(9)])
def test_with_weights_of_one_it_is_the_loss_of_transformers(batch, num_items_in_batch):
    logits, labels, _ = batch
    loss = weighted_causal_lm_loss(logits, labels, torch.ones(3, 7), VOCAB_SIZE, num_items_in_batch)
    torch.testing.assert_close(loss, ForCausalLMLoss(logits, labels, VOCAB_SIZE, num_items_in_batch))


@pytest.mark.parametrize("num_items_in_batch", [None, 5])
def test_a_weight_belongs_to_the_label_of_its_own_position(batch, num_items_in_batch):
    logits, labels, weights = batch
    total, count = 0.0, 0
    for row in range(3):
        for position in range(1, 7):
            if labels[row, position] != -100:
                log_probabilities = logits[row, position - 1].log_softmax(-1)
                total -= weights[row, position] * log_probabilities[labels[row, position]]
                count += 1
    loss = weighted_causal_lm_loss(logits, labels, weights, VOCAB_SIZE, num_items_in_batch)
    torch.testing.assert_close(loss, total / (num_items_in_batch or count))


def test_labels_that_are_shifted_already(batch):
    logits, labels, weights = batch
    shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    expected = weighted_causal_lm_loss(logits, labels, weights, VOCAB_SIZE)
    loss = weighted_causal_lm_loss(logits, labels, weights, VOCAB_SIZE, shift_labels=shift_labels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_what_is_not_scored_gets_no_gradient(batch):
    logits, labels, weights = batch
    logits.requires_grad_()
    weights[labels == -100] = float("inf")
    weighted_causal_lm_loss(logits, labels, weights, VOCAB_SIZE).backward()
    shift_labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    assert logits.grad[shift_labels == -100].abs().max() == 0
    assert logits.grad[shift_labels != -100].abs().sum(-1).min() > 0


def test_parts_of_a_batch_add_up_to_it(batch):
    logits, labels, weights = batch
    count = (labels[:, 1:] != -100).sum()
    parts = [weighted_causal_lm_loss(*(part[row : row + 1] for part in batch), VOCAB_SIZE, count) for row in range(3)]
    torch.testing.assert_close(sum(parts), weighted_causal_lm_loss(logits, labels, weights, VOCAB_SIZE, count))


def test_weights_of_another_shape_are_refused(batch):
    logits, labels, weights = batch
    with pytest.raises(ValueError, match=r"`loss_weights` must have the shape of `labels` \[3, 7\], got \[3, 6\]"):
        weighted_causal_lm_loss(logits, labels, weights[:, 1:], VOCAB_SIZE)
