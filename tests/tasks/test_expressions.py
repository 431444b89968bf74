"""Expressions and the tasks made of them, with Python's own parser as the reference."""

import random
import time
from collections import Counter

import pytest

from hf_loop.tasks import boolean_circuits, list_ops, modular_arithmetic
from hf_loop.tasks.boolean_circuits import BOOLEAN
from hf_loop.tasks.expressions import Expression
from hf_loop.tasks.list_ops import LIST_OPS


class Digit:
    """A number with the operators of all tasks, for Python's `eval`."""

    def __init__(self, value, modulus):
        self.value, self.modulus = value % modulus, modulus

    def apply(self, result):
        return Digit(result, self.modulus)

    def __add__(self, other):
        return self.apply(self.value + other.value)

    def __sub__(self, other):
        return self.apply(self.value - other.value)

    def __mul__(self, other):
        return self.apply(self.value * other.value)

    def __and__(self, other):
        return self.apply(min(self.value, other.value))

    def __or__(self, other):
        return self.apply(max(self.value, other.value))

    def __xor__(self, other):
        return self.apply(self.value + other.value)

    def __invert__(self):
        return self.apply(1 - self.value)


PYTHON = {"and": "&", "or": "|", "xor": "^", "not": "~", "max": "|", "min": "&", "sum": "+"}
TASKS = {boolean_circuits: 2, list_ops: 10, modular_arithmetic: 7}


def value_by_python(prompt, modulus):
    code = " ".join(
        f"Digit({word}, {modulus})" if word.isdigit() else PYTHON.get(word, word) for word in prompt.split()
    )
    return eval(code, {"Digit": Digit}).value


def depth_by_parentheses(prompt):
    deepest = depth = 0
    for word in prompt.split():
        depth += (word == "(") - (word == ")")
        deepest = max(deepest, depth)
    assert depth == 0
    return deepest


@pytest.mark.parametrize("task", TASKS)
def test_answers_agree_with_python(task):
    splits, tokenizer = task(200, 20, 4, min_difficulty=2, test_difficulties=[3, 4, 7, 30], seed=3)
    for row in [*splits["train"], *splits["test"]]:
        words = row["prompt"].split()
        assert int(row["answer"]) == value_by_python(row["prompt"], TASKS[task])
        assert depth_by_parentheses(row["prompt"]) == row["difficulty"]
        assert words.count("(") == row["num_operators"] <= 32
        assert 0 <= row["reach"] <= row["difficulty"]
        # the values of the parts, as their parentheses close
        opened, closed = [], []
        for place, word in enumerate(words):
            if word == "(":
                opened.append(place)
            elif word == ")":
                closed.append(value_by_python(" ".join(words[opened.pop() : place + 1]), TASKS[task]))
        assert [*map(int, row["thoughts"].split()), int(row["answer"])] == closed
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *words, row["answer"]]
        # they are asked where the parts end
        asked = [row["labels"][place + 2] for place, word in enumerate(words) if word == ")"]
        values = tokenizer.convert_tokens_to_ids(list(map(str, closed)))
        assert all(label in (-100, value) for label, value in zip(asked, values, strict=True)) and asked[-1] != -100
        assert row["labels"].count(-100) == len(row["labels"]) - sum(label != -100 for label in asked)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("depth", [3, 9])
def test_answers_are_balanced(task, depth):
    counts = Counter(task(1000, 1, depth, min_difficulty=depth)[0]["train"]["answer"])
    assert len(counts) == TASKS[task]
    assert all(abs(count * TASKS[task] / 1000 - 1) < 0.4 for count in counts.values())


def test_all_operators_and_both_sides_occur():
    rng = random.Random(0)
    drawn = [BOOLEAN.draw(rng.randrange(2), 2, 8, rng) for _ in range(300)]
    assert {expression.operator for expression in drawn} == {"and", "or", "xor", "not"}
    shapes = {tuple(part.depth() for part in expression.parts) for expression in drawn}
    assert shapes == {(1,), (0, 1), (1, 0), (1, 1)}


def test_expressions_as_deep_as_they_have_operators_are_chains():
    rng = random.Random(0)
    for _ in range(50):
        expression = LIST_OPS.draw(3, 12, 12, rng)
        assert expression.depth() == len(expression.values()) == 12
    sizes = [len(LIST_OPS.draw(3, 12, 40, rng).values()) for _ in range(50)]
    assert 12 < max(sizes) <= 40


def test_reach_known_by_hand():
    zero, one = Expression(0), Expression(1)
    inner = Expression(1, "xor", (zero, one))
    # ( 0 and ( 0 xor 1 ) ): the 0 alone decides, and hides the xor
    assert BOOLEAN.reach(Expression(0, "and", (zero, inner))) == 1
    # ( 1 and ( 0 xor 1 ) ): every bit of the xor counts
    assert BOOLEAN.reach(Expression(1, "and", (one, inner))) == 2
    # ( 0 and ( 0 and 0 ) ) changes with no single bit; the parts of the outer operator do not count
    assert BOOLEAN.reach(Expression(0, "and", (zero, Expression(0, "and", (zero, zero))))) == 0
    assert LIST_OPS.reach(Expression(9, "max", (Expression(9), Expression(4)))) == 1


def test_the_modulus_is_a_parameter():
    splits, tokenizer = modular_arithmetic(100, 5, 3, min_difficulty=3, modulus=3)
    assert {word for row in splits["train"] for word in row["prompt"].split()} == {*"()+-*012"}
    assert all(int(row["answer"]) == value_by_python(row["prompt"], 3) for row in splits["test"])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (boolean_circuits, {"max_operators": 3}, "^difficulty must be at most 3, got 4"),
        (list_ops, {"test_difficulties": [33]}, r"^test_difficulties\[0\] must be at most 32, got 33"),
        (boolean_circuits, {"max_operators": 0}, "^max_operators"),
        (modular_arithmetic, {"modulus": 1}, "^modulus"),
    ],
)
def test_arguments_out_of_range_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(4, 8, 4, **options)


def test_thousands_of_rows_take_seconds():
    start = time.process_time()
    modular_arithmetic(2000, 40, 8, min_difficulty=2)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("task", TASKS)
def test_parts_are_asked_for_in_training_unless_they_are_for_testing(task):
    train = task(500, 10, 6, seed=1)[0]["train"]
    test = set(task(1, 150, 3, min_difficulty=1, test_difficulties=[2, 3], seed=2)[0]["test"]["prompt"])
    asked, left_out = set(), set()
    for row in train:
        words, opened = row["prompt"].split(), []
        for place, word in enumerate(words):
            if word == "(":
                opened.append(place)
            elif word == ")":
                part = " ".join(words[opened.pop() : place + 1])
                (asked if row["labels"][place + 2] != -100 else left_out).add(part)
    assert not asked & (test | left_out)
    assert 0.08 < len(left_out) / len(asked | left_out) < 0.17
