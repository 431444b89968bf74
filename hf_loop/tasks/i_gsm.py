"""Symbolic i-GSM: variables that are defined by one another in any order, modulo 7, and one that is asked for.

Four variables and a question of depth 2: v4 is 5 * 6 = 2, so that v1 is 2 - 3 = 6.

    text        <bos>  v1 := v4 - v2 ; v9 := v2 + 1 ; v4 := 5 * 6 ; v2 := 3 ; v1 ?     6
    labels      -100   ... -100                                                        6

As in the symbolic form of "Reasoning with Latent Thoughts: On the Power of Looped Transformers"
(https://huggingface.co/papers/2502.17416), after i-GSM of Physics of Language Models 2.1
(https://huggingface.co/papers/2407.20311): the statements are shuffled, some are not needed, and to answer directly a
model has to follow as many definitions in turn as the question is deep.
"""

import random
from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .computation_graph import MODULO, ComputationGraph, graph_columns
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


MODULUS = 7
OPERATION_OF = {"+": "add", "-": "subtract", "*": "multiply"}
# how often an operand is a number and no variable
NUMBER_SHARE = 0.25

# a variable is a number, or an operation on two operands, each a variable or a number
Definition = tuple[str, ...]


@plain_counts
def i_gsm(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    num_variables: int = 12,
    num_names: int = 26,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate definitions and questions: `"v2 := 3 ; v1 := v2 - 5 ; v1 ?"` is answered by `"5"`.

    The difficulty is the depth of the variable that is asked for: operations on the longest path to it. The number of
    statements is the same for all, so that a row's length does not tell its difficulty.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        num_variables (`int`): variables of a row, each with one statement; more than the highest difficulty.
        num_names (`int`): names for variables, of which a row draws its own.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py` and of [`graph_columns`], and the tokenizer they are made with. Graph and `thoughts` have what is
        needed for the answer; the thoughts define one variable after the other by its value, and the answer last.

    Raises:
        ValueError: if an argument is out of range, or there are not so many rows for a split.
    """
    check_integers({"difficulty": difficulty}, low=1)
    check_integers({"num_variables": num_variables}, low=1 + max([difficulty, *(test_difficulties or [])]))
    check_integers({"num_names": num_names}, low=num_variables)
    names = [f"v{i}" for i in range(num_names)]

    def draw_row(depth: int, rng: random.Random) -> TaskRow:
        definitions, asked = draw_definitions(depth, rng.sample(names, num_variables), rng)
        return i_gsm_row(definitions, asked, rng.sample(list(definitions), num_variables))

    tokenizer = word_tokenizer([*map(str, range(MODULUS)), *OPERATION_OF, ":=", ";", "?", *names])
    splits = task_splits(
        draw_row,
        tokenizer,
        num_train,
        num_test,
        difficulty,
        min_difficulty=min_difficulty,
        test_difficulties=test_difficulties,
        curriculum=curriculum,
        group_size=group_size,
        seed=seed,
    )
    return splits, tokenizer


def draw_definitions(depth: int, names: Sequence[str], rng: random.Random) -> tuple[dict[str, Definition], str]:
    """Draw the definitions of variables, each before those that use it, and the variable to ask for.

    Args:
        depth (`int`): the depth of the variable that is asked for, and the greatest there is; below the number of
            names.
        names (`Sequence[str]`): the variables.
        rng (`random.Random`): source of the draw.

    Returns:
        `tuple[dict[str, tuple[str, ...]], str]`: for each variable a number, or an operand, an operator and a second
        operand; and the variable of the question.
    """
    # one variable of each depth at least
    depths = sorted([*range(depth + 1), *rng.choices(range(depth + 1), k=len(names) - depth - 1)])
    levels: list[list[str]] = [[] for _ in range(depth + 1)]
    definitions: dict[str, Definition] = {}
    for name, level in zip(names, depths):
        if level == 0:
            definitions[name] = (_draw_number(rng),)
        else:
            # one operand has the depth below, so that the variable has its own; the other is another one
            below = rng.choice(levels[level - 1])
            others = [variable for shallower in levels[:level] for variable in shallower if variable != below]
            other = rng.choice(others) if others and rng.random() >= NUMBER_SHARE else _draw_number(rng)
            first, second = (below, other) if rng.random() < 0.5 else (other, below)
            definitions[name] = (first, rng.choice("+-*"), second)
        levels[level].append(name)
    return definitions, rng.choice(levels[depth])


def _draw_number(rng: random.Random) -> str:
    # no 0, which would make much of a product not needed
    return str(rng.randrange(1, MODULUS))


def i_gsm_row(definitions: dict[str, Definition], asked: str, order: Sequence[str]) -> TaskRow:
    """The row of a question.

    Args:
        definitions (`dict[str, tuple[str, ...]]`): as [`draw_definitions`] draws them.
        asked (`str`): the variable that is asked for.
        order (`Sequence[str]`): all variables, in the order of their statements.
    """
    needed = {asked}
    for name in reversed(definitions):
        if name in needed:
            needed.update(definitions[name])
    graph = ComputationGraph()
    for name, definition in definitions.items():
        if name not in needed:
            continue
        if len(definition) == 1:
            graph.add_input(name, int(definition[0]))
            continue
        first, operator, second = definition
        operands = [
            operand if operand in definitions else graph.add_input(f"{name}.{side}", int(operand))
            for side, operand in (("left", first), ("right", second))
        ]
        graph.add(name, f"{OPERATION_OF[operator]}{MODULO}{MODULUS}", *operands)
    prompt: list[str] = []
    for name in order:
        prompt += [name, ":=", *definitions[name], ";"]
    thoughts: list[str] = []
    for name, node in graph.nodes.items():
        if name in definitions and name != asked:
            thoughts += [name, ":=", str(node.value), ";"]
    # every fourth part is a statement's value
    thought_nodes = [thoughts[i - 2] if i % 4 == 2 else "" for i in range(len(thoughts))]
    return TaskRow(
        [*prompt, asked, "?"],
        [str(graph.nodes[asked].value)],
        thoughts=thoughts,
        columns=graph_columns(graph, [asked], thought_nodes),
    )
