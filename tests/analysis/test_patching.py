"""An intervention on loop r changes what the machine does from then on, and nothing else."""

import pytest
import torch

from hf_loop.analysis import (
    Intervention,
    ablate,
    capture,
    effect_table,
    freeze,
    loop_answers,
    patch,
    run_patched,
    skip,
    swap,
)

from ..models import feedback_variants, looped_variants, sleep_variants
from ..models.composed_variants import PAIRS, make_composed
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.loop_lora_models import tiny_loop_lora
from ..models.model_tester import left_pad, random_ids
from .constructed import chase, make_constructed, make_row, node_token


SUCCESSORS = [1, 2, 3, 4, 5, 0]
NUM_LOOPS = 4


def pointers(model, captured):
    """The node that the last query points at after every loop."""
    logits = [model.lm_head(model.model.backbone.norm(state))[0, -1] for state in captured.loop_states]
    return [int(row.argmax()) - node_token(0) for row in logits]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loop", range(NUM_LOOPS))
def test_a_patched_loop_changes_exactly_the_later_steps(loop, layers):
    model = make_constructed(num_loops=NUM_LOOPS, num_core_layers=layers)
    # the last layer's output is the state after the loop, too
    for layer in (None, layers - 1):
        source = capture(model, make_row(SUCCESSORS, [3]))
        change = patch(source, loop, layer, positions=[7])
        with torch.no_grad():
            steps = pointers(model, capture(model, make_row(SUCCESSORS, [0]), interventions=[change]))
        own, other = chase(SUCCESSORS, 0, NUM_LOOPS)[1:], chase(SUCCESSORS, 3, NUM_LOOPS)[1:]
        assert steps == own[:loop] + other[loop:]


@pytest.mark.parametrize("loop", range(NUM_LOOPS))
def test_a_skipped_loop_delays_by_one(loop):
    model = make_constructed(num_loops=NUM_LOOPS)
    with torch.no_grad():
        steps = pointers(model, capture(model, make_row(SUCCESSORS, [0]), interventions=[skip(loop)]))
    expected = chase(SUCCESSORS, 0, NUM_LOOPS)
    assert steps == expected[1 : loop + 1] + expected[loop:-1]


def test_a_frozen_query_stops_and_others_go_on():
    model, row = make_constructed(num_loops=NUM_LOOPS), make_row(SUCCESSORS, [0, 0])
    logits = run_patched(model, row, freeze(1, positions=[8]))
    answers = (logits[0, -2:].argmax(-1) - node_token(0)).tolist()
    assert answers == [chase(SUCCESSORS, 0, NUM_LOOPS)[-1], chase(SUCCESSORS, 0, 2)[-1]]


def test_ablations():
    model, row = make_constructed(num_loops=NUM_LOOPS), make_row(SUCCESSORS, [0])
    source = capture(model, make_row(SUCCESSORS, [0, 1, 2, 3, 4, 5]))
    # nothing is left to be read: all logits are 0
    assert torch.equal(run_patched(model, row, [ablate("zero", 3)]), torch.zeros_like(run_patched(model, row, [])))
    captured = capture(model, row, interventions=[ablate("mean", 1, source=source)])
    mean = source.loop_states[1].mean(dim=(0, 1))
    torch.testing.assert_close(captured.loop_states[1], mean.expand_as(captured.loop_states[1]))
    drawn = capture(model, row, interventions=[ablate("resample", 1, source=source, seed=3)]).loop_states[1]
    known = source.loop_states[1][0]
    assert all((known == state).all(dim=-1).any() for state in drawn[0])
    again = capture(model, row, interventions=[ablate("resample", 1, source=source, seed=4)]).loop_states[1]
    assert not torch.equal(drawn, again)


@pytest.mark.parametrize("kind", ["mean", "resample"])
def test_padding_is_in_no_ablation(kind):
    model, row = looped_variants.tiny_looped(num_prelude_layers=1), random_ids(1, 6)
    rows = [random_ids(1, length, length)[0] for length in (2, 9)]
    input_ids, attention_mask = left_pad(rows)
    source = capture(model, {"input_ids": input_ids, "attention_mask": attention_mask})
    found = capture(model, row, interventions=[ablate(kind, 1, source=source)]).loop_states[1]
    known = torch.cat([capture(model, ids[None]).loop_states[1][0] for ids in rows])
    if kind == "mean":
        torch.testing.assert_close(found, known.mean(dim=0).expand_as(found), atol=1e-5, rtol=1e-4)
    else:
        assert (torch.cdist(found[0], known).min(dim=1).values < 1e-3).all()


