"""What holds for every task with a difficulty."""

from inspect import signature

import numpy as np
import pytest

from hf_loop import tasks


# sizes other than the defaults: small, and of difficulties that have enough rows for testing
SIZES = {
    "approximate_counting": {"difficulty": 4, "min_difficulty": 2},
    "boolean_circuits": {"difficulty": 6, "min_difficulty": 3},
    "fact_recall": {"difficulty": 3},
    # without the facts, all of which would have to be among the training rows
    "multi_hop_facts": {"difficulty": 3, "min_difficulty": 2},
    "p_hop": {"sequence_length": 32},
    "post_machine": {"difficulty": 6, "min_difficulty": 3},
    "scan": {"difficulty": 12, "min_difficulty": 2},
}
# the same facts are asked for in both splits
MEMORIZED = {"fact_recall"}


def options_of(name):
    """The difficulties of a task by default, and other sizes; `None` if it is no task, or needs further arguments."""
    function = getattr(tasks, name)
    parameters = {} if isinstance(function, type) else signature(function).parameters
    required = [parameter for parameter in parameters.values() if parameter.default is parameter.empty]
    if "min_difficulty" not in parameters or len(required) > 2:
        return None
    defaults = {argument: parameters[argument].default for argument in ("difficulty", "min_difficulty")}
    return defaults | SIZES.get(name, {})


TASKS = {name: options_of(name) for name in tasks.__all__ if options_of(name) is not None}


def make(name, num_train=60, num_test=12, **options):
    return getattr(tasks, name)(num_train, num_test, **TASKS[name] | options)


def test_tasks_are_found():
    assert {"boolean_circuits", "group_words", "scan", *SIZES} <= TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_rows_have_the_columns_and_the_answer_at_the_end(name):
    splits, tokenizer = make(name, test_difficulties=[TASKS[name]["difficulty"]], num_test=6)
    assert set(splits["test"]["difficulty"]) == {TASKS[name]["difficulty"]}
    for row in [*splits["train"], *splits["test"]]:
        prompt, answer = row["prompt"].split(), row["answer"].split()
        assert TASKS[name]["min_difficulty"] <= row["difficulty"] <= TASKS[name]["difficulty"]
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
    num_train = 3000 if name == "multi_hop_facts" else 4
    assert getattr(tasks, name)(num_train, 100)[0]["test"].num_rows == 100


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
    low, high = TASKS[name]["min_difficulty"], TASKS[name]["difficulty"]
    levels = np.array(make(name, num_train=240, curriculum=0.5, group_size=4)[0]["train"]["difficulty"])
    groups = levels.reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    bounds = low + (high - low) * np.minimum(np.arange(60) / 30, 1)
    assert (groups[:, 0] <= bounds).all()
    # it grows: the first sixth has nothing as hard as the second half
    assert levels[:40].max() < levels[-120:].max()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("argument", ["num_train", "num_test", "difficulty", "min_difficulty", "group_size"])
def test_numbers_that_make_no_sense_are_refused(name, argument):
    with pytest.raises(ValueError, match=f"^{argument}"):
        make(name, **{argument: 0})


@pytest.mark.parametrize("name", TASKS)
def test_whole_numbers_of_numpy_are_numbers(name):
    splits, _ = make(name, num_train=np.int64(5), num_test=np.int64(12))
    assert (splits["train"].num_rows, splits["test"].num_rows) == (5, 12)


@pytest.mark.parametrize("name", sorted(TASKS.keys() - MEMORIZED))
def test_no_answer_of_a_test_row_is_asked_for_within_a_training_row(name):
    """Easier test rows must not be the first words of harder training rows that ask after every word."""
    # few words, so that a beginning that is trained is found among 3,000 rows
    options = {"group": "A5"} if name == "group_words" else {}
    high = TASKS[name]["difficulty"]
    # easier rows of these tasks cannot be tested
    low = {"two_subroutines": high, "group_words": 10}.get(name, TASKS[name]["min_difficulty"])
    # the answer of this task is asked for before the question, too
    num_questions = 1 if name == "two_subroutines" else 0
    asked = set()
    for row in make(name, num_train=3000, num_test=1, test_difficulties=[high], seed=1, **options)[0]["train"]:
        asked |= {tuple(row["input_ids"][:i]) for i, label in enumerate(row["labels"]) if label != -100}
    for level in range(low, high + 1):
        for row in make(name, num_train=1, num_test=8, test_difficulties=[level], seed=2, **options)[0]["test"]:
            answer = max(i for i, label in enumerate(row["labels"]) if label != -100)
            for end in range(answer - num_questions, answer + 1):
                assert tuple(row["input_ids"][:end]) not in asked, (level, row["prompt"])


# the tasks whose difficulty is set by other arguments, and what it is
OTHERS = [
    (tasks.coin_flips, {"num_moves": 7, "curriculum": 0.5}, lambda row: len(row["prompt"].split()) - 1),
    (tasks.shell_game, {"num_swaps": 6, "curriculum": 0.5}, lambda row: row["prompt"].count("<->")),
    (tasks.delayed_shell_game, {"curriculum": 0.5, "group_size": 4}, lambda row: row["prompt"].count("<->")),
    (tasks.passkey, {"max_blocks": 5, "group_size": 4}, lambda row: len(row["input_ids"]) // 32),
    (tasks.associative_recall, {"group_size": 4}, lambda row: len(row["input_ids"]) // 32),
    (tasks.successor, {}, lambda row: max(row["hops"])),
    (tasks.rule_110, {"num_steps": 5}, lambda row: 5),
    (tasks.maze, {"size": 7}, lambda row: row["answer"].count("o") + 1),
    (tasks.sudoku, {"size": 4}, lambda row: row["puzzle"].count("0")),
]


@pytest.mark.parametrize(("task", "options", "difficulty"), OTHERS, ids=lambda value: getattr(value, "__name__", ""))
def test_rows_of_the_other_tasks_have_a_difficulty_too(task, options, difficulty):
    splits, _ = task(24, 10, **options)
    for rows in splits.values():
        assert [difficulty(row) for row in rows] == list(rows["difficulty"])
