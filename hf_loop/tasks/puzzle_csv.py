"""Puzzles from local files in the format of Sudoku-Extreme and Maze-Hard, the data sets of HRM's and TRM's papers."""

import math
import os
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .grids import check_counts, grid_row, grid_tokenizer, in_turn
from .maze import MAZE_CHARACTERS, START, WALL, turned
from .sudoku import seen, sudoku_characters
from .sudoku_boards import BOXES, is_solved, signature


# what the cells of each kind may hold; those of other grids hold what their files do
CELLS = {"sudoku": sudoku_characters(9), "maze": MAZE_CHARACTERS, "grid": ""}
# of the rows that are made, by which those of an older version are not taken from the cache
VERSION = 2


@plain_counts
def puzzle_csv(
    num_train: int,
    num_test: int,
    train_file: str,
    test_file: str,
    kind: Literal["sudoku", "maze", "grid"] = "sudoku",
    *,
    num_puzzles: int | None = None,
    min_rating: int = 0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Read puzzles from two CSV files with a header and the columns source, puzzle, answer and rating.

    The published files are `train.csv` and `test.csv` of sapientinc/sudoku-extreme and of
    sapientinc/maze-30x30-hard-1k; blanks of a Sudoku are dots or zeros. Test puzzles whose solution (of a maze: whose
    walls) a symmetry turns into one that is trained on are left out. The rows are made once on a machine and kept in
    the cache of `datasets`. Only the puzzles that are drawn are checked.

    Args:
        num_train (`int`): training rows.
        num_test (`int`): test rows, drawn from the test file; all of it where it has fewer.
        train_file, test_file (`str` or `os.PathLike`): the files.
        kind (`str`): whether they hold `"sudoku"` of sides 4, 6 and 9, square mazes (`"maze"`), or other puzzles
            (`"grid"`): boards of any size and shape, one character a cell, whose answers are not checked and which
            have no symmetries. Boards of several sizes may be in one file.
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
    if kind not in CELLS:
        raise ValueError(f"kind must be sudoku, maze or grid, got {kind!r}")
    files = [Path(file) for file in (train_file, test_file)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
    characters = CELLS[kind] or _characters(files, min_rating)
    options = {
        "num_train": num_train,
        "num_test": num_test,
        "kind": kind,
        "num_puzzles": num_puzzles,
        "min_rating": min_rating,
        "seed": seed,
        "characters": characters,
        # `datasets` keeps the rows and finds them again by what is here
        "files": tuple((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files),
        "version": VERSION,
    }
    try:
        rows: Any = Dataset.from_generator(_generate_rows, gen_kwargs=options)
    except DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from error
    splits: Any = {"train": rows.select(range(num_train)), "test": rows.select(range(num_train, len(rows)))}
    return DatasetDict(splits), grid_tokenizer(characters)


def _generate_rows(
    num_train: int,
    num_test: int,
    kind: str,
    num_puzzles: int | None,
    min_rating: int,
    seed: int,
    characters: str,
    files: tuple[tuple[str, int, int], ...],
    version: int,
) -> Iterator[dict[str, Any]]:
    """Make the rows of training, and after them those of the test."""
    train, test = (PuzzleTable(file, kind, min_rating) for file, *_ in files)
    rng = random.Random(f"csv {seed}")
    chosen: Sequence[int] = range(len(train))
    if num_puzzles is not None and num_puzzles < len(train):
        chosen = rng.sample(chosen, num_puzzles)
    # puzzles beyond the rows are not trained on
    puzzles = [train[index] for index in chosen[:num_train]]
    trained_on = {_alike(row, kind) for row in puzzles}
    order = list(range(len(test)))
    rng.shuffle(order)
    for turn, row in in_turn(puzzles, num_train):
        yield grid_row(_seen(row, kind, rng) if turn else row, characters)
    held_back = (row for row in map(test.__getitem__, order) if _alike(row, kind) not in trained_on)
    num_found = 0
    for row in islice(held_back, num_test):
        yield grid_row(row, characters)
        num_found += 1
    if not num_found:
        raise ValueError(f"{files[1][0]} holds no puzzle that is not trained on")


def _characters(files: Sequence[Path], min_rating: int) -> str:
    """Return what the cells of puzzles and answers hold, in order."""
    found: set[str] = set()
    for file in files:
        table = PuzzleTable(str(file), "grid", min_rating).table
        for name in ("puzzle", "answer"):
            found.update(*table.column(name).to_pylist())
    return "".join(sorted(found))


class PuzzleTable:
    """The puzzles of a file with at least a rating. Millions of rows take seconds: only rows that are taken are
    checked.

    Args:
        path (`str`): the file.
        kind (`str`): `sudoku`, `maze` or `grid`.
        min_rating (`int`): the rating.

    Raises:
        ValueError: if the file has other columns or no such puzzle; when a row is taken, if its answer is wrong.
    """

    def __init__(self, path: str, kind: str, min_rating: int) -> None:
        self.path, self.kind = path, kind
        types = {"source": pa.string(), "puzzle": pa.string(), "answer": pa.string(), "rating": pa.int64()}
        try:
            table = pyarrow.csv.read_csv(
                path,
                read_options=pyarrow.csv.ReadOptions(skip_rows=1, column_names=list(types)),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types)[1:]),
            )
        except pa.ArrowInvalid as error:
            message = f"{path}: every line must be source, puzzle, answer and rating: {error}"
            raise ValueError(message if os.path.getsize(path) else f"{path} is empty") from error
        table = table.append_column("line", pa.array(range(2, len(table) + 2)))
        self.table = table.filter(pyarrow.compute.field("rating") >= min_rating)
        if not len(self.table):
            raise ValueError(f"{path} holds no puzzle with a rating of at least min_rating={min_rating}")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        (row,) = self.table.slice(index, 1).to_pylist()
        line = row.pop("line")
        if self.kind == "sudoku":
            row["puzzle"] = row["puzzle"].replace(".", "0")
        _check(row, self.kind, f"{self.path}, line {line}")
        return row


def _check(row: dict[str, Any], kind: str, place: str) -> None:
    puzzle, answer = row["puzzle"], row["answer"]
    side = math.isqrt(len(puzzle))
    has_boxes = side in BOXES and side * side == len(puzzle)
    if not puzzle or len(puzzle) != len(answer) or (kind == "sudoku" and not has_boxes):
        cells = "16, 36 or 81" if kind == "sudoku" else "equally many"
        raise ValueError(f"{place}: puzzle and answer must have {cells} cells, got {puzzle!r} and {answer!r}")
    fits = True
    if kind == "sudoku":
        fits = answer.isdecimal() and is_solved([int(number) for number in answer], side)
        fits = fits and all(clue in ("0", number) for clue, number in zip(puzzle, answer))
    elif kind == "maze":
        fits = side * side == len(puzzle) and puzzle.count(START) == 1
        fits = fits and all((clue == WALL) == (cell == WALL) for clue, cell in zip(puzzle, answer))
    if not fits:
        raise ValueError(f"{place}: the answer is none to the puzzle: {puzzle} {answer}")


def _alike(row: dict[str, Any], kind: str) -> Any:
    if kind == "grid":
        return row["answer"]
    size = math.isqrt(len(row["puzzle"]))
    if kind == "sudoku":
        return size, signature(tuple(map(int, row["answer"])), size)
    walls = [cell == WALL for cell in row["puzzle"]]
    return bytes(min(turned(walls, size, symmetry) for symmetry in range(8)))


def _seen(row: dict[str, Any], kind: str, rng: random.Random) -> dict[str, Any]:
    size = math.isqrt(len(row["puzzle"]))
    if kind == "sudoku":
        return seen(row, size, rng)
    if kind == "grid":
        return row
    symmetry = rng.randrange(8)
    return {**row, **{name: "".join(turned(row[name], size, symmetry)) for name in ("puzzle", "answer")}}
