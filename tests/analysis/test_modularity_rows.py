import json

import pytest

from hf_loop.analysis.modularity_rows import read_rows


ROWS = [{"input_ids": [1, index, 2], "labels": [-100, -100, 2], "note": "ignored"} for index in range(10)]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_last_quarter_is_for_testing(tmp_path):
    train, test = read_rows(write(tmp_path / "rows.jsonl", [*ROWS, ""]), vocab_size=10)
    assert [row["input_ids"][1] for row in train] == list(range(8))
    assert test == [{name: row[name] for name in ("input_ids", "labels")} for row in ROWS[8:]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 5: not valid JSON"),
        ([1], "line 5: input_ids must be a list of integers, got None"),
        ({"input_ids": [1, 2.5], "labels": [1, 2]}, "line 5: input_ids must be a list of integers"),
        ({"input_ids": [1, 2], "labels": []}, "line 5: labels must be a list of integers"),
        ({"input_ids": [1, -100], "labels": [1, 2]}, "line 5: input_ids has the token -100, and the vocabulary has 9"),
        ({"input_ids": [1, 2], "labels": [1, 9]}, "line 5: labels has the token 9"),
        ({"input_ids": [1, 2], "labels": [2]}, "line 5: input_ids and labels must be of one length, got 2 and 1"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "Row 4 .* no labelled token after the first"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_rows(write(tmp_path / "rows.jsonl", [*ROWS[:4], row, *ROWS[4:8]]), vocab_size=9)


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must have at least 4 rows, got 3"):
        read_rows(write(tmp_path / "rows.jsonl", ROWS[:3]), vocab_size=10)
