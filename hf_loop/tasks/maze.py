"""Mazes with one way between any two places, split so that no symmetry turns a training maze into a test maze.

maze-dataset makes mazes of several kinds, and needs a stack of packages for them; what is asked for here, the length
of the way and a split by layout, is a page of code.
"""

import random
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts, whole_number
from .grids import check_counts, check_range, grid_rows, grid_tokenizer, in_turn


WALL, FREE, START, GOAL, WAY = MAZE_CHARACTERS = "# SGo"
# one layout in so many is a test maze
TEST_SHARE = 8
MAX_TRIES = 1000


@plain_counts
def maze(
    num_train: int,
    num_test: int,
    size: int = 9,
    *,
    min_length: int = 1,
    max_length: int | None = None,
    num_puzzles: int | None = None,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate mazes. The answer is the maze with the shortest way marked, which is the only one.

    Layouts are split into those of training and those of test by the lowest of their eight turned and mirrored forms,
    whatever the seed.

    Args:
        num_train (`int`): training rows.
        num_test (`int`): test rows, distinct mazes.
        size (`int`): the side, walls around it included, at least 5. Cells of an even side end in a wall of double
            thickness.
        min_length, max_length (`int`, *optional*): steps from the start to the goal; `None` sets no upper bound.
        num_puzzles (`int`, *optional*): distinct training mazes. Rows beyond that are these again, turned and
            mirrored. `None` makes every row a maze of its own.
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns `puzzle`,
        `answer`, `length`, `difficulty` (the length as well), `input_ids` and `labels` (a token for every cell:
        padding 0, wall 1, free 2, start 3, goal 4, way 5), and their tokenizer.

    Raises:
        ValueError: if an argument is out of range, or mazes with ways of these lengths are not found.
    """
    if whole_number(size) is None or size < 5:
        raise ValueError(f"size must be an integer of at least 5, got {size!r}")
    check_counts(num_train=num_train, num_test=num_test, num_puzzles=num_puzzles)
    check_range("length", min_length, size * size if max_length is None else max_length, 1, size * size)
    lengths = (min_length, size * size if max_length is None else max_length)
    rng = random.Random(f"maze train {seed}")
    mazes = _distinct_mazes(min(num_train, num_puzzles or num_train), False, size, lengths, rng)
    train = [_seen(row, size, rng.randrange(8) if turn else 0) for turn, row in in_turn(mazes, num_train)]
    test = _distinct_mazes(num_test, True, size, lengths, random.Random(f"maze test {seed}"))
    splits: Any = {"train": grid_rows(train, MAZE_CHARACTERS), "test": grid_rows(test, MAZE_CHARACTERS)}
    return DatasetDict(splits), grid_tokenizer(MAZE_CHARACTERS)


def turned(cells: Sequence[Any], size: int, symmetry: int) -> list[Any]:
    """The cells of a square seen through one of its eight symmetries: mirrored if odd, then turned by quarters."""
    grid = [list(cells[start : start + size]) for start in range(0, size * size, size)]
    if symmetry % 2:
        grid = grid[::-1]
    for _ in range(symmetry // 2):
        grid = [list(column) for column in zip(*grid[::-1])]
    return [cell for row in grid for cell in row]


def is_test_layout(puzzle: str, size: int) -> bool:
    """Whether a layout, and with it its turned and mirrored forms, belongs to the test split."""
    walls = [character == WALL for character in puzzle]
    lowest = min(turned(walls, size, symmetry) for symmetry in range(8))
    return zlib.crc32(bytes(lowest)) % TEST_SHARE == 0


def dig_maze(size: int, rng: random.Random) -> list[str]:
    """Dig a tree of corridors into walls, by a random depth-first walk over the cells of odd coordinates."""
    cells = [WALL] * (size * size)
    place = size + 1
    cells[place] = FREE
    walk = [place]
    while walk:
        place = walk[-1]
        row, column = divmod(place, size)
        ahead = [
            (row + i, column + j)
            for i, j in ((-2, 0), (2, 0), (0, -2), (0, 2))
            if 0 < row + i < size - 1 and 0 < column + j < size - 1 and cells[(row + i) * size + column + j] == WALL
        ]
        if not ahead:
            walk.pop()
            continue
        next_row, next_column = rng.choice(ahead)
        cells[(row + next_row) // 2 * size + (column + next_column) // 2] = FREE
        cells[next_row * size + next_column] = FREE
        walk.append(next_row * size + next_column)
    return cells


def ways_from(cells: Sequence[str], size: int, start: int) -> dict[int, int]:
    """Of every place that can be reached, the one before it on a shortest way from `start` (itself for `start`)."""
    before, queue = {start: start}, deque([start])
    while queue:
        place = queue.popleft()
        for near in (place - size, place + size, place - 1, place + 1):
            if cells[near] != WALL and near not in before:
                before[near] = place
                queue.append(near)
    return before


def _distinct_mazes(
    count: int, is_test: bool, size: int, lengths: tuple[int, int], rng: random.Random
) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    num_tries = 0
    while len(found) < count:
        row = _one_maze(is_test, size, lengths, rng)
        if row is not None and row["puzzle"] not in found:
            found[row["puzzle"]] = row
            num_tries = 0
        num_tries += 1
        if num_tries > MAX_TRIES:
            raise ValueError(
                f"{MAX_TRIES} mazes of size={size} in a row had no new way of min_length={lengths[0]} to "
                f"max_length={lengths[1]} steps: there are {len(found)}"
            )
    return list(found.values())


def _one_maze(is_test: bool, size: int, lengths: tuple[int, int], rng: random.Random) -> dict[str, Any] | None:
    cells = dig_maze(size, rng)
    if is_test_layout("".join(cells), size) != is_test:
        return None
    start = rng.choice([place for place, character in enumerate(cells) if character == FREE])
    before = ways_from(cells, size, start)
    # shortest ways are found in the order of their lengths
    steps = {start: 0}
    for place, previous in before.items():
        steps[place] = steps[previous] + (place != start)
    goals = [place for place, length in steps.items() if lengths[0] <= length <= lengths[1]]
    if not goals:
        return None
    goal = rng.choice(goals)
    puzzle, answer, place = list(cells), list(cells), goal
    while place != start:
        answer[place] = WAY
        place = before[place]
    for grid in (puzzle, answer):
        grid[start], grid[goal] = START, GOAL
    return {
        "puzzle": "".join(puzzle),
        "answer": "".join(answer),
        "length": steps[goal],
        "difficulty": steps[goal],
    }


def _seen(row: dict[str, Any], size: int, symmetry: int) -> dict[str, Any]:
    return {**row, **{name: "".join(turned(row[name], size, symmetry)) for name in ("puzzle", "answer")}}
