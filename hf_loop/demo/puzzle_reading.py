"""Everything that the page shows of one puzzle: the answer after every segment, and whether the model would halt."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..evaluation.puzzle_texts import Puzzle, cell_tokens, check_fit, fixed_num_cells
from ..models.evaluation_mode import evaluation_mode
from ..tasks.maze import MAZE_CHARACTERS, maze
from ..tasks.puzzle_answers import Rules, check_answer, find_rules
from ..tasks.sudoku import sudoku, sudoku_characters
from ..tasks.sudoku_boards import BOXES


# the side of example mazes for a model that takes any
MAZE_SIZE = 9


@dataclass
class SegmentAnswer:
    """What a model answers after a segment.

    Args:
        cells (`str`): the answer, row after row.
        status (`str`): what it is worth, see [`~tasks.puzzle_answers.check_answer`].
        halts (`bool`): whether the model would halt here.
        confidence (`float`, *optional*): the halting head's probability that the puzzle is solved.
    """

    cells: str
    status: str
    halts: bool
    confidence: float | None


@dataclass
class PuzzleReading:
    """What the page shows of a puzzle.

    Args:
        cells (`str`): the puzzle, row after row, blanks as the model writes them.
        rules (`str`, *optional*): its rules, if they are known.
        segments (`list[SegmentAnswer]`): the answer after every segment.
    """

    cells: str
    rules: Rules | None
    segments: list[SegmentAnswer]

    @property
    def side(self) -> int | None:
        """The side of the board, `None` if it is no square."""
        side = math.isqrt(len(self.cells))
        return side if side * side == len(self.cells) else None

    @property
    def halted(self) -> int | None:
        """The first segment after which the model would halt, from 1; `None` if there is none."""
        return next((index for index, segment in enumerate(self.segments, start=1) if segment.halts), None)


class PuzzleReader:
    """Solves puzzles for the page.

    Args:
        model (`HierarchicalForPuzzle`): the model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer, one token for each cell.
        name (`str`): what to call the model.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, name: str):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def read(
        self, text: str, num_segments: int | None = None, num_loops: int | None = None, puzzle_id: int | None = None
    ) -> PuzzleReading:
        """Solve a puzzle and keep every segment.

        Args:
            text (`str`): its cells row after row, on any number of lines.
            num_segments (`int`, *optional*): segments to run, by default the configuration's.
            num_loops (`int`, *optional*): slow cycles of a segment, by default the configuration's.
            puzzle_id (`int`, *optional*): index of its embedding.

        Raises:
            ValueError: if the text holds no cells or others than the model knows, or the model has no room for them.
        """
        puzzle = Puzzle("".join(text.splitlines()), None, puzzle_id, "the puzzle")
        if not puzzle.cells:
            raise ValueError("the puzzle is empty")
        tokens = cell_tokens([puzzle], self.tokenizer)
        check_fit([puzzle], self.model.config)
        inputs = {"input_ids": torch.tensor([[tokens[cell] for cell in puzzle.cells]], device=self.model.device)}
        if puzzle_id is not None:
            inputs["puzzle_ids"] = torch.tensor([puzzle_id], device=self.model.device)
        num_segments = self.model.config.max_segments if num_segments is None else num_segments
        with evaluation_mode(self.model):
            outputs = self.model(**inputs, num_segments=num_segments, num_loops=num_loops, output_segments=True)
        characters, rules = {token: character for character, token in tokens.items()}, find_rules(puzzle.cells)
        halt_logits: Any = outputs.segment_halt_logits or [None] * len(outputs.segment_logits)
        segments = []
        for logits, halting in zip(outputs.segment_logits, halt_logits, strict=True):
            # the token of padding is no character
            cells = "".join(characters.get(token, "?") for token in logits[0].argmax(dim=-1).tolist())
            halts = bool(torch.as_tensor(self.model.halts(halting)).all())
            confidence = halting[0, 0].sigmoid().item() if hasattr(self.model, "halt_head") else None
            segments.append(SegmentAnswer(cells, check_answer(puzzle.cells, cells, None, rules), halts, confidence))
        return PuzzleReading(puzzle.cells, rules, segments)

    def example(self, seed: int) -> str | None:
        """Make a puzzle of the kind that the model knows, told by its tokens; `None` if it is another kind."""
        known = {character for character in self.tokenizer.get_vocab() if len(character) == 1}
        num_cells = fixed_num_cells(self.model.config)
        if known == set(MAZE_CHARACTERS):
            side = MAZE_SIZE if num_cells is None else math.isqrt(num_cells)
            return maze(1, 1, side, seed=seed)[0]["test"][0]["puzzle"]
        for side in BOXES:
            if known == set(sudoku_characters(side)):
                return sudoku(1, 1, side, seed=seed)[0]["test"][0]["puzzle"]
        return None


__all__ = ["PuzzleReader", "PuzzleReading", "SegmentAnswer"]
