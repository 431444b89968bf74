"""Sudoku boards as tuples of numbers: boxes, solving, symmetries, and what boards that are alike have in common."""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product


# rows and columns of a box, by the side of the board
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
BLANK = 0

Board = tuple[int, ...]
# where every cell comes from, and what every number becomes
Symmetry = tuple[tuple[int, ...], tuple[int, ...]]


def check_size(size: int) -> None:
    """Refuse a board that there are no boxes for.

    Raises:
        ValueError: names the size.
    """
    if size not in BOXES:
        raise ValueError(f"size must be one of {', '.join(map(str, BOXES))}, got {size!r}")


@cache
def peers(size: int) -> tuple[tuple[int, ...], ...]:
    """Of every cell, the other cells of its row, its column and its box."""
    height, width = BOXES[size]
    cells = []
    for row, column in product(range(size), repeat=2):
        top, left = row // height * height, column // width * width
        same = {(row, other) for other in range(size)} | {(other, column) for other in range(size)}
        same |= {(top + i, left + j) for i, j in product(range(height), range(width))}
        cells.append(tuple(r * size + c for r, c in sorted(same - {(row, column)})))
    return tuple(cells)


def is_solved(board: Sequence[int], size: int) -> bool:
    """Whether every cell has a number and no number repeats in a row, a column or a box."""
    return all(
        1 <= number <= size and all(board[peer] != number for peer in peers(size)[cell])
        for cell, number in enumerate(board)
    )


class Search:
    """Fill a board by depth-first search, the cell with the fewest candidates first.

    Args:
        board (`Sequence[int]`): the clues, blanks as 0.
        size (`int`): the side of the board.
        rng (`random.Random`, *optional*): tries candidates in random order; in ascending order without it.

    Attributes:
        num_dead_ends (`int`): cells without a candidate that were met so far: how often it had to go back.
    """

    def __init__(self, board: Sequence[int], size: int, rng: random.Random | None = None) -> None:
        self.size, self.rng, self.num_dead_ends = size, rng, 0
        self._peers = peers(size)
        self._board = list(board)
        everything = (1 << size) - 1
        self._candidates = [everything] * len(self._board)
        for cell, number in enumerate(self._board):
            if number != BLANK:
                for peer in self._peers[cell]:
                    self._candidates[peer] &= ~(1 << (number - 1))

    def solutions(self) -> Iterator[Board]:
        """All solutions, in the order they are found."""
        blanks = [cell for cell, number in enumerate(self._board) if number == BLANK]
        if not blanks:
            yield tuple(self._board)
            return
        cell = min(blanks, key=lambda blank: self._candidates[blank].bit_count())
        numbers = [number for number in range(1, self.size + 1) if self._candidates[cell] >> (number - 1) & 1]
        if not numbers:
            self.num_dead_ends += 1
        if self.rng is not None:
            self.rng.shuffle(numbers)
        for number in numbers:
            changed = [peer for peer in self._peers[cell] if self._candidates[peer] >> (number - 1) & 1]
            self._board[cell] = number
            for peer in changed:
                self._candidates[peer] &= ~(1 << (number - 1))
            yield from self.solutions()
            self._board[cell] = BLANK
            for peer in changed:
                self._candidates[peer] |= 1 << (number - 1)


def has_one_solution(board: Sequence[int], size: int) -> bool:
    """Whether a puzzle has exactly one solution."""
    found = Search(board, size).solutions()
    return next(found, None) is not None and next(found, None) is None


def dead_ends(board: Sequence[int], size: int) -> int:
    """Dead ends of the search before it has the solution: a measure of difficulty that clues alone do not give."""
    search = Search(board, size)
    next(search.solutions(), None)
    return search.num_dead_ends


def random_solution(size: int, rng: random.Random) -> Board:
    """A filled board. Not uniform over all of them, since the search is greedy."""
    return next(Search([BLANK] * size * size, size, rng).solutions())


def dig(solution: Board, size: int, max_blanks: int, rng: random.Random) -> Board:
    """A puzzle: numbers are taken out in random order while one solution remains, at most `max_blanks` of them."""
    board = list(solution)
    cells = list(range(len(board)))
    rng.shuffle(cells)
    for cell in cells:
        if board.count(BLANK) == max_blanks:
            break
        board[cell] = BLANK
        if not has_one_solution(board, size):
            board[cell] = solution[cell]
    return tuple(board)


def random_symmetry(size: int, rng: random.Random) -> Symmetry:
    """Rename numbers, reorder and mix bands of rows and stacks of columns; turn over where boxes are square."""
    height, width = BOXES[size]
    rows, columns = _mixed(size, height, rng), _mixed(size, width, rng)
    numbers = [*range(1, size + 1)]
    rng.shuffle(numbers)
    is_turned = height == width and rng.random() < 0.5
    cells = tuple(c * size + r if is_turned else r * size + c for r, c in product(rows, columns))
    return cells, (BLANK, *numbers)


def apply_symmetry(symmetry: Symmetry, board: Sequence[int]) -> Board:
    """The board seen through a symmetry; a puzzle and its solution stay a pair."""
    cells, numbers = symmetry
    return tuple(numbers[board[cell]] for cell in cells)


def signature(solution: Board, size: int) -> tuple:
    """What all solutions that symmetries turn into each other have in common, and few others share.

    Two rows make a permutation, from the number in one to the number below it in the other. The lengths of its cycles
    do not change when numbers are renamed or columns reordered, so the lengths for all pairs of rows, those of one
    band apart from the others, and the same for columns, stay under every symmetry.
    """
    height, width = BOXES[size]
    rows = [solution[start : start + size] for start in range(0, size * size, size)]
    sides = [_side(rows, height), _side([tuple(column) for column in zip(*rows)], width)]
    # boards of square boxes may be turned over
    return tuple(sorted(sides) if height == width else sides)


def _side(lines: list[Board], step: int) -> tuple:
    pairs = [(i // step == j // step, _cycles(lines[i], lines[j])) for i in range(len(lines)) for j in range(i)]
    return tuple(sorted(pairs))


def _cycles(first: Board, second: Board) -> tuple[int, ...]:
    """Lengths of the cycles of the permutation that takes each number of `first` to the one of `second` below it."""
    follows, lengths = dict(zip(first, second)), []
    while follows:
        start, length = next(iter(follows)), 1
        number = follows.pop(start)
        while number != start:
            number, length = follows.pop(number), length + 1
        lengths.append(length)
    return tuple(sorted(lengths))


def _mixed(size: int, step: int, rng: random.Random) -> list[int]:
    groups = [list(range(start, start + step)) for start in range(0, size, step)]
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    return [line for group in groups for line in group]
