import time
from collections import Counter

import numpy as np
import pytest

from hf_loop.tasks.rows import TaskRow, is_test_content, task_dataset, task_splits
from hf_loop.tasks.tokenizer import word_tokenizer


TOKENIZER = word_tokenizer(["0", "1", "?", "even", "odd"])


def draw_bits(difficulty, rng):
    bits = [rng.choice("01") for _ in range(difficulty)]
    return TaskRow([*bits, "?"], ["odd" if bits.count("1") % 2 else "even"])


def splits_of_bits(num_train=40, num_test=12, difficulty=12, **options):
    return task_splits(draw_bits, TOKENIZER, num_train, num_test, difficulty, **{"min_difficulty": 9} | options)


def ids(*words):
    return [-100 if word is None else TOKENIZER.convert_tokens_to_ids(word) for word in words]


def test_a_row_asks_for_its_answer_word_by_word():
    rows = task_dataset([TaskRow(["0", "?"], ["even", "odd"], thoughts=["1"], columns={"width": 7})], [3], TOKENIZER)
    assert rows.to_list() == [
        {
            "prompt": "0 ?",
            "answer": "even odd",
            "input_ids": ids("<bos>", "0", "?", "even", "odd"),
            "labels": ids(None, None, None, "even", "odd"),
            "difficulty": 3,
            "thoughts": "1",
            "width": 7,
        }
    ]


def test_a_row_that_asks_in_the_prompt_tells_the_last_answer_alone():
    # at <bos> nothing is asked, at 0 the first word of the answer, at ? the second
    row = task_dataset([TaskRow(["0", "?"], ["even", "odd"], asked=[None, "even", "odd"])], [1], TOKENIZER)[0]
    assert row["input_ids"] == ids("<bos>", "0", "?", "odd")
    assert row["labels"] == ids(None, None, "even", "odd")


@pytest.mark.parametrize("asked", [["even", "odd"], [None, "odd", "even"], [None, None, "odd"]])
def test_questions_that_do_not_fit_are_refused(asked):
    with pytest.raises(ValueError, match="asked"):
        task_dataset([TaskRow(["0", "?"], ["even", "odd"], asked=asked)], [1], TOKENIZER)


def test_training_difficulties_are_uniform_and_test_difficulties_take_turns():
    splits = splits_of_bits(4000, 10, min_difficulty=9, difficulty=12, test_difficulties=[20, 11, 12])
    counts = Counter(splits["train"]["difficulty"])
    assert set(counts) == {9, 10, 11, 12}
    assert min(counts.values()) > 900
    assert splits["test"]["difficulty"] == [11] * 4 + [12] * 3 + [20] * 3
    for split in splits.values():
        assert [len(prompt.split()) - 1 for prompt in split["prompt"]] == list(split["difficulty"])
    assert set(splits_of_bits()["test"]["difficulty"]) == {9, 10, 11, 12}


def test_a_curriculum_raises_the_bound_evenly_over_its_share():
    levels = splits_of_bits(4000, min_difficulty=5, difficulty=9, num_test=1, test_difficulties=[9], curriculum=0.5)
    levels = np.array(levels["train"]["difficulty"])
    # the bound is 5 for the first eighth, then 6, 7 and 8 for an eighth each, and 9 from the half on
    assert [int(part.max()) for part in np.split(levels, 8)] == [5, 6, 7, 8, 9, 9, 9, 9]
    assert set(levels[-500:].tolist()) == {5, 6, 7, 8, 9}


def test_rows_of_a_group_share_a_difficulty():
    levels = np.array(splits_of_bits(100, group_size=4)["train"]["difficulty"]).reshape(-1, 4)
    assert (levels == levels[:, :1]).all()
    assert len(set(levels[:, 0].tolist())) > 1


def test_content_decides_the_split_whatever_the_seed():
    train, test = set(), set()
    for seed in range(6):
        splits = splits_of_bits(200, 8, seed=seed, min_difficulty=9, difficulty=10)
        train |= set(splits["train"]["prompt"])
        test |= set(splits["test"]["prompt"])
        assert len(set(splits["test"]["prompt"])) == 8
    # there are 1536 rows, so that the splits of other seeds would meet if the seed decided
    assert len(train) > 600
    assert not train & test
    assert 0.11 < np.mean([is_test_content(str(i)) for i in range(10_000)]) < 0.14


def test_a_key_decides_in_place_of_the_prompt():
    def draw(difficulty, rng):
        row = draw_bits(difficulty, rng)
        return TaskRow(row.prompt, row.answer, key=" ".join(sorted(row.prompt)))

    splits = task_splits(draw, TOKENIZER, 300, 2, 13, min_difficulty=12)
    keys = {name: {" ".join(sorted(prompt.split())) for prompt in rows["prompt"]} for name, rows in splits.items()}
    assert len(keys["test"]) == 2
    assert not keys["train"] & keys["test"]


def test_the_seed_determines_the_rows_and_a_split_does_not_depend_on_the_other():
    first, again, other = (splits_of_bits(seed=seed) for seed in (5, 5, 6))
    larger = splits_of_bits(80, 12, seed=5)
    for name in ("train", "test"):
        assert first[name].to_list() == again[name].to_list()
        assert first[name]["prompt"] != other[name]["prompt"]
    assert larger["test"].to_list() == first["test"].to_list()


def test_too_few_rows_for_testing_are_an_error():
    # 16 rows of 4 bits
    with pytest.raises(ValueError, match=r"num_test must be lower.* of that difficulty 16 .* found"):
        splits_of_bits(1, 16, min_difficulty=4, difficulty=4)


def test_too_few_rows_for_training_are_an_error():
    content = next(str(i) for i in range(100) if is_test_content(str(i)))
    with pytest.raises(ValueError, match="difficulty must be another than 1"):
        task_splits(lambda difficulty, rng: TaskRow(["0"], ["1"], key=content), TOKENIZER, 1, 1, 1)


@pytest.mark.parametrize("name", ["num_train", "num_test", "difficulty", "min_difficulty", "group_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "x", True, None])
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        splits_of_bits(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_difficulty": 13}, "^difficulty must be at least min_difficulty=13, got 12"),
        ({"test_difficulties": []}, "^test_difficulties"),
        ({"test_difficulties": [9, 9]}, "^test_difficulties"),
        ({"test_difficulties": [9, 0]}, r"^test_difficulties\[1\]"),
        ({"test_difficulties": [9, 14], "max_difficulty": 13}, r"^test_difficulties\[1\] must be at most 13, got 14"),
        ({"max_difficulty": 11}, "^difficulty must be at most 11, got 12"),
        ({"curriculum": 1.1}, "^curriculum"),
        ({"curriculum": float("nan")}, "^curriculum"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        splits_of_bits(**options)


def test_ten_thousand_rows_take_seconds():
    start = time.process_time()
    splits_of_bits(10_000, 100, 40, min_difficulty=20)
    assert time.process_time() - start < 10
