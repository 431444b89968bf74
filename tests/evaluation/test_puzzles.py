"""Measurements of puzzle models, on records made by hand and on a model."""

import pytest
import torch

from hf_loop.evaluation import failure_checks, halting_quality, record_segments, segment_accuracy, with_one_blank
from hf_loop.evaluation.puzzles import SegmentRecord
from hf_loop.models.puzzle_inputs import pad_puzzles

from ..models.puzzle_variants import puzzles, tiny_puzzle_model


def record(solved, changed=None, halts=None, confidence=None):
    def as_bools(rows):
        return torch.tensor([[mark == "x" for mark in row] for row in rows])

    none = ["." * len(solved[0])] * len(solved)
    return SegmentRecord(
        as_bools(solved), as_bools(solved).float(), as_bools(changed or none), as_bools(halts or none), confidence
    )


def test_failure_checks_by_hand():
    # solved for good; solved and lost; lost and found again; never, still moving; never, settled on a wrong answer
    checks = failure_checks(
        record(
            [".xxxxxxx", ".x......", "x..xxxxx", "........", "........"],
            ["xx......", "xxx.....", "xxxx....", "xxxxxxx.", "xxx....."],
        )
    )
    assert checks.to_dict() == pytest.approx(
        {
            "num_rows": 5,
            "num_segments": 8,
            "exact_accuracy": 0.4,
            "ever_solved": 0.6,
            "stays_solved": 1 / 3,
            "wrong_fixed_points": 0.4,
        }
    )
    assert failure_checks(record(["...."])).stays_solved is None


def test_halting_quality_by_hand():
    made = record(["..xx", "x...", ".x..", "...."], halts=["...x", "x...", "x...", "...."])
    quality = halting_quality(made, [3, 3, 5, 5], 4)
    assert (quality.exact_accuracy, quality.halted_accuracy, quality.accuracy_lost) == (0.25, 0.5, -0.25)
    assert (quality.oracle_accuracy, quality.mean_segments) == (0.75, 2.5)
    assert quality.segments_by_difficulty == {"3": (2.5, 1.0, 2), "5": (2.5, 0.0, 2)}
    assert quality.calibration_error is None and quality.calibration == []
    # a row is read after the last segment where nothing halts it
    assert halting_quality(made, [0] * 4, 2).mean_segments == 1.5
    with pytest.raises(ValueError, match="max_segments must lie between 1 and 4, got 5"):
        halting_quality(made, [0] * 4, 5)
    with pytest.raises(ValueError, match="a number for each of 4 rows, got 3"):
        halting_quality(made, [0] * 3, 4)


def test_many_difficulties_are_taken_together():
    # fourteen numbers, so a range has at least 24 / 12 rows, but for the rest at the end
    numbers = [0] * 11 + list(range(1, 14))
    made = record(["x"] * len(numbers), halts=["x"] * len(numbers))
    groups = halting_quality(made, numbers, 1).segments_by_difficulty
    pairs = {f"{low}-{low + 1}": 2 for low in range(1, 13, 2)}
    assert {name: rows for name, (_, _, rows) in groups.items()} == {"0": 11, **pairs, "13": 1}
    # twelve or fewer stay by themselves, however few rows one has
    groups = halting_quality(made, [min(number, 11) for number in numbers], 1).segments_by_difficulty
    assert list(groups) == [str(number) for number in range(12)]


def test_calibration_by_hand():
    confidence = torch.tensor([[0.05, 0.95], [0.05, 0.95], [0.05, 0.95], [0.05, 0.95]])
    sure = halting_quality(record([".x", ".x", ".x", ".x"], confidence=confidence), [0] * 4, 2)
    assert sure.calibration_error == pytest.approx(0.05)
    wrong = halting_quality(record(["..", "..", ".x", ".x"], confidence=confidence), [0] * 4, 2)
    assert wrong.calibration_error == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    low, high = wrong.calibration
    assert low == pytest.approx((0.05, 0, 4)) and high == pytest.approx((0.95, 0.5, 4))


@pytest.mark.parametrize("name", ["trm", "hrm", "plain"])
def test_a_record_is_what_the_model_says(name):
    model = tiny_puzzle_model(name).train()
    inputs = puzzles(5)
    with torch.no_grad():
        outputs = model.eval()(inputs, num_segments=4, output_segments=True)
        model.train()
    tokens = [logits.argmax(-1) for logits in outputs.segment_logits]
    labels = tokens[2].clone()
    labels[1, 0] = -100
    labels[2, 3] = (labels[2, 3] + 1) % 6
    made = record_segments(model, inputs, labels, 4, batch_size=2)
    assert model.training
    for index, said in enumerate(tokens):
        is_right = (said == labels) | (labels == -100)
        assert torch.equal(made.solved[:, index], is_right.all(1))
        if index:
            assert torch.equal(made.changed[:, index], (said != tokens[index - 1]).any(1))
    assert made.solved[:, 2].tolist() == [True, True, False, True, True]
    assert made.cells[2, 2] == pytest.approx(8 / 9)
    assert made.changed[:, 0].all()
    assert (made.confidence is None) == (name == "plain")
    curve = segment_accuracy(made, [1, 3])
    assert curve[3] == pytest.approx((0.8, (4 + 8 / 9) / 5))
    assert list(curve) == [1, 3]
    with pytest.raises(ValueError, match=r"segments must lie between 1 and 4, got \[5\]"):
        segment_accuracy(made, [5])
    with pytest.raises(ValueError, match="input_ids is empty"):
        record_segments(model, inputs[:0], labels[:0], 4)


def test_one_blank_is_left_out():
    inputs, labels = puzzles(6), puzzles(6, seed=1) + 1
    inputs[0] = 4
    easy, answers = with_one_blank(inputs, labels)
    kept = [row for row in range(6) if (inputs[row] == 1).any()]
    assert torch.equal(answers, labels[kept])
    for row, (puzzle, answer) in enumerate(zip(easy, answers)):
        (cell,) = (puzzle == 1).nonzero()
        assert inputs[kept[row], cell] == 1
        assert (puzzle != answer).sum() == 1
    with pytest.raises(ValueError, match="no row has a cell with the token 99"):
        with_one_blank(inputs, labels, blank=99)


def test_puzzles_of_several_sizes_are_measured_as_alone():
    model = tiny_puzzle_model("trm", low_cycles=2).double()
    rows = [puzzles(1, seed, size)[0] for seed, size in enumerate((4, 9))]
    answers = [model.solve(row, num_segments=2).tokens for row in rows]
    cells, mask = pad_puzzles(rows)
    labels, _ = pad_puzzles(answers, -100)
    made = record_segments(model, cells, labels, 2, attention_mask=mask)
    assert made.solved[:, 1].all()
    for index, (row, answer) in enumerate(zip(rows, answers)):
        alone = record_segments(model, row[None], answer[None], 2)
        assert torch.equal(made.changed[index], alone.changed[0])
        torch.testing.assert_close(made.cells[index], alone.cells[0])
