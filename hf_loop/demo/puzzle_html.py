"""Draws what the page shows of a puzzle: boards, segment by segment."""

from html import escape

from ..tasks.maze import WALL, WAY
from ..tasks.puzzle_answers import BLANK
from ..tasks.sudoku_boards import BOXES
from .puzzle_reading import PuzzleReading, SegmentAnswer
from .style import note, section


# cells in a row of a puzzle that is no square
LINE = 30
STATUSES = {
    "valid": "solved: it keeps the given cells and follows the rules",
    "unsolved": "not solved: it breaks the rules or changes given cells",
    "unchecked": "not checked: the rules of this puzzle are not known",
}


def draw_answer(reading: PuzzleReading) -> str:
    """Draw the puzzle and the answer after the last segment, and say what it is worth."""
    last = reading.segments[-1]
    boards = [
        f'<figure class="large">{_board(reading, reading.cells)}<figcaption>the puzzle</figcaption></figure>',
        f'<figure class="large">{_board(reading, last.cells)}<figcaption>after segment {len(reading.segments)}'
        "</figcaption></figure>",
    ]
    halted = reading.halted
    halts = "The model would not halt so far." if halted is None else f"The model would halt after segment {halted}."
    halts = "The model has no halting head." if last.confidence is None else halts
    return section(
        f'<div class="boards">{"".join(boards)}</div>', note(f"The answer is {STATUSES[last.status]}. {halts}")
    )


def draw_segments(reading: PuzzleReading) -> str:
    """Draw the answer after every segment; what a segment changes is framed, and one that changes nothing is pale."""
    boards, before = [], None
    for number, segment in enumerate(reading.segments, start=1):
        kind = "small same" if segment.cells == before else "small"
        board, words = _board(reading, segment.cells, before), escape(_words(segment))
        boards.append(f'<figure class="{kind}">{board}<figcaption>segment {number}<br>{words}</figcaption></figure>')
        before = segment.cells
    what = "Bold: given cells. Framed: what a segment changed. Pale: a segment that changed nothing. Filled: a given "
    what += "cell that the answer has changed."
    return section(f'<div class="boards">{"".join(boards)}</div>', note(what))


def _words(segment: SegmentAnswer) -> str:
    words = ["solved" if segment.status == "valid" else segment.status]
    if segment.confidence is not None:
        words.append(f"confidence {segment.confidence:.2f}")
    if segment.halts:
        words.append("halts")
    return ", ".join(words)


def _board(reading: PuzzleReading, cells: str, before: str | None = None) -> str:
    """Draw cells as a table, as changed where they differ from those before."""
    width = reading.side or LINE
    rows = []
    for start in range(0, len(cells), width):
        row = [_cell(reading, place, cells[place], before) for place in range(start, min(start + width, len(cells)))]
        rows.append(f"<tr>{''.join(row)}</tr>")
    return f'<table class="board"><tbody>{"".join(rows)}</tbody></table>'


def _cell(reading: PuzzleReading, place: int, cell: str, before: str | None) -> str:
    clue, kinds = reading.cells[place], _borders(reading, place)
    if reading.rules == "maze":
        kinds += [kind for kind, character in (("wall", WALL), ("way", WAY)) if cell == character]
    if before is not None and cell != before[place]:
        kinds.append("changed")
    # the way is laid over free cells, which are not blanks
    is_given = clue != BLANK and not (reading.rules == "maze" and cell == WAY)
    if is_given:
        kinds.append("given" if cell == clue else "broken")
    # in a puzzle whose rules are not known a 0 may be a cell like any other
    is_blank = cell == BLANK and reading.rules is not None
    return f'<td class="{" ".join(kinds)}">{"" if is_blank else escape(cell)}</td>'


def _borders(reading: PuzzleReading, place: int) -> list[str]:
    """Return the thick borders of a cell at the edge of its box."""
    side = reading.side
    if reading.rules != "sudoku" or side is None:
        return []
    (height, width), (row, column) = BOXES[side], divmod(place, side)
    kinds = ["box-right"] if (column + 1) % width == 0 and column + 1 < side else []
    return kinds + (["box-bottom"] if (row + 1) % height == 0 and row + 1 < side else [])


__all__ = ["draw_answer", "draw_segments"]
