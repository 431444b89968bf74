"""Sudoku of sides 4, 6 and 9, split so that no symmetry turns a training solution into a test solution.

reasoning-gym has boards of sides 4 and 9 with a number of blanks. It has none of side 6, no measure of search, and no
split by solution; and a puzzle whose solution was trained on under another name is no test.
"""

import random
import zlib
from collections.abc import Iterator
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .grids import check_counts, check_range, grid_rows, grid_tokenizer, in_turn
from .sudoku_boards import (
    BLANK,
    Board,
    apply_symmetry,
    check_size,
    dead_ends,
    dig,
    random_solution,
    random_symmetry,
    signature,
)


# solutions for the test have one of these as hashed signature modulo 8 (side 4 has two signatures, one for the test)
TEST_RESIDUES = (6, 7)
# give up after this many rejected boards in a row
MAX_TRIES = 5000


@plain_counts
def sudoku(
    num_train: int,
    num_test: int,
    size: int = 9,
    *,
    min_blanks: int = 1,
    max_blanks: int | None = None,
    min_dead_ends: int = 0,
    num_puzzles: int | None = None,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate Sudoku puzzles with exactly one solution.

    Solutions are split into those of training and those of test by what is the same for all boards that symmetries
    turn into each other (see [`~sudoku_boards.signature`]), whatever the seed. Boards of side 4 fall into two such
    classes: a third of the 288 is in the test's.

    Args:
        num_train (`int`): training rows.
        num_test (`int`): test rows, distinct puzzles.
        size (`int`): the side of the board: 4, 6 or 9.
        min_blanks, max_blanks (`int`, *optional*): cells to fill. Clues are removed until a number drawn between the
            two is reached, or until no more can be removed; without `max_blanks`, as many as possible are removed.
        min_dead_ends (`int`): fewest dead ends that a search meets in a puzzle (see [`~sudoku_boards.dead_ends`]).
        num_puzzles (`int`, *optional*): distinct training puzzles. Rows beyond that are these again, seen through
            random symmetries: numbers renamed, rows and columns reordered, the board turned over. `None` makes every
            row a puzzle of its own.
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns `puzzle`,
        `answer`, `blanks`, `dead_ends` (of the puzzle itself, before symmetries), `difficulty` (the blanks as well),
        `input_ids` and `labels` (a token for every cell: padding 0, blank 1, the number one 2), and their tokenizer.

    Raises:
        ValueError: if an argument is out of range, or puzzles as hard as these are not found.
    """
    check_size(size)
    check_counts(num_train=num_train, num_test=num_test, num_puzzles=num_puzzles)
    most = size * size
    check_range("blanks", min_blanks, most if max_blanks is None else max_blanks, 1, most)
    if min_dead_ends < 0:
        raise ValueError(f"min_dead_ends must not be negative, got {min_dead_ends}")
    options = (size, min_blanks, max_blanks, min_dead_ends)
    num_distinct = min(num_train, num_puzzles or num_train)
    rng = random.Random(f"sudoku train {seed}")
    puzzles = [_as_row(*pair, size) for pair in _distinct_puzzles(num_distinct, False, options, rng)]
    train = [row if turn == 0 else seen(row, size, rng) for turn, row in in_turn(puzzles, num_train)]
    tests = _distinct_puzzles(num_test, True, options, random.Random(f"sudoku test {seed}"))
    characters = sudoku_characters(size)
    splits: Any = {"train": grid_rows(train, characters)}
    splits["test"] = grid_rows([_as_row(*test, size) for test in tests], characters)
    return DatasetDict(splits), grid_tokenizer(characters)


def sudoku_characters(size: int) -> str:
    """Return the characters of cells in the order of their tokens: a blank is 0."""
    return "".join(map(str, range(size + 1)))


def is_test_solution(solution: Board, size: int) -> bool:
    """Whether a solution, and with it all that symmetries make of it, belongs to the test split."""
    return zlib.crc32(repr(signature(solution, size)).encode()) % 8 in TEST_RESIDUES


def seen(row: dict[str, Any], size: int, rng: random.Random) -> dict[str, Any]:
    """Apply a random symmetry to `puzzle` and `answer` of a row; its other columns stay as they are."""
    symmetry = random_symmetry(size, rng)
    boards = {name: apply_symmetry(symmetry, tuple(map(int, row[name]))) for name in ("puzzle", "answer")}
    return {**row, **{name: "".join(map(str, board)) for name, board in boards.items()}}


def _distinct_puzzles(
    count: int, is_test: bool, options: tuple[int, int, int | None, int], rng: random.Random
) -> list[tuple[Board, Board]]:
    found: dict[Board, Board] = {}
    for puzzle, solution in _puzzles(is_test, options, rng):
        found[puzzle] = solution
        if len(found) == count:
            break
    return list(found.items())


def _puzzles(
    is_test: bool, options: tuple[int, int, int | None, int], rng: random.Random
) -> Iterator[tuple[Board, Board]]:
    size, min_blanks, max_blanks, min_dead_ends = options
    seen: set[Board] = set()
    num_tries = 0
    while num_tries < MAX_TRIES:
        solution = random_solution(size, rng)
        if is_test_solution(solution, size) != is_test:
            continue
        num_tries += 1
        wanted = size * size if max_blanks is None else rng.randint(min_blanks, max_blanks)
        puzzle = dig(solution, size, wanted, rng)
        is_hard = puzzle.count(BLANK) >= min_blanks and dead_ends(puzzle, size) >= min_dead_ends
        if is_hard and puzzle not in seen:
            seen.add(puzzle)
            num_tries = 0
            yield puzzle, solution
    raise ValueError(
        f"{MAX_TRIES} puzzles of size={size} in a row had fewer than min_blanks={min_blanks} or "
        f"min_dead_ends={min_dead_ends}, or were there already: there are {len(seen)}"
    )


def _as_row(puzzle: Board, solution: Board, size: int) -> dict[str, Any]:
    texts = {"puzzle": "".join(map(str, puzzle)), "answer": "".join(map(str, solution))}
    blanks = puzzle.count(BLANK)
    return {**texts, "blanks": blanks, "dead_ends": dead_ends(puzzle, size), "difficulty": blanks}
