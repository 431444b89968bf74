import pytest
import torch
from datasets import Dataset

from hf_loop.evaluation import accuracy_over_loops

from .fake_model import fake_looped_model


def row(*tokens, scored):
    """A row whose last `scored` tokens carry labels."""
    labels = [-100] * (len(tokens) - scored) + list(tokens[len(tokens) - scored :])
    return {"input_ids": list(tokens), "labels": labels}


# each row counts upwards from the number of loops it requires, so a prediction is right with enough loops
ROWS = [row(1, 2, 3, scored=1), row(2, 3, 4, 5, 6, scored=2), row(4, 5, scored=1), row(8, 9, 10, 11, scored=3)]


def test_a_row_counts_when_its_last_labelled_token_is_right():
    curve = accuracy_over_loops(fake_looped_model(), ROWS, [8, 1, 2, 4], batch_size=3)
    assert curve.num_loops == [1, 2, 4, 8]
    assert curve.values == curve.sequence_accuracy == [0.25, 0.5, 0.75, 1.0]
    assert curve.metric == "accuracy"
    assert curve.trained_loops == 4.0


def test_sequence_accuracy_asks_for_every_labelled_token():
    rows = [{"input_ids": [1, 2, 7, 8], "labels": [-100, -100, 7, 8]}]  # 2 -> 3 is predicted, 7 -> 8 is right
    curve = accuracy_over_loops(fake_looped_model(), rows, [1])
    assert curve.values == [1.0]
    assert curve.sequence_accuracy == [0.0]


def test_unlabelled_tail_and_padding_do_not_count():
    rows = [{"input_ids": [1, 2, 3, 9, 9], "labels": [-100, -100, 3, -100, -100]}, row(1, 2, scored=1)]
    assert accuracy_over_loops(fake_looped_model(), rows, [1]).values == [1.0]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_batch_size_does_not_matter(batch_size):
    dataset = Dataset.from_list(ROWS)
    curve = accuracy_over_loops(fake_looped_model(), dataset, [1, 4], batch_size=batch_size)
    assert curve.values == [0.25, 0.75]


def test_the_model_keeps_its_mode():
    model = fake_looped_model().train()
    accuracy_over_loops(model, ROWS, [1])
    assert model.training
    assert not any(training for _, _, training in model.calls)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("rows", "loops", "batch_size", "message"),
    [
        ([], [1], 4, "dataset is empty"),
        (ROWS, [], 4, "loops is empty"),
        (ROWS, [0], 4, "got 0"),
        (ROWS, [True], 4, "got True"),
        (ROWS, [1], 0, "batch_size"),
        ([*ROWS, row(1, 2, scored=0)], [1], 2, "Row 4"),
        ([{"input_ids": [1, 2], "labels": [1, -100]}], [1], 4, "Row 0"),
    ],
)
def test_bad_input_gets_a_clear_error(rows, loops, batch_size, message):
    model = fake_looped_model()
    with pytest.raises(ValueError, match=message):
        accuracy_over_loops(model, rows, loops, batch_size=batch_size)
    assert model.calls == []
