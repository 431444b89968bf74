"""AdamATan2 against its formula."""

import math

import pytest
import torch

from hf_loop.trainer import AdamATan2


def run(gradients, **options):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = AdamATan2([parameter], **options)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach(), optimizer


def test_steps_are_the_formula():
    gradients = [[0.5, -1.0], [0.1, 3.0], [-2.0, 0.0]]
    beta1, beta2, rate, decay = 0.9, 0.95, 0.1, 0.2
    expected, mean, square = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(gradients, 1):
        for index, value in enumerate(gradient):
            mean[index] = beta1 * mean[index] + (1 - beta1) * value
            square[index] = beta2 * square[index] + (1 - beta2) * value**2
            m, v = mean[index] / (1 - beta1**step), square[index] / (1 - beta2**step)
            expected[index] = expected[index] * (1 - rate * decay) - rate * math.atan2(m, math.sqrt(v))
    actual, _ = run(gradients, lr=rate, betas=(beta1, beta2), weight_decay=decay)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    # the first step is lr * pi / 4, and nothing depends on the gradient's scale
    torch.testing.assert_close(run(gradients[:1], lr=0.1)[0][0].item(), 1.0 - 0.1 * math.pi / 4)
    scaled = [[1e-12 * value for value in gradient] for gradient in gradients]
    torch.testing.assert_close(run(scaled, lr=0.1)[0], run(gradients, lr=0.1)[0])


def test_its_state_is_saved_and_loaded():
    gradients = [[0.5, -1.0], [0.1, 3.0], [-2.0, 0.0]]
    expected, _ = run(gradients, lr=0.1)
    middle, optimizer = run(gradients[:2], lr=0.1)
    parameter = torch.nn.Parameter(middle.clone())
    other = AdamATan2([parameter], lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    parameter.grad = torch.tensor(gradients[2], dtype=torch.float64)
    other.step()
    assert torch.equal(parameter.detach(), expected)


def test_a_closure_and_parameters_without_gradient():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamATan2([used, unused], lr=0.1)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (used < 1).all() and (unused == 1).all()


@pytest.mark.parametrize("options", [{"lr": -1}, {"weight_decay": -1}, {"betas": (0.9, 1.0)}], ids=str)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdamATan2([torch.nn.Parameter(torch.ones(1))], **options)
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        AdamATan2([parameter]).step()
