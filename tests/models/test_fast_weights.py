"""Every fast-weight rule: its chunked form against its token-by-token twin, and against the rule written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_loop.models.fast_weights import (
    DECAYING_RULES,
    FAST_WEIGHT_RULES,
    chunked_fast_weights,
    fast_weights,
    l2_normalize,
    recurrent_fast_weights,
)


EXACT = {"atol": 1e-5, "rtol": 1e-5}


def tokens(rule: str, length: int, batch_size: int = 2, seed: int = 0, dtype=torch.float32) -> dict:
    """Arguments of a rule: 3 heads, 8 key channels, 5 value channels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(batch_size, length, 3, *shape, generator=generator, dtype=dtype)

    v = normal(5)
    arguments = {"q": l2_normalize(normal(8)), "k": l2_normalize(normal(8)), "b": normal().sigmoid()}
    arguments["v"] = l2_normalize(v) if rule == "oja" else v
    if rule in DECAYING_RULES:
        arguments["g"] = -torch.nn.functional.softplus(normal() - 2)
    return arguments


def initial_state(batch_size: int = 2) -> torch.Tensor:
    return torch.randn(batch_size, 3, 8, 5, generator=torch.Generator().manual_seed(7))


def split(arguments: dict, start: int, end: int | None) -> dict:
    return {name: tensor[:, start:end] for name, tensor in arguments.items()}


@pytest.fixture(params=FAST_WEIGHT_RULES)
def rule(request):
    return request.param


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 40),
    chunk_size=st.integers(1, 17),
    has_state=st.booleans(),
    rule=st.sampled_from(FAST_WEIGHT_RULES),
)
def test_chunked_equals_token_by_token(length, chunk_size, has_state, rule):
    arguments = tokens(rule, length, seed=length)
    state = initial_state() if has_state else None
    expected = recurrent_fast_weights(rule, **arguments, state=state)
    actual = chunked_fast_weights(rule, **arguments, state=state, chunk_size=chunk_size)
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_the_default_chunks_equal_token_by_token(rule, length):
    arguments = tokens(rule, length)
    expected = recurrent_fast_weights(rule, **arguments, state=initial_state())
    torch.testing.assert_close(fast_weights(rule, **arguments, state=initial_state()), expected, **EXACT)


@pytest.mark.parametrize("form", [recurrent_fast_weights, chunked_fast_weights, fast_weights])
def test_a_sequence_may_be_cut_anywhere(rule, form):
    arguments = tokens(rule, 23)
    whole, last = form(rule, **arguments, state=initial_state())
    first, state = form(rule, **split(arguments, 0, 9), state=initial_state())
    second, state = form(rule, **split(arguments, 9, None), state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, **EXACT)
    torch.testing.assert_close(state, last, **EXACT)


@pytest.mark.parametrize("form", [recurrent_fast_weights, chunked_fast_weights, fast_weights])
def test_masked_tokens_leave_no_trace(rule, form):
    arguments = tokens(rule, 11)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0], [1] * 11])
    reads, state = form(rule, **arguments, state=initial_state(), mask=mask)
    kept = mask[0].bool()
    alone = {name: tensor[:1, kept] for name, tensor in arguments.items()}
    expected, expected_state = form(rule, **alone, state=initial_state()[:1])
    torch.testing.assert_close(reads[:1, kept], expected, **EXACT)
    torch.testing.assert_close(state[:1], expected_state, **EXACT)


def test_one_token_is_the_rule_written_out(rule):
    arguments, S = tokens(rule, 1, batch_size=1), initial_state(1)
    reads, state = recurrent_fast_weights(rule, **arguments, state=S)
    for head in range(3):
        q, k, v = (arguments[name][0, 0, head] for name in "qkv")
        b = arguments["b"][0, 0, head]
        before = S[0, head] * (arguments["g"][0, 0, head].exp() if rule in DECAYING_RULES else 1)
        change = {
            "hebbian": torch.outer(k, v),
            "delta": torch.outer(k, v - before.T @ k),
            "gated_delta": torch.outer(k, v - before.T @ k),
            "oja": torch.outer(k - before @ v, v),
        }[rule]
        torch.testing.assert_close(state[0, head], before + b * change, **EXACT)
        torch.testing.assert_close(reads[0, 0, head], (before + b * change).T @ q / 8**0.5, **EXACT)


def test_the_delta_rule_replaces_and_the_hebbian_adds():
    """Writing twice under one key with full strength: the second value alone is read, or the sum of both."""
    k = l2_normalize(torch.ones(1, 2, 1, 4))
    v = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    for rule, expected in (("delta", [0.0, 1.0]), ("hebbian", [1.0, 1.0])):
        reads, _ = fast_weights(rule, k, k, v, torch.ones(1, 2, 1))
        torch.testing.assert_close(reads[0, 1, 0] * 2, torch.tensor(expected), atol=1e-5, rtol=0)


def test_gradients_of_the_two_forms_agree(rule):
    gradients = []
    for form in (recurrent_fast_weights, chunked_fast_weights):
        arguments = {name: tensor.requires_grad_() for name, tensor in tokens(rule, 19).items()}
        state = initial_state().requires_grad_()
        reads, last = form(rule, **arguments, state=state)
        (reads.square().sum() + last.square().sum()).backward()
        gradients.append([tensor.grad for tensor in (*arguments.values(), state)])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_strong_decay_stays_finite():
    arguments = tokens("gated_delta", 130)
    arguments["g"] = arguments["g"] - 50
    arguments = {name: tensor.requires_grad_() for name, tensor in arguments.items()}
    reads, state = fast_weights("gated_delta", **arguments, state=initial_state())
    (reads.sum() + state.sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in arguments.values())


def test_low_precision_keeps_the_memory_in_float32(rule):
    arguments = tokens(rule, 70, dtype=torch.bfloat16)
    reads, state = fast_weights(rule, **arguments)
    assert (reads.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_wrong_rules_are_refused():
    arguments = tokens("gated_delta", 3)
    with pytest.raises(ValueError, match="`rule` must be one of .* got 'momentum'"):
        fast_weights("momentum", **arguments)
    for rule in ("delta", "oja"):
        with pytest.raises(ValueError, match="`g` must be None"):
            fast_weights(rule, **arguments)