@pytest.mark.parametrize("name", looped_variants.VARIANTS)
def test_a_skipped_loop_leaves_the_state_of_every_schedule(name):
    model, input_ids = looped_variants.tiny_looped(**looped_variants.VARIANTS[name]), random_ids(2, 6)
    captured = capture(model, input_ids, interventions=[skip(1)])
    torch.testing.assert_close(captured.loop_states[1], captured.loop_states[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(captured.loop_states[2], captured.loop_states[1])
    # the first loop and the whole run
    first = capture(model, input_ids, interventions=[skip(0)])
    torch.testing.assert_close(first.loop_states[0], first.start_state, atol=1e-6, rtol=1e-5)
    everything = capture(model, input_ids, interventions=[skip(0, remaining=True)])
    torch.testing.assert_close(everything.loop_states[2], everything.start_state, atol=1e-6, rtol=1e-5)


FAMILIES = {
    "looped": lambda: looped_variants.tiny_looped(num_prelude_layers=1, num_coda_layers=1, injection="add"),
    "damped": lambda: looped_variants.tiny_looped(loop_update="damped"),
    "normed": lambda: looped_variants.tiny_looped(loop_norm="final"),
    "hierarchical": tiny_hierarchical,
    "hierarchical, normed": lambda: tiny_hierarchical(stack_norm="final"),
    **{" over ".join(pair): (lambda pair=pair: make_composed(*pair)) for pair in PAIRS},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_patching_all_states_of_a_loop_makes_the_run_the_other(name):
    model, own, other = FAMILIES[name](), random_ids(2, 9, 1), random_ids(2, 9, 2)
    source = capture(model, other)
    last = len(source.loop_states) - 1
    patched = capture(model, own, interventions=[patch(source, last)])
    torch.testing.assert_close(patched.loop_states[last], source.loop_states[last], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(patched.loop_states[0], source.loop_states[0], atol=1e-3)
    # without layers or memory after it, the state after the last loop is all that the answer is read from
    if model.config.kind != "time" and not getattr(model.config, "num_coda_layers", 0):
        torch.testing.assert_close(patched.logits, source.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_patching_from_the_same_run_changes_nothing(name):
    model, input_ids = FAMILIES[name](), random_ids(2, 9)
    source = capture(model, input_ids)
    call = source.calls[1].call
    for change in (patch(source, 0), patch(source, 0, remaining=True), patch(source, call.loop, call.layer)):
        logits = run_patched(model, input_ids, [change])
        torch.testing.assert_close(logits, source.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [feedback_variants.make_feedback, lambda: sleep_variants.make_sleep(fast_weight_layers=[1, 2])]
)
def test_a_layer_of_a_model_over_time_is_patched_at_one_position(make):
    model, own, other = make(), random_ids(1, 10, 1), random_ids(1, 10, 2)
    source = capture(model, other)
    before = capture(model, own)
    after = capture(model, own, interventions=[patch(source, None, 1, positions=[6])])
    changed = (after.state(None, 1) != before.state(None, 1)).any(dim=-1)[0]
    # up to the end of its window, after which a sleep model reads in all layers what it has slept over
    assert changed[:8].nonzero()[:, 0].tolist() == [6]
    assert torch.equal(after.state(None, 1)[0, 6], source.state(None, 1)[0, 6])
    is_later = (after.logits != before.logits).any(dim=-1)[0]
    assert not is_later[:6].any() and is_later[6]


def test_swapped_loops_run_each_others_update():
    model, input_ids = tiny_loop_lora(num_loops=3), random_ids(2, 6)
    swapped = run_patched(model, input_ids, [swap(0, 2)])
    with torch.no_grad():
        for parameter in model.model.loop_lora.parameters():
            parameter.copy_(parameter[[2, 1, 0]])
        assert torch.equal(model(input_ids).logits, swapped)


def test_effects_of_an_edge_and_of_the_query():
    # the prompts differ in the edge that the third step follows: 2>3 or 2>0
    clean = make_row([1, 2, 3, 3, 4, 5], [0])
    corrupted = make_row([1, 2, 0, 3, 4, 5], [0])
    (edge,) = (clean != corrupted)[0].nonzero()[:, 0].tolist()
    table = effect_table(make_constructed(num_loops=3), clean, corrupted)
    expected = torch.zeros(3, clean.shape[1])
    # the edge's state after loops 0 and 1 is read by loop 2, and the query has the answer after loop 2
    expected[:2, edge], expected[2, -1] = 1, 1
    torch.testing.assert_close(table.values, expected, atol=1e-5, rtol=0.0)
    assert (table.clean_token, table.corrupted_token) == (node_token(3), node_token(0))
    assert table.clean_difference == pytest.approx(20, abs=1e-3)
    assert table.corrupted_difference == pytest.approx(-20, abs=1e-3)
    # in batches, and all remaining loops: the query is right whichever loop the patch begins at
    table = effect_table(make_constructed(num_loops=3), clean, corrupted, remaining=True, batch_size=3)
    expected[:, -1] = 1
    torch.testing.assert_close(table.values, expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: skip(9), "no layer call has loop=9"),
        (lambda: skip(0, 7), "no layer call has loop=0, layer=7"),
        (lambda: skip(0, positions=[8]), "`positions` must be from 0 to 7"),
        (lambda: skip(-1), "`loop` must be an integer of at least 0"),
        (lambda: Intervention(lambda event, state: state), "an intervention needs a loop"),
        (lambda: ablate("mean", 0), "`source` must be a captured run"),
        (lambda: ablate("median", 0), "`kind` must be zero, mean or resample"),  # ty: ignore[invalid-argument-type]
        (lambda: swap(0, 1), "with `loop_lora_rank` only"),
        (lambda: skip(0, slot=1), "`slot` tells calls of one layer apart and needs `layer`, got slot=1"),
        (lambda: skip(0, positions=torch.ones(3, 8).bool()), r"`positions` must be of shape \[1, 8\], got \[3, 8\]"),
        (lambda: skip(0, positions=[True]), r"`positions` must be from 0 to 7, got \[True\]"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        run_patched(make_constructed(), make_row(SUCCESSORS, [0]), [change()])


def test_what_cannot_be_skipped_or_compared():
    with pytest.raises(ValueError, match="cannot be skipped"):
        run_patched(tiny_hierarchical(), random_ids(1, 5), [skip(1)])
    model = make_constructed()
    with pytest.raises(ValueError, match="different answers"):
        effect_table(model, make_row(SUCCESSORS, [0]), make_row(SUCCESSORS, [0]))
    with pytest.raises(ValueError, match=r"must both be \[1, T\]"):
        effect_table(model, make_row(SUCCESSORS, [0]), make_row(SUCCESSORS, [0, 1]))
    source = capture(model, make_row(SUCCESSORS, [0]))
    with pytest.raises(ValueError, match="as many tokens, got 8, 9"):
        run_patched(model, make_row(SUCCESSORS, [0, 1]), [patch(source, 0)])
    with pytest.raises(ValueError, match="must have 1 or 1 rows, got 2"):
        run_patched(model, make_row(SUCCESSORS, [0]), [patch(capture(model, source_rows()), 0)])
    with pytest.raises(ValueError, match="has no state of"):
        run_patched(model, make_row(SUCCESSORS, [0]), [patch(source, 5)], num_loops=6)
    with pytest.raises(ValueError, match="`source` must have a state of .* was it run with fewer loops"):
        run_patched(model, make_row(SUCCESSORS, [0]), [ablate("mean", 5, source=source)], num_loops=6)


def source_rows():
    return torch.cat([make_row(SUCCESSORS, [0]), make_row(SUCCESSORS, [1])])


@pytest.mark.parametrize(
    "make", [feedback_variants.make_feedback, lambda: sleep_variants.make_sleep(fast_weight_layers=[1, 2])]
)
def test_a_model_without_loops_has_none_to_ask_of(make):
    model, input_ids = make(), random_ids(1, 5)
    with pytest.raises(ValueError, match="`num_loops` must be None for a .* model without loops, got 2"):
        capture(model, input_ids, num_loops=2)
    with pytest.raises(ValueError, match="must have loops, got a .* model without"):
        effect_table(model, input_ids, input_ids)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("num_loops", [0, 2.5, True])
def test_a_number_of_loops_must_be_one(name, num_loops):
    model, input_ids = FAMILIES[name](), random_ids(1, 5)
    for look in (capture, loop_answers):
        with pytest.raises(ValueError, match=f"`num_loops` must be an integer of at least 1, got {num_loops}"):
            look(model, input_ids, num_loops)
