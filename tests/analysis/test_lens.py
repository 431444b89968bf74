"""What a lens reads: step r of the machine after loop r, and what the model itself answers at the end."""

import pytest
import torch
from torch.nn.functional import one_hot

from hf_loop.analysis import LensReading, capture, fit_lens, logit_lens, loop_answers

from ..models import hierarchical_variants, looped_variants
from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.model_tester import left_pad, random_ids
from .constructed import NUM_NODES, chase, make_constructed, make_row, node_token


SUCCESSORS = [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("fields", [{}, {"num_core_layers": 2}, {"num_prelude_layers": 1, "num_coda_layers": 1}])
def test_the_lens_reads_step_r_after_loop_r(fields):
    model = make_constructed(num_loops=5, **fields)
    reading = logit_lens(model, capture(model, make_row(SUCCESSORS, [0, 3])))
    for column, query in ((-2, 0), (-1, 3)):
        pointers = [node_token(node) for node in chase(SUCCESSORS, query, 5)[1:]]
        tokens, probabilities = reading.top()
        assert tokens[:, 0, column, 0].tolist() == pointers
        assert (probabilities[:, 0, column] > 1 - 1e-5).all()
        # every answer is first in its own loop, and no other is
        for step, token in enumerate(pointers):
            assert (reading.rank(token)[:, 0, column] == 0).tolist() == [loop == step for loop in range(5)]
            assert reading.probability(token)[step, 0, column] > 1 - 1e-5


def test_a_layer_inside_the_loop_is_read_before_the_pointer_moves():
    model = make_constructed(num_loops=3, num_core_layers=2)
    reading = logit_lens(model, capture(model, make_row(SUCCESSORS, [2])), layer=0)
    expected = [node_token(node) for node in chase(SUCCESSORS, 2, 2)]
    assert reading.top()[0][:, 0, -1, 0].tolist() == expected


def test_rank_and_probability_by_hand():
    reading = LensReading(torch.tensor([[[[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]]]]))
    assert reading.rank(2).tolist() == [[[1, 1]]]
    assert reading.rank(torch.tensor([[0, 0]])).tolist() == [[[2, 0]]]
    share = 1 / (1 + torch.e + torch.e**2)
    torch.testing.assert_close(reading.probability(torch.tensor([[0, 1]])), torch.tensor([[[share, share]]]).float())


@pytest.mark.parametrize("name", looped_variants.VARIANTS)
def test_the_answer_after_a_loop_is_that_of_so_many_loops(name):
    model, input_ids = looped_variants.tiny_looped(**looped_variants.VARIANTS[name]), random_ids(2, 6)
    answers = loop_answers(model, input_ids, num_loops=4)
    with torch.no_grad():
        torch.testing.assert_close(answers.logits[3], model(input_ids, num_loops=4).logits)
    # without a coda the lens is the model's own readout
    if model.config.num_coda_layers == 0:
        reading = logit_lens(model, capture(model, input_ids, num_loops=4))
        torch.testing.assert_close(reading.logits, answers.logits)


@pytest.mark.parametrize("name", hierarchical_variants.VARIANTS)
def test_the_lens_of_a_cycle_is_its_answer(name):
    model = hierarchical_variants.tiny_hierarchical(**hierarchical_variants.VARIANTS[name])
    input_ids = random_ids(2, 6)
    answers = loop_answers(model, input_ids)
    with torch.no_grad():
        torch.testing.assert_close(answers.logits[-1], model(input_ids).logits)
    # without a coda the lens is the model's own readout
    if model.config.num_coda_layers == 0:
        reading = logit_lens(model, capture(model, input_ids))
        torch.testing.assert_close(reading.logits, answers.logits)


@pytest.mark.parametrize("make", [looped_variants.tiny_looped, lambda: make_composed("sleep", "looped")])
def test_the_last_positions_alone(make):
    model, input_ids = make(), random_ids(2, 9)
    captured = capture(model, input_ids)
    answers, lens = loop_answers(model, input_ids), logit_lens(model, captured)
    torch.testing.assert_close(loop_answers(model, input_ids, last=3).logits, answers.logits[:, :, -3:])
    torch.testing.assert_close(logit_lens(model, captured, last=3).logits, lens.logits[:, :, -3:])


def test_a_composed_model_answers_with_every_number_of_loops():
    model, input_ids = make_composed("feedback", "looped"), random_ids(2, 9)
    answers = loop_answers(model, input_ids)
    with torch.no_grad():
        assert torch.equal(answers.logits[0], model(input_ids, num_loops=1).logits)
        assert torch.equal(answers.logits[1], model(input_ids).logits)
    assert logit_lens(model, capture(model, input_ids)).logits.shape == answers.logits.shape


@pytest.mark.parametrize("fields", [{}, {"num_coda_layers": 1}, {"loop_norm": "final"}])
def test_the_fitted_lens_of_the_last_loop_is_the_model(fields):
    model = looped_variants.tiny_looped(**fields)
    lens = fit_lens(model, [random_ids(32, 16, seed) for seed in range(4)])
    input_ids = random_ids(4, 16, 9)
    captured = capture(model, input_ids)
    fitted, plain = lens.read(model, captured), logit_lens(model, captured)
    if not fields.get("num_coda_layers"):
        torch.testing.assert_close(fitted.logits[-1], captured.logits)

    def divergence(logits):
        target = captured.logits.log_softmax(-1)
        return float((target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean())

    # on text that it was not fitted on it is nearer to the model than the logit lens
    assert divergence(fitted.logits[0]) < 0.9 * divergence(plain.logits[0])


def test_the_fitted_lens_finds_a_map_that_is_affine():
    # every loop follows the same permutation: from the pointer after loop r to the last one is a permutation, too
    model = make_constructed(num_loops=3)
    rows = [make_row(SUCCESSORS, list(range(NUM_NODES)), seed) for seed in range(8)]
    lens = fit_lens(model, rows, ridge=1e-6)
    reading = lens.read(model, capture(model, make_row(SUCCESSORS, [4], seed=99)))
    answer = node_token(chase(SUCCESSORS, 4, 3)[-1])
    assert reading.top()[0][:, 0, -1, 0].tolist() == [answer] * 3
    pointers = lens.weights[0, :NUM_NODES, :NUM_NODES] + torch.eye(NUM_NODES)
    expected = one_hot(torch.tensor([chase(SUCCESSORS, node, 2)[-1] for node in range(NUM_NODES)])).float()
    centred = pointers - pointers.mean(dim=1, keepdim=True)
    torch.testing.assert_close(centred, expected - 1 / NUM_NODES, atol=0.05, rtol=0.0)


def test_a_lens_is_fitted_to_no_padding():
    model = looped_variants.tiny_looped(num_coda_layers=1)
    rows = [random_ids(1, length, length)[0] for length in (3, 60)]
    input_ids, attention_mask = left_pad(rows)
    padded = fit_lens(model, [{"input_ids": input_ids, "attention_mask": attention_mask}])
    alone = fit_lens(model, [row[None] for row in rows])
    torch.testing.assert_close(padded.weights, alone.weights, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(padded.biases, alone.biases, atol=1e-2, rtol=1e-2)


def test_a_lens_is_not_fitted_to_what_overflowed():
    model = looped_variants.tiny_looped()
    with torch.no_grad():
        model.model.backbone.layers[-1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="the state after loop 1 has entries that are no finite numbers"):
        fit_lens(model, [random_ids(2, 6)])


def test_refusals():
    model = make_feedback()
    with pytest.raises(ValueError, match="must have loops, got a feedback_lm model"):
        loop_answers(model, random_ids(1, 5))
    with pytest.raises(ValueError, match="has no loops"):
        logit_lens(model, capture(model, random_ids(1, 5)))
    looped = make_constructed()
    with pytest.raises(ValueError, match="must have a language-model head"):
        logit_lens(looped.model, capture(looped.model, make_row(SUCCESSORS, [0])))
    with pytest.raises(ValueError, match="batches is empty"):
        fit_lens(looped, [])
    with pytest.raises(ValueError, match="`ridge` must be positive"):
        fit_lens(looped, [make_row(SUCCESSORS, [0])], ridge=0.0)
    lens = fit_lens(looped, [make_row(SUCCESSORS, [0])], num_loops=2)
    with pytest.raises(ValueError, match="fitted for 2 loops, got 4"):
        lens.read(looped, capture(looped, make_row(SUCCESSORS, [0])))
