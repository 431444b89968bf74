"""Says of an answer whether it solves its puzzle: by the known solution, or by the rules of Sudoku and of mazes."""

import math
from collections import deque
from collections.abc import Collection
from typing import Literal

from .maze import FREE, GOAL, MAZE_CHARACTERS, START, WALL, WAY
from .sudoku_boards import BOXES, is_solved


Rules = Literal["sudoku", "maze"]
Status = Literal["solved", "valid", "unsolved", "unchecked"]
BLANK = "0"


def find_rules(puzzle: str) -> Rules | None:
    """Tell by its cells which rules a puzzle has.

    Args:
        puzzle (`str`): its cells, row after row.

    Returns:
        `str` or `None`: `"sudoku"` of a square of side 4, 6 or 9 whose cells are the numbers up to the side, or blank;
        `"maze"` of a square with a start and a goal between walls and free cells; else `None`.
    """
    side = math.isqrt(len(puzzle))
    if side * side != len(puzzle):
        return None
    if side in BOXES and puzzle.isdecimal() and max(map(int, puzzle)) <= side:
        return "sudoku"
    is_maze = not set(puzzle) - set(MAZE_CHARACTERS) and puzzle.count(START) == puzzle.count(GOAL) == 1
    return "maze" if is_maze else None


def check_answer(puzzle: str, answer: str, solution: str | None = None, rules: Rules | None = None) -> Status:
    """Say what an answer is worth.

    Args:
        puzzle (`str`): the cells of the puzzle, row after row.
        answer (`str`): those of the answer.
        solution (`str`, *optional*): the known solution.
        rules (`str`, *optional*): the rules of the puzzle, see [`find_rules`].

    Returns:
        `str`: `"solved"` if the answer is the known solution; `"valid"` if it keeps all given cells and follows the
        rules; `"unchecked"` if neither a solution nor rules are known; else `"unsolved"`.
    """
    if answer == solution:
        return "solved"
    if rules is None:
        return "unchecked" if solution is None else "unsolved"
    follows = _solves_sudoku if rules == "sudoku" else _solves_maze
    return "valid" if follows(puzzle, answer) else "unsolved"


def _solves_sudoku(puzzle: str, answer: str) -> bool:
    keeps = all(clue in (BLANK, cell) for clue, cell in zip(puzzle, answer, strict=True))
    return keeps and answer.isdecimal() and is_solved([int(cell) for cell in answer], math.isqrt(len(answer)))


def _solves_maze(puzzle: str, answer: str) -> bool:
    # all but the way is as it was
    if answer.replace(WAY, FREE) != puzzle.replace(WAY, FREE):
        return False
    marked = {place for place, cell in enumerate(answer) if cell in (START, GOAL, WAY)}
    open_places = {place for place, cell in enumerate(puzzle) if cell != WALL}
    shortest = _num_steps(puzzle, open_places)
    # a shortest way, and nothing else marked
    return shortest is not None and _num_steps(puzzle, marked) == shortest == len(marked) - 1


def _num_steps(maze: str, places: Collection[int]) -> int | None:
    """Count the steps of a shortest way from the start to the goal over `places`, `None` if there is no way."""
    side, start, goal = math.isqrt(len(maze)), maze.index(START), maze.index(GOAL)
    steps, queue = {start: 0}, deque([start])
    while queue:
        place = queue.popleft()
        near = [place - side, place + side]
        near += [place - 1] if place % side else []
        near += [place + 1] if (place + 1) % side else []
        for other in near:
            if other in places and other not in steps:
                steps[other] = steps[place] + 1
                queue.append(other)
    return steps.get(goal)
