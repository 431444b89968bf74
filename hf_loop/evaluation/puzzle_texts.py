"""Puzzles as text, one character for each cell: the tokens of their cells, and whether a model has room for them."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass
class Puzzle:
    """A puzzle as a person writes it.

    Args:
        cells (`str`): its cells, row after row.
        solution (`str`, *optional*): those of its solution.
        puzzle_id (`int`, *optional*): index of its embedding.
        place (`str`): where it comes from, for messages.
    """

    cells: str
    solution: str | None
    puzzle_id: int | None
    place: str


def cell_tokens(puzzles: Iterable[Puzzle], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the token of every character that cells may hold, and write blanks of the puzzles as the model does.

    Args:
        puzzles (`Iterable[Puzzle]`): the puzzles; a dot becomes `0` where the model knows no dot.
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.

    Raises:
        ValueError: if a cell holds another character; the message names the puzzle.
    """
    tokens = {character: token for character, token in tokenizer.get_vocab().items() if len(character) == 1}
    for puzzle in puzzles:
        if "." not in tokens and "0" in tokens:
            puzzle.cells = puzzle.cells.replace(".", "0")
        unknown = sorted(set(puzzle.cells) - tokens.keys())
        if unknown:
            raise ValueError(
                f"{puzzle.place}: cells must hold one of {''.join(sorted(tokens))!r}, got {''.join(unknown)!r}"
            )
    return tokens


def fixed_num_cells(config: PreTrainedConfig) -> int | None:
    """Return the number of cells that every puzzle of a model must have; only a mixer over positions has one."""
    if getattr(config.backbone_config, "token_mixer", None) != "mlp":
        return None
    return config.max_position_embeddings - config.num_puzzle_tokens


def check_fit(puzzles: Iterable[Puzzle], config: PreTrainedConfig) -> None:
    """Refuse puzzles that a model has no cells or no embedding for.

    Raises:
        ValueError: if there is one; the message names it.
    """
    num_cells = fixed_num_cells(config)
    for puzzle in puzzles:
        if num_cells is not None and len(puzzle.cells) != num_cells:
            raise ValueError(
                f"{puzzle.place}: the model was made for puzzles of {num_cells} cells, got {len(puzzle.cells)}"
            )
        if puzzle.puzzle_id is not None and puzzle.puzzle_id >= config.num_puzzles:
            raise ValueError(
                f"{puzzle.place}: puzzle_id must be below {config.num_puzzles}, the number of the model's puzzle "
                f"embeddings, got {puzzle.puzzle_id}"
            )


__all__ = ["Puzzle", "cell_tokens", "check_fit", "fixed_num_cells"]
