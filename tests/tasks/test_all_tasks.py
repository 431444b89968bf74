"""What holds for every task with a difficulty."""

from inspect import signature

import numpy as np
import pytest

from hf_loop import tasks


# for each task small sizes, and difficulties of which there are enough rows for testing
TASKS = {
    "addition": {"difficulty": 4, "min_difficulty": 2},
    "approximate_counting": {"difficulty": 4, "min_difficulty": 2},
    "boolean_circuits": {"difficulty": 6, "min_difficulty": 3},
    "cellular_automaton": {"difficulty": 4},
    "fact_recall": {"difficulty": 3},
    "group_words": {"difficulty": 8, "min_difficulty": 4},
    "i_gsm": {"difficulty": 4, "min_difficulty": 2},
    "list_ops": {"difficulty": 4, "min_difficulty": 2},
    "modular_arithmetic": {"difficulty": 4, "min_difficulty": 2},
    "multiplication": {"difficulty": 4, "min_difficulty": 2},
    "non_adjacent_sum": {"difficulty": 7, "min_difficulty": 4},
    "p_hop": {"difficulty": 4, "sequence_length": 32},
    "post_machine": {"difficulty": 6, "min_difficulty": 3},
    "scan": {"difficulty": 12, "min_difficulty": 2},
}
# the same facts are asked for in both splits
MEMORIZED = {"fact_recall"}
# all facts must fit in the training rows, and there is a third split
TESTED_ELSEWHERE = {"multi_hop_facts"}


def make(name, num_train=60, num_test=12, **options):
    return getattr(tasks, name)(num_train, num_test, **TASKS[name] | options)


def test_every_task_with_a_difficulty_is_here():
    functions = {name: getattr(tasks, name) for name in tasks.__all__}
    with_difficulty = {
        name
        for name, function in functions.items()
        if not isinstance(function, type) and "min_difficulty" in signature(function).parameters
    }
    assert with_difficulty == TASKS.keys() | TESTED_ELSEWHERE


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_the_columns_and_the_answer_at_the_end(name):
    splits, tokenizer = make(name, test_difficulties=[TASKS[name]["difficulty"]], num_test=6)
    assert set(splits["test"]["difficulty"]) == {TASKS[name]["difficulty"]}
    for row in [*splits["train"], *splits["test"]]:
        prompt, answer = row["prompt"].split(), row["answer"].split()
        assert TASKS[name].get("min_difficulty", 1) <= row["difficulty"] <= TASKS[name]["difficulty"]
        text = tokenizer.convert_ids_to_tokens(row["input_ids"])
        # the prompt, and all of the answer, or its last word where the others are asked in the prompt
        assert text[: len(prompt) + 1] == ["<bos>", *prompt]
        told = text[len(prompt) + 1 :]
        assert told in (answer, answer[-1:])
        assert row["input_ids"][: len(prompt) + 1] == tokenizer(row["prompt"])["input_ids"]
        assert len(row["labels"]) == len(row["input_ids"]) and row["labels"][0] == -100
        labels = tokenizer.convert_ids_to_tokens([label for label in row["labels"] if label != -100])
        assert labels[-len(answer) :] == answer
        assert row["labels"][-1] == row["input_ids"][-1]
        words = f"{row['prompt']} {row.get('thoughts', '')} {row['answer']}"
        assert tokenizer.unk_token_id not in tokenizer(words)["input_ids"]


@pytest.mark.parametrize("name", TASKS)
def test_without_options_there_are_a_hundred_rows_for_testing(name):
    assert getattr(tasks, name)(4, 100)[0]["test"].num_rows == 100


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_determines_the_rows(name):
    first, again, other = (make(name, seed=seed)[0] for seed in (3, 3, 4))
    for split in ("train", "test"):
        assert first[split].to_list() == again[split].to_list()
        assert first[split]["prompt"] != other[split]["prompt"]
    # a larger training split does not change what is tested
    assert make(name, num_train=90, seed=3)[0]["test"].to_list() == first["test"].to_list()


@pytest.mark.parametrize("name", sorted(TASKS.keys() - MEMORIZED))
def test_no_test_row_is_trained_on_whatever_the_seeds(name):
    train, test = set(), set()
    for seed in range(4):
        splits, _ = make(name, num_train=150, num_test=10, seed=seed)
        train |= set(splits["train"]["prompt"])
        test |= set(splits["test"]["prompt"])
        assert len(set(splits["test"]["prompt"])) == len(splits["test"])
    assert not train & test


@pytest.mark.parametrize("name", sorted(MEMORIZED))
def test_what_is_memorized_is_tested(name):
    splits, _ = make(name, num_train=4000, num_test=30, num_facts=10)
    assert set(splits["test"]["prompt"]) <= set(splits["train"]["prompt"])


@pytest.mark.parametrize("name", TASKS)
def test_a_curriculum_grows_in_groups(name):
    low, high = TASKS[name].get("min_difficulty", 1), TASKS[name]["difficulty"]
    levels = np.array(make(name, num_train=240, curriculum=1.0, group_size=4)[0]["train"]["difficulty"])
    groups = levels.reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    bounds = low + (high - low) * np.arange(60) / 60
    assert (groups[:, 0] <= bounds).all()
    # it grows: the first sixth stays easy, and the last is not all easy
    assert levels[:40].max() < levels[-40:].max()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("argument", ["num_train", "num_test", "difficulty", "min_difficulty", "group_size"])
def test_numbers_that_make_no_sense_are_refused(name, argument):
    with pytest.raises(ValueError, match=f"^{argument}"):
        make(name, **{argument: 0})


@pytest.mark.parametrize("name", TASKS)
def test_whole_numbers_of_numpy_are_numbers(name):
    splits, _ = make(name, num_train=np.int64(5), num_test=np.int64(8))
    assert splits.num_rows == {"train": 5, "test": 8}
