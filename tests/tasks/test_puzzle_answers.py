"""What answers to puzzles are worth: by the known solution, and by the rules of Sudoku and mazes."""

import pytest

from hf_loop.tasks import maze, sudoku
from hf_loop.tasks.puzzle_answers import check_answer, find_rules


SOLUTION = "1234341221434321"
PUZZLE = "1034041021400021"
# two ways around a block, of which the upper one is as long as the lower one
MAZE = "########S   G## ### ##     ########"


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_sudoku_is_told_by_its_cells_and_solved_by_its_solution(size):
    for row in sudoku(1, 2, size=size)[0]["test"]:
        assert find_rules(row["puzzle"]) == "sudoku"
        assert check_answer(row["puzzle"], row["answer"], row["answer"]) == "solved"
        assert check_answer(row["puzzle"], row["answer"], rules="sudoku") == "valid"
        assert check_answer(row["puzzle"], row["puzzle"], row["answer"], "sudoku") == "unsolved"


def test_an_answer_that_changes_a_given_cell_is_none():
    # numbers 1 and 2 exchanged: a board that follows the rules, of another puzzle
    other = SOLUTION.translate(str.maketrans("12", "21"))
    assert check_answer("0" * 16, other, rules="sudoku") == "valid"
    assert check_answer(PUZZLE, other, rules="sudoku") == "unsolved"
    assert check_answer(PUZZLE, SOLUTION, rules="sudoku") == "valid"
    assert check_answer(PUZZLE, "?" * 16, rules="sudoku") == "unsolved"
    # the rules decide, where another solution than the known one is right
    assert check_answer("0" * 16, other, SOLUTION, "sudoku") == "valid"


def test_mazes():
    for row in maze(1, 4, size=9)[0]["test"]:
        assert find_rules(row["puzzle"]) == "maze"
        assert check_answer(row["puzzle"], row["answer"], rules="maze") == "valid"
        assert check_answer(row["puzzle"], row["answer"].replace("o", " ", 1), rules="maze") != "valid"
        assert check_answer(row["puzzle"], row["puzzle"].replace(" ", "o"), rules="maze") == "unsolved"
        assert check_answer(row["puzzle"], row["answer"].replace("#", " ", 1), rules="maze") == "unsolved"


def test_a_maze_with_two_shortest_ways_has_two_answers():
    open_maze = "######S  ## # ##  G######"
    for answer in ("######Soo## #o##  G######", "######S  ##o# ##ooG######"):
        assert check_answer(open_maze, answer, rules="maze") == "valid"
    both = "######Soo##o#o##ooG######"
    assert check_answer(open_maze, both, rules="maze") == "unsolved"
    # without a wall around it, a way does not go on at the other side
    assert check_answer("S G      ", "SoG      ", rules="maze") == "valid"
    assert check_answer(" S G     ", " S G     ", rules="maze") == "unsolved"


def test_other_puzzles_are_compared_with_their_solution_only():
    for puzzle in ("123456", "abcd", "1234567890123456", MAZE, "###S", ""):
        assert find_rules(puzzle) is None
    assert check_answer("abcd", "abce", "abce") == "solved"
    assert check_answer("abcd", "abce", "abcf") == "unsolved"
    assert check_answer("abcd", "abce") == "unchecked"
