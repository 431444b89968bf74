"""Muon in float32, beside `torch.optim.Muon`."""

import copy

import pytest
import torch

from hf_loop.trainer.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
@pytest.mark.parametrize(
    "options", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0}]
)
def test_steps_are_those_of_torch_but_for_the_rounding(shape, options):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape))
    reference = copy.deepcopy(parameter)
    start = parameter.detach().clone()
    ours, torchs = (kind([p], lr=0.1, **options) for kind, p in ((Muon, parameter), (torch.optim.Muon, reference)))
    for _ in range(3):
        parameter.grad = torch.randn(shape)
        reference.grad = parameter.grad.clone()
        assert ours.step() is None
        torchs.step()
    change, expected = (p.detach() - start for p in (parameter, reference))
    assert (change - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(ours.state[parameter]["momentum_buffer"], torchs.state[reference]["momentum_buffer"])


def test_a_parameter_without_gradient_stays_and_a_closure_is_called():
    used, unused = torch.nn.Parameter(torch.eye(4)), torch.nn.Parameter(torch.eye(4))
    optimizer = Muon([used, unused], lr=0.1, weight_decay=0.5)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert not used.equal(torch.eye(4))
    assert unused.equal(torch.eye(4))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    result = orthogonalize(torch.randn(shape), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(result)
    assert result.dtype == torch.float32
    assert values.min() > 0.6 and values.max() < 1.3
