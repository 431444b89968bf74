"""Expressions in full parentheses, of a given depth and with a given value."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .rows import TaskRow, is_test_content, task_splits
from .tokenizer import word_tokenizer


class Expression(NamedTuple):
    """A value, and the operator and the parts it is made of; a value alone has none."""

    value: int
    operator: str = ""
    parts: "tuple[Expression, ...]" = ()

    def words(self) -> list[str]:
        """As text: `3`, `( not 0 )`, `( 3 max ( 4 min 5 ) )`."""
        if not self.parts:
            return [str(self.value)]
        texts = [part.words() for part in self.parts]
        left = texts[0] if len(texts) == 2 else []
        return ["(", *left, self.operator, *texts[-1], ")"]

    def values(self) -> list[int]:
        """The values of all parts with an operator, in the order in which their parentheses close."""
        inner = [value for part in self.parts for value in part.values()]
        return [*inner, self.value] if self.parts else []

    def asked(self) -> list[str | None]:
        """What is asked for at each of the words: at `)` the value of what closes there, unless it is for testing."""
        if not self.parts:
            return [None]
        texts = [part.asked() for part in self.parts]
        left = texts[0] if len(texts) == 2 else []
        value = None if is_test_content(" ".join(self.words())) else str(self.value)
        return [None, *left, None, *texts[-1], value]

    def depth(self) -> int:
        """Count the operators on the longest way from the outermost to a value."""
        return 1 + max(part.depth() for part in self.parts) if self.parts else 0


@dataclass(frozen=True)
class Language:
    """What expressions are made of.

    Args:
        num_values (`int`): values are the numbers from 0 up to, not including, this.
        binary (`Mapping[str, Callable[[int, int], int]]`): operators of two parts, by their words.
        unary (`Mapping[str, Callable[[int], int]]`): operators of one part.
    """

    num_values: int
    binary: Mapping[str, Callable[[int, int], int]]
    unary: Mapping[str, Callable[[int], int]]

    @cached_property
    def made_of(self) -> dict[int, dict[str, list[tuple[int, ...]]]]:
        """For every value and operator, the values of parts that give it."""
        table: dict[int, dict[str, list[tuple[int, ...]]]] = {value: {} for value in range(self.num_values)}
        for operators, count in ((self.unary, 1), (self.binary, 2)):
            for word, operator in operators.items():
                for values in product(range(self.num_values), repeat=count):
                    table[operator(*values)].setdefault(word, []).append(values)
        return table

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that the rows are made with; to be saved beside the model."""
        return word_tokenizer(["(", ")", *map(str, range(self.num_values)), *self.unary, *self.binary])

    def draw(self, value: int, depth: int, max_operators: int, rng: random.Random) -> Expression:
        """Draw an expression with a value, from the outermost operator inwards.

        Each operator is drawn from those that can give the value wanted of it, and the values of its parts from those
        it gives it for. One of its parts, at random, is as deep as can be. The other one's depth is uniform, as far
        as the operators last.

        Args:
            value (`int`): the value.
            depth (`int`): the depth.
            max_operators (`int`): the most operators, at least `depth`.
            rng (`random.Random`): source of the draw.
        """
        if depth == 0:
            return Expression(value)
        operator, choices = rng.choice(list(self.made_of[value].items()))
        values = rng.choice(choices)
        deep = rng.randrange(len(values))
        # what the deep part does not need for its depth may go to the other
        spare = rng.randint(0, max_operators - depth) if len(values) == 2 else 0
        parts = []
        for place, part in enumerate(values):
            if place == deep:
                parts.append(self.draw(part, depth - 1, max_operators - 1 - spare, rng))
            else:
                parts.append(self.draw(part, rng.randint(0, min(depth - 1, spare)), spare, rng))
        return Expression(value, operator, tuple(parts))

    @cached_property
    def results(self) -> dict[str, dict[int | None, list[int]]]:
        """For every operator, what it gives: by the first part's value for every second; of one part, by `None`."""
        values = range(self.num_values)
        table: dict[str, dict[int | None, list[int]]] = {}
        for word, binary in self.binary.items():
            table[word] = {left: [binary(left, right) for right in values] for left in values}
        for word, unary in self.unary.items():
            table[word] = {None: [unary(value) for value in values]}
        return table

    def reach(self, expression: Expression, answers: Sequence[int] | None = None) -> int:
        """How deep the answer depends on an expression: the depth of the deepest part whose change would change it.

        Args:
            expression (`Expression`): an expression, or a part of one.
            answers (`Sequence[int]`, *optional*): of a part, the value of the whole for every value of the part.

        Returns:
            `int`: from 0, where no change of one part would change the answer, to the depth of the expression. Of a
            part that the answer does not depend on, `-1`.
        """
        answers = range(self.num_values) if answers is None else answers
        if len(set(answers)) == 1:
            return -1
        if not expression.parts:
            return 0
        table = self.results[expression.operator]
        first, *second = expression.parts
        if not second:
            return 1 + self.reach(first, [answers[result] for result in table[None]])
        of_first = [answers[table[value][second[0].value]] for value in range(self.num_values)]
        of_second = [answers[result] for result in table[first.value]]
        return 1 + max(self.reach(first, of_first), self.reach(second[0], of_second))

    def splits(
        self, num_train: int, num_test: int, difficulty: int, max_operators: int, **options
    ) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
        """Draw training and test rows, whose answers are uniform.

        The value of every part is asked for, but not told, where its parenthesis closes; not that of a part which
        would be a row for testing.

        Args:
            num_train, num_test, difficulty: see [`task_splits`].
            max_operators (`int`): the most operators of an expression.
            options: the other arguments of [`task_splits`].
        """
        check_integers({"max_operators": max_operators}, low=1)

        def draw_row(depth: int, rng: random.Random) -> TaskRow:
            expression = self.draw(rng.randrange(self.num_values), depth, max_operators, rng)
            *thoughts, answer = map(str, expression.values())
            columns = {"num_operators": len(thoughts) + 1, "reach": self.reach(expression)}
            asked = [None, *expression.asked()[:-1], answer]
            return TaskRow(expression.words(), [answer], thoughts=thoughts, asked=asked, columns=columns)

        tokenizer = self.tokenizer()
        rows = task_splits(
            draw_row, tokenizer, num_train, num_test, difficulty, max_difficulty=max_operators, **options
        )
        return rows, tokenizer
