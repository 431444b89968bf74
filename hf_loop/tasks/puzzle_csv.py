"""Puzzles from local files in the format of Sudoku-Extreme and Maze-Hard, the data sets of HRM's and TRM's papers."""

import csv
import math
import random
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .grids import check_counts, grid_rows, grid_tokenizer, in_turn
from .maze import MAZE_CHARACTERS, START, WALL, turned
from .sudoku import seen, sudoku_characters
from .sudoku_boards import is_solved, signature


NUM_COLUMNS = 4


@plain_counts
def puzzle_csv(
    num_train: int,
    num_test: int,
    train_file: str,
    test_file: str,
    kind: Literal["sudoku", "maze"] = "sudoku",
    *,
    num_puzzles: int | None = None,
    min_rating: int = 0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Read puzzles from two CSV files with a header and the columns source, puzzle, answer and rating.

    The published files are `train.csv` and `test.csv` of sapientinc/sudoku-extreme and of
    sapientinc/maze-30x30-hard-1k; blanks of a Sudoku are dots or zeros. Test puzzles whose solution (of a maze: whose
    walls) a symmetry turns into one that is trained on are left out.

    Args:
        num_train (`int`): training rows.
        num_test (`int`): test rows, drawn from the test file; all of it where it has fewer.
        train_file, test_file (`str` or `os.PathLike`): the files.
        kind (`str`): whether they hold Sudoku of side 9 or mazes.
        num_puzzles (`int`, *optional*): training puzzles, drawn from the file; the published setting is 1000. `None`
            takes all. Rows beyond their number are these again, seen through random symmetries (of mazes, turned and
            mirrored).
        min_rating (`int`): the rating that puzzles must have.
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns `puzzle`,
        `answer`, `rating`, `input_ids` and `labels`, and their tokenizer; tokens are those of the published data.

    Raises:
        ValueError: if an argument is out of range, a file is missing or of another form, or holds a wrong solution.
    """
    check_counts(num_train=num_train, num_test=num_test, num_puzzles=num_puzzles)
    if kind not in ("sudoku", "maze"):
        raise ValueError(f"kind must be sudoku or maze, got {kind!r}")
    train, test = (_read(path, kind, min_rating) for path in (train_file, test_file))
    rng = random.Random(f"csv {seed}")
    if num_puzzles is not None and num_puzzles < len(train):
        train = rng.sample(train, num_puzzles)
    # puzzles beyond the rows are not trained on
    train = train[:num_train]
    trained_on = {_alike(row, kind) for row in train}
    test = [row for row in test if _alike(row, kind) not in trained_on]
    rng.shuffle(test)
    rows = [_seen(row, kind, rng) if turn else row for turn, row in in_turn(train, num_train)]
    characters = sudoku_characters(9) if kind == "sudoku" else MAZE_CHARACTERS
    splits: Any = {"train": grid_rows(rows, characters), "test": grid_rows(test[:num_test], characters)}
    return DatasetDict(splits), grid_tokenizer(characters)


def _read(path: str, kind: str, min_rating: int) -> list[dict[str, Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        next(reader, None)
        for number, line in enumerate(reader, 2):
            if len(line) != NUM_COLUMNS or len(line[1]) != len(line[2]):
                raise ValueError(f"{path}, line {number}: must be source, puzzle, answer and rating, got {line}")
            row = {"puzzle": line[1], "answer": line[2], "rating": int(line[3])}
            if kind == "sudoku":
                row["puzzle"] = line[1].replace(".", "0")
            if row["rating"] >= min_rating:
                _check(row, kind, f"{path}, line {number}")
                rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no puzzle with a rating of at least min_rating={min_rating}")
    return rows


def _check(row: dict[str, Any], kind: str, place: str) -> None:
    puzzle, answer = row["puzzle"], row["answer"]
    if kind == "sudoku":
        fits = answer.isdigit() and len(answer) == 81 and is_solved([int(number) for number in answer], 9)
        fits = fits and all(clue in ("0", number) for clue, number in zip(puzzle, answer))
    else:
        fits = math.isqrt(len(puzzle)) ** 2 == len(puzzle) and puzzle.count(START) == 1
        fits = fits and all((clue == WALL) == (cell == WALL) for clue, cell in zip(puzzle, answer))
    if not fits:
        raise ValueError(f"{place}: the answer is none to the puzzle: {puzzle} {answer}")


def _alike(row: dict[str, Any], kind: str) -> Any:
    if kind == "sudoku":
        return signature(tuple(map(int, row["answer"])), 9)
    walls, size = [cell == WALL for cell in row["puzzle"]], math.isqrt(len(row["puzzle"]))
    return bytes(min(turned(walls, size, symmetry) for symmetry in range(8)))


def _seen(row: dict[str, Any], kind: str, rng: random.Random) -> dict[str, Any]:
    if kind == "sudoku":
        return seen(row, 9, rng)
    size, symmetry = math.isqrt(len(row["puzzle"])), rng.randrange(8)
    return {**row, **{name: "".join(turned(row[name], size, symmetry)) for name in ("puzzle", "answer")}}
