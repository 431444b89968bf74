"""Every state has its address: by loop and layer they are what the model itself returns, in all families."""

from collections import Counter

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_loop.analysis import capture

from ..models import feedback_variants, hierarchical_variants, looped_variants, puzzle_variants, sleep_variants
from ..models.composed_variants import PAIRS, make_composed
from ..models.model_tester import left_pad, random_ids
from ..models.tiny_backbones import tiny_backbone


def all_families():
    for name, fields in looped_variants.VARIANTS.items():
        yield f"looped, {name}", lambda fields=fields: looped_variants.tiny_looped(**fields)
    for name, fields in hierarchical_variants.VARIANTS.items():
        yield f"hierarchical, {name}", lambda fields=fields: hierarchical_variants.tiny_hierarchical(**fields)
    for name, fields in feedback_variants.VARIANTS.items():
        yield f"feedback, {name}", lambda fields=fields: feedback_variants.make_feedback(**fields)
    for name in ("olmo_hybrid", "inserted", "sliding eviction, middle layers"):
        yield f"sleep, {name}", lambda name=name: sleep_variants.make_sleep(**sleep_variants.VARIANTS[name])
    for pair in PAIRS:
        yield " over ".join(pair), lambda pair=pair: make_composed(*pair)


FAMILIES = dict(all_families())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_states_are_those_that_the_model_returns(name):
    model, input_ids = FAMILIES[name](), random_ids(2, 10)
    captured = capture(model, input_ids)
    with torch.no_grad():
        expected = model(input_ids, use_cache=False, output_hidden_states=True)
    assert torch.equal(captured.logits, expected.logits)
    # between two loops may be an injection or a norm: compare where the next layer gets what the last one gave
    calls = model.config.calls()
    assert len(expected.hidden_states) == len(calls) + 1
    compared = 0
    for call, follows, state in zip(calls, calls[1:], expected.hidden_states[1:]):
        is_inside = model.config.kind == "time" or (call.loop, call.layer + 1) == (follows.loop, follows.layer)
        if is_inside:
            assert torch.equal(captured.state(call.loop, call.layer, call.slot), state)
            compared += 1
    assert compared >= 3
    # every call once at every place
    addresses = Counter((item.call, item.place) for item in captured.calls)
    assert {call for call, _ in addresses} == set(calls)
    assert set(addresses.values()) == {1}
    assert all(item.state.shape[:2] == (2, item.place.num_tokens) for item in captured.calls)


@pytest.mark.parametrize("name", looped_variants.VARIANTS)
@pytest.mark.parametrize("num_loops", [1, 5])
def test_the_state_after_every_loop(name, num_loops):
    model, input_ids = looped_variants.tiny_looped(**looped_variants.VARIANTS[name]), random_ids(2, 7)
    captured = capture(model, input_ids, num_loops=num_loops)
    with torch.no_grad():
        expected = model.model(input_ids, num_loops=num_loops, output_loop_states=True).loop_states
    assert len(captured.loop_states) == num_loops
    for state, known in zip(captured.loop_states, expected):
        assert torch.equal(state, known)


@pytest.mark.parametrize("name", hierarchical_variants.VARIANTS)
def test_the_slow_state_after_every_cycle_is_the_answer_of_so_many_cycles(name):
    model = hierarchical_variants.tiny_hierarchical(**hierarchical_variants.VARIANTS[name])
    input_ids = random_ids(2, 7)
    captured = capture(model, input_ids)
    for cycle, state in enumerate(captured.loop_states):
        with torch.no_grad():
            expected = model.model(input_ids, num_loops=cycle + 1).last_hidden_state
            backbone, num_coda = model.model.backbone, model.config.num_coda_layers
            for layer in list(backbone.layers)[4 - num_coda :] if num_coda else ():
                state = layer(state, position_embeddings=backbone.rotary_emb(state, torch.arange(7)[None]))
            is_normed = model.config.stack_norm == "final" and not num_coda
            finished = state if is_normed else backbone.norm(state)
        torch.testing.assert_close(finished, expected)


@pytest.mark.parametrize("name", ["hrm", "trm", "urm"])
def test_a_segment_of_a_puzzle_model_ends_with_the_carry(name):
    model, cells = puzzle_variants.tiny_puzzle_model(name), puzzle_variants.puzzles()
    captured = capture(model, cells)
    with torch.no_grad():
        expected = model.model(cells).carry.high
    assert len(captured.loop_states) == model.config.num_loops
    assert torch.equal(captured.loop_states[-1], expected)


def test_a_model_of_no_family_is_refused():
    plain = LlamaForCausalLM(tiny_backbone("llama"))
    with pytest.raises(ValueError, match="must be of a family of hf_loop, got LlamaForCausalLM"):
        capture(plain, random_ids(1, 5))


def test_the_start_state():
    model, input_ids = looped_variants.tiny_looped(num_prelude_layers=1), random_ids(2, 7)
    captured = capture(model, input_ids)
    assert torch.equal(captured.start_state, captured.state(None, 0))


def test_a_sleep_model_runs_windows_again():
    model = sleep_variants.make_sleep(**sleep_variants.VARIANTS["sliding eviction, middle layers"], num_sleep_passes=3)
    captured = capture(model, random_ids(1, 10))
    # three windows, the last is not slept over; layers 1 and 2 run twice more, layer 3 once more
    times = Counter((item.call.layer, item.place.window) for item in captured.calls)
    assert [[times[layer, window] for window in range(3)] for layer in range(4)] == [
        [1, 1, 1], [3, 3, 1], [3, 3, 1], [2, 2, 1],
    ]  # fmt: skip


def test_rows_of_memory_are_kept_apart():
    model = feedback_variants.make_feedback()
    captured = capture(model, random_ids(2, 6))
    assert [item.memory.shape[1] for item in captured.calls if item.call.layer == 0] == [2, 2]


def test_a_padded_row_of_a_looped_model_is_the_row_alone():
    model = looped_variants.tiny_looped()
    rows = [random_ids(1, length, length)[0] for length in (4, 7)]
    input_ids, attention_mask = left_pad(rows)
    captured = capture(model, {"input_ids": input_ids, "attention_mask": attention_mask})
    alone = capture(model, rows[0][None])
    torch.testing.assert_close(captured.state(2, 3)[:1, -4:], alone.state(2, 3), atol=1e-5, rtol=1e-5)


def test_an_address_must_be_one_call():
    captured = capture(hierarchical_variants.tiny_hierarchical(), random_ids(1, 5))
    with pytest.raises(ValueError, match="layer 0 in loop 1 must be one call, got slots 6, 8"):
        captured.state(1, 0)
    with pytest.raises(ValueError, match="layer 0 in loop 9 must be one call, got no such call"):
        captured.state(9, 0)


def test_a_time_schedule_takes_no_padding():
    input_ids, attention_mask = left_pad([random_ids(1, length)[0] for length in (4, 7)])
    with pytest.raises(ValueError, match="must have no padding for a feedback_lm"):
        capture(feedback_variants.make_feedback(), {"input_ids": input_ids, "attention_mask": attention_mask})
