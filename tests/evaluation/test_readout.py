import math

import pytest
import torch

from hf_loop.evaluation.readout import (
    AffineMap,
    fit_affine,
    fit_gains,
    fit_temperature,
    least_squares_map,
    sum_of_losses,
)


SIZE, WORDS, COUNT = 8, 6, 4000


def mean_loss(head, states, labels, temperature=1.0):
    with torch.no_grad():
        return sum_of_losses(lambda chunk: head(chunk) / temperature, states, labels) / len(labels)


@pytest.fixture
def example():
    """A head, normed states, and labels drawn with the head's own probabilities, so that it is calibrated."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WORDS, SIZE, generator=generator)
    states = torch.randn(COUNT, SIZE, generator=generator)
    labels = torch.multinomial((states @ weight.T).softmax(-1), 1, generator=generator)[:, 0]
    return (lambda chunk: chunk @ weight.T), states, labels


def test_the_loss_is_that_of_torch_over_several_chunks(example):
    head, states, labels = example
    expected = torch.nn.functional.cross_entropy(head(states) / 2, labels).item()
    assert mean_loss(head, states, labels, 2.0) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_of_logits_that_were_scaled_by_three_is_three(example):
    head, states, labels = example
    found = fit_temperature(head, states, labels)
    # of a calibrated head it is 1, up to the draw of the labels
    assert found == pytest.approx(1, abs=0.05)
    scaled = fit_temperature(lambda chunk: 3 * head(chunk), states, labels)
    assert scaled == pytest.approx(3 * found, rel=1e-4)
    # no other temperature has a lower loss
    best = mean_loss(head, states, labels, found)
    assert best <= min(mean_loss(head, states, labels, other * found) for other in (0.98, 1.02))


def test_a_temperature_without_a_minimum_is_bounded(example):
    head, states, labels = example
    always_right = fit_temperature(head, states, head(states).argmax(-1))
    says_the_opposite = fit_temperature(lambda chunk: -head(chunk), states, labels)
    assert always_right == pytest.approx(1e-3, rel=0.01)
    assert says_the_opposite == pytest.approx(1e3, rel=0.01)


def test_gains_repair_features_that_were_scaled_and_shifted(example):
    head, states, labels = example
    scale, shift = torch.linspace(0.5, 2, SIZE), torch.linspace(-1, 1, SIZE)
    broken = states * scale + shift
    fitted = fit_gains(head, broken, labels)
    assert fitted.weight.shape == (SIZE,)
    clean, raw = mean_loss(head, states, labels), mean_loss(head, broken, labels)
    repaired = mean_loss(lambda chunk: head(fitted(chunk)), broken, labels)
    assert raw > clean + 0.2
    assert repaired == pytest.approx(clean, abs=0.02)


def test_a_matrix_repairs_a_rotation_that_gains_cannot(example):
    head, states, labels = example
    rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))).Q
    broken = states @ rotation
    fitted = fit_affine(head, broken, labels, states)
    clean, raw = mean_loss(head, states, labels), mean_loss(head, broken, labels)
    repaired = mean_loss(lambda chunk: head(fitted(chunk)), broken, labels)
    by_gains = fit_gains(head, broken, labels)
    assert raw > clean + 1
    assert repaired == pytest.approx(clean, abs=0.02)
    assert mean_loss(lambda chunk: head(by_gains(chunk)), broken, labels) > clean + 0.3


def test_a_matrix_is_found_from_the_labels_where_the_targets_tell_nothing(example):
    head, states, labels = example
    broken = states * 0.3
    fitted = fit_affine(head, broken, labels, torch.zeros_like(states))
    clean, raw = mean_loss(head, states, labels), mean_loss(head, broken, labels)
    assert mean_loss(lambda chunk: head(fitted(chunk)), broken, labels) < raw - 0.5 * (raw - clean)


def test_as_many_states_as_features_do_no_harm():
    # where a map of least squares that is fitted to all states is the worst, with huge entries
    size, fitted_to = 40, 42
    generator = torch.Generator().manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    weight, states = torch.randn(WORDS, size, generator=generator), torch.randn(500, size, generator=generator)
    broken = (states + 0.5 * torch.randn(500, size, generator=generator)) @ rotation
    labels = torch.multinomial((states @ weight.T).softmax(-1), 1, generator=generator)[:, 0]

    def head(chunk):
        return chunk @ weight.T

    fitted = fit_affine(head, broken[:fitted_to], labels[:fitted_to], states[:fitted_to])
    raw = mean_loss(head, broken[fitted_to:], labels[fitted_to:])
    assert mean_loss(lambda chunk: head(fitted(chunk)), broken[fitted_to:], labels[fitted_to:]) < raw - 2


def test_least_squares_recover_an_affine_map(example):
    _, states, _ = example
    known = AffineMap(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.arange(SIZE) / 1.0)
    found = least_squares_map(states, known(states))
    torch.testing.assert_close(found.weight, known.weight, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(found.bias, known.bias, atol=5e-3, rtol=5e-3)


def test_a_readout_of_labels_without_a_pattern_does_not_learn_them_by_heart(example):
    head, states, _ = example
    labels = torch.randint(0, WORDS, (COUNT,), generator=torch.Generator().manual_seed(3))
    # a head that says next to nothing is right about labels that depend on nothing
    fitted = fit_affine(lambda chunk: 0.01 * head(chunk), states[:60], labels[:60], states[:60])
    loss = mean_loss(lambda chunk: 0.01 * head(fitted(chunk)), states[60:], labels[60:])
    assert loss == pytest.approx(math.log(WORDS), abs=0.01)


def test_a_fit_leaves_no_gradient_in_the_head_and_needs_two_tokens(example):
    _, states, labels = example
    linear = torch.nn.Linear(SIZE, WORDS)
    fit_gains(linear, states[:50], labels[:50])
    assert linear.weight.grad is None
    with pytest.raises(ValueError, match="at least 2 labelled tokens"):
        fit_gains(linear, states[:1], labels[:1])
