"""The injections on numbers whose results are known."""

import pytest
import torch

from hf_loop import LoopedConfig
from hf_loop.models.injection import make_injection


STATE = torch.tensor([[[3.0, 4.0], [0.0, -7.0]]])
ENCODED = torch.tensor([[[0.0, 2.0], [5.0, 12.0]]])


@pytest.mark.parametrize(
    ("injection", "expected"),
    [
        ("none", [[3.0, 4.0], [0.0, -7.0]]),
        ("add", [[3.0, 6.0], [5.0, 5.0]]),
        ("unit_add", [[3 / 5, 4 / 5 + 1], [5 / 13, -1 + 12 / 13]]),
        # a new one passes the input on
        ("concat", [[0.0, 2.0], [5.0, 12.0]]),
    ],
)
@torch.no_grad()
def test_what_an_injection_computes(injection, expected):
    module = make_injection(
        LoopedConfig(hidden_size=2, num_attention_heads=1, num_key_value_heads=1, injection=injection)
    )
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    torch.testing.assert_close(module(STATE, ENCODED), torch.tensor([expected]))


@torch.no_grad()
def test_directions_are_computed_in_float32():
    module = make_injection(LoopedConfig(injection="unit_add"))
    # the square of this is infinite in half precision
    state = torch.full((1, 1, 4), 1e3, dtype=torch.float16)
    assert torch.equal(module(state, torch.zeros_like(state)), torch.full_like(state, 0.5))
    # a state of zero has no direction, and its gradient is finite
    with torch.enable_grad():
        zero = torch.zeros(1, 1, 4, requires_grad=True)
        module(zero, zero).sum().backward()
    assert torch.isfinite(zero.grad).all()
