"""The injections on numbers whose results are known."""

import math

import pytest
import torch

from hf_loop import LoopedConfig
from hf_loop.models.injection import MessageInjection, make_injection


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
def test_decays_by_hand():
    made = {}
    for injection in ("diagonal", "orthogonal"):
        fields = {"injection": injection, "injection_norm": False, "hidden_size": 2}
        module = make_injection(LoopedConfig(num_attention_heads=1, num_key_value_heads=1, **fields))
        # half of the state stays, and the update is half of the input with its channels swapped
        module.dt_bias.fill_(math.log(math.expm1(0.5)))
        module.A_log.fill_(math.log(math.log(2) / 0.5))
        module.B.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        made[injection] = module
    updates = torch.tensor([[[1.0, 0.0], [6.0, 2.5]]])
    torch.testing.assert_close(made["diagonal"](STATE, ENCODED), STATE / 2 + updates)
    # (1.5, 2) without its part along (1, 0); (0, -3.5) without its part along (6, 2.5), which is -8.75 / 42.25 of it
    rest = torch.tensor([[[0.0, 2.0], [6 * 8.75 / 42.25, -3.5 + 2.5 * 8.75 / 42.25]]])
    torch.testing.assert_close(made["orthogonal"](STATE, ENCODED), rest + updates, atol=1e-5, rtol=1e-5)
    # nothing to be orthogonal to
    assert torch.equal(made["orthogonal"](STATE, 0 * ENCODED), made["diagonal"](STATE, 0 * ENCODED))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"injection": "concat", "injection_norm": False}, "`injection_norm=False` needs `injection` 'diagonal' or"),
        ({"injection": "diagonal", "injection_bias": True}, "`injection_bias` needs `injection='concat'`"),
        ({"injection": "add", "state_init": "normal", "state_seed": 3}, "`state_seed` needs `state_init='sine_nor"),
    ],
)
def test_fields_that_do_not_fit_the_injection_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoopedConfig(**fields)


@torch.no_grad()
def test_what_is_left_for_messages():
    module = MessageInjection(LoopedConfig(hidden_size=2, num_attention_heads=1, num_key_value_heads=1))
    hidden, before, first, later = torch.arange(8.0).view(4, 1, 1, 2).unbind(0)
    encoded = torch.cat([hidden + 10, before], dim=-1)
    # the state before the first loop is the prelude's output
    assert torch.equal(module(encoded, encoded), encoded)
    # a loop starts again: its first block state is the prelude's, and no message
    state = torch.cat([hidden, before, first, later], dim=-1)
    assert torch.equal(module(state, encoded), torch.cat([encoded, later, hidden], dim=-1))


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
