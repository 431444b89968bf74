"""`hf-loop solve`: solve puzzles from a file, and say of every answer what it is worth."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..paths import check_new_file, no_such
from .load import default_device, load_config, load_puzzle_model, load_tokenizer
from .options import Quiet
from .output import quiet_libraries


if TYPE_CHECKING:
    from ..evaluation.puzzle_texts import Puzzle

# answers of so few puzzles are printed, too
NUM_PRINTED = 10
# statuses in the order they are counted in
STATUSES = ("solved", "valid", "unsolved", "unchecked")


def solve(
    model: Annotated[str, typer.Argument(help="A puzzle model: a folder, or a repository on the Hub.")],
    file: Annotated[Path, typer.Argument(help="The puzzles, in the format above.")],
    output: Annotated[
        Path | None, typer.Option(help="Where the answers go, as CSV.", show_default="FILE with .answers.csv")
    ] = None,
    segments: Annotated[
        int | None, typer.Option(min=1, help="Segments to run.", show_default="the model's own")
    ] = None,
    loops: Annotated[
        int | None, typer.Option(min=1, help="Slow cycles of a segment.", show_default="the model's own")
    ] = None,
    halt: Annotated[bool, typer.Option("--halt", help="Read each answer where the model halts.")] = False,
    rules: Annotated[
        Literal["auto", "sudoku", "maze", "none"],
        typer.Option(help="The rules that answers are checked by; auto tells Sudoku and mazes by their cells."),
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Puzzles in one pass.")] = 64,
    quiet: Quiet = False,
) -> None:
    """Solve puzzles from a file and check the answers.

    FILE has one puzzle a line: its cells row after row, one character each, as the model's tokenizer knows them
    (Sudoku: digits, blanks as 0 or a dot; mazes: # wall, space, S start, G goal, o way). A .csv file has a header, a
    column puzzle and, where known, the columns solution and puzzle_id. Puzzles may be of several sizes.

    An answer is solved if it is the known solution, valid if it keeps the given cells and follows the rules, unchecked
    if neither solution nor rules are known, and else unsolved.
    """
    if not file.is_file():
        raise ValueError(no_such("file", file))
    answers_file = output or file.with_name(f"{file.stem}.answers.csv")
    if answers_file.resolve() == file.resolve():
        raise ValueError(f"--output: {answers_file} holds the puzzles")
    check_new_file(answers_file, "--output")
    if quiet:
        quiet_libraries()

    from ..evaluation.puzzle_texts import cell_tokens, check_fit
    from ..tasks.puzzle_answers import check_answer

    puzzles = _read_puzzles(file)
    config = load_config(model)
    if config.model_type != "hierarchical_puzzle":
        raise ValueError(f"{model} is a {config.model_type} model; solve takes puzzle models, generate others")
    tokens = cell_tokens(puzzles, load_tokenizer(model))
    check_fit(puzzles, config)
    rules_of_puzzles = _find_rules(puzzles, rules)

    options = {"num_segments": segments, "num_loops": loops, "halt": halt}
    answers, num_segments = _solve(model, puzzles, tokens, batch_size, quiet, options)
    statuses: list[str] = [
        check_answer(puzzle.cells, answer, puzzle.solution, kind)
        for puzzle, answer, kind in zip(puzzles, answers, rules_of_puzzles, strict=True)
    ]
    _write(answers_file, puzzles, answers, statuses, num_segments)
    if len(puzzles) <= NUM_PRINTED:
        for answer, status in zip(answers, statuses, strict=True):
            print(f"{status:9} {answer}")
    counts = Counter(statuses)
    print(f"{', '.join(f'{counts[name]} {name}' for name in STATUSES if counts[name])} of {len(puzzles)} puzzles")
    print(answers_file)


def _read_puzzles(file: Path) -> "list[Puzzle]":
    from ..evaluation.puzzle_texts import Puzzle
    from ..files import read_text

    text = read_text(file)
    if file.suffix.lower() == ".csv":
        try:
            puzzles = _read_csv(text, file)
        except csv.Error as error:
            raise ValueError(f"{file} is no CSV: {error}") from error
    else:
        # not at other line ends than these, which `splitlines` knows, too
        lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), 1)
        puzzles = [Puzzle(line, None, None, f"{file}, line {number}") for number, line in lines if line]
    if not puzzles:
        raise ValueError(f"{file} holds no puzzle")
    return puzzles


def _read_csv(text: str, file: Path) -> "list[Puzzle]":
    from ..evaluation.puzzle_texts import Puzzle

    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if "puzzle" not in columns:
        raise ValueError(f"{file} must have a column puzzle, got {', '.join(columns) or 'none'}")
    puzzles = []
    for row in reader:
        place = f"{file}, line {reader.line_num}"
        cells, solution, puzzle_id = row["puzzle"], row.get("solution") or None, row.get("puzzle_id") or None
        if not cells:
            raise ValueError(f"{place}: the puzzle has no cells")
        if solution is not None and len(solution) != len(cells):
            raise ValueError(f"{place}: the solution has {len(solution)} cells, and the puzzle {len(cells)}")
        if puzzle_id is not None and not (puzzle_id.isascii() and puzzle_id.isdigit()):
            raise ValueError(f"{place}: puzzle_id must be an integer from 0, got {puzzle_id!r}")
        puzzles.append(Puzzle(cells, solution, None if puzzle_id is None else int(puzzle_id), place))
    return puzzles


def _find_rules(puzzles: "list[Puzzle]", rules: str) -> list[Any]:
    from ..tasks.puzzle_answers import find_rules

    found = [find_rules(puzzle.cells) for puzzle in puzzles]
    for puzzle, kind in zip(puzzles, found, strict=True):
        if rules not in ("auto", "none", kind):
            raise ValueError(f"--rules: {puzzle.place} is no {rules} by its cells")
    return [None] * len(puzzles) if rules == "none" else found


def _solve(
    model: str,
    puzzles: "list[Puzzle]",
    tokens: dict[str, int],
    batch_size: int,
    quiet: bool,
    options: dict[str, Any],
) -> tuple[list[str], list[int]]:
    """Return the answer to every puzzle, and the number of segments after which it was read."""
    import torch
    from tqdm.auto import tqdm

    from ..models.puzzle_inputs import pad_puzzles

    solver: Any = load_puzzle_model(model).to(default_device())
    characters = {token: character for character, token in tokens.items()}
    answers, num_segments = [], []
    with tqdm(total=len(puzzles), disable=quiet, desc="solving") as bar:
        for start in range(0, len(puzzles), batch_size):
            batch = puzzles[start : start + batch_size]
            cells, mask = pad_puzzles([[tokens[cell] for cell in puzzle.cells] for puzzle in batch])
            ids = None
            if any(puzzle.puzzle_id is not None for puzzle in batch):
                ids = torch.tensor([puzzle.puzzle_id or 0 for puzzle in batch], device=solver.device)
            solution = solver.solve(
                cells.to(solver.device),
                puzzle_ids=ids,
                attention_mask=None if mask is None else mask.to(solver.device),
                **options,
            )
            for puzzle, row in zip(batch, solution.tokens.tolist(), strict=True):
                # the token of padding is no character
                answers.append("".join(characters.get(token, "?") for token in row[: len(puzzle.cells)]))
            num_segments += solution.segments.tolist()
            bar.update(len(batch))
    return answers, num_segments


def _write(
    path: Path, puzzles: "list[Puzzle]", answers: list[str], statuses: list[str], num_segments: list[int]
) -> None:
    from ..files import write_text

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("puzzle", "answer", "status", "segments"))
    for puzzle, *columns in zip(puzzles, answers, statuses, num_segments, strict=True):
        writer.writerow((puzzle.cells, *columns))
    write_text(path, text.getvalue())
