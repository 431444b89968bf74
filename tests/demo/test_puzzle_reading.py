"""Every segment on the page is the answer that `solve` reads after it, and boards say what is given and changed."""

import re

import pytest

from hf_loop.demo.puzzle_html import draw_answer, draw_segments
from hf_loop.demo.puzzle_page import as_lines, read_puzzle
from hf_loop.demo.puzzle_reading import PuzzleReader, PuzzleReading, SegmentAnswer
from hf_loop.tasks import maze, sudoku
from hf_loop.tasks.puzzle_answers import find_rules

from .models import PUZZLE_TOKENIZER, make_solver


PUZZLE = "1034\n04.1\n0214\n0002"
CELLS = "1034040102140002"


def make_reader(**fields):
    return PuzzleReader(make_solver(**fields), PUZZLE_TOKENIZER, "solver")


@pytest.mark.parametrize("halting", ["binary", "q_learning", "none"])
def test_segments_are_what_solve_reads_after_them(halting):
    reader = make_reader(halting=halting)
    reading = reader.read(PUZZLE, num_segments=5, num_loops=2)
    assert (reading.cells, reading.rules, reading.side) == (CELLS, "sudoku", 4)
    ids = PUZZLE_TOKENIZER(CELLS, return_tensors="pt")["input_ids"]
    for count, segment in enumerate(reading.segments, start=1):
        solution = reader.model.solve(ids, num_segments=count, num_loops=2)
        expected = PUZZLE_TOKENIZER.decode(solution.tokens[0]).replace("<pad>", "?")
        assert segment.cells == expected
        assert (segment.confidence is None) == (halting == "none")
        assert segment.halts == bool(reader.model.halts(solution.halt_logits) if halting != "none" else False)
    assert len({segment.cells for segment in reading.segments}) > 1


def test_the_default_is_the_configurations():
    assert len(make_reader().read(PUZZLE).segments) == 4


def test_examples_are_of_the_kind_that_the_model_knows():
    reader = make_reader()
    example = reader.example(3)
    assert find_rules(example) == "sudoku" and len(example) == 16
    assert reader.example(4) != example
    mazes = PuzzleReader(make_solver(), maze(1, 1)[1], "solver").example(0)
    assert find_rules(mazes) == "maze"
    fixed = make_solver(token_mixer="mlp", max_position_embeddings=49, mixer_intermediate_size=8)
    assert len(PuzzleReader(fixed, maze(1, 1)[1], "solver").example(0)) == 49
    nine = PuzzleReader(make_solver(), sudoku(1, 1, size=6)[1], "solver").example(0)
    assert len(nine) == 36
    # the kind of a tokenizer with other cells is not known
    from hf_loop.tasks.grids import grid_tokenizer

    assert PuzzleReader(make_solver(), grid_tokenizer("ab"), "solver").example(0) is None


FAULTS = {
    "": "the puzzle is empty",
    "12x4": "the puzzle: cells must hold one of",
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_does_not_fit_is_said_on_the_page(text):
    answer, boards = read_puzzle(make_reader(), text, 4, 1, None)
    assert f'<p class="fault">{FAULTS[text]}' in answer and boards == ""


def test_a_puzzle_of_another_size_is_refused():
    fixed = make_reader(token_mixer="mlp", max_position_embeddings=16, mixer_intermediate_size=8)
    assert "made for puzzles of 16 cells, got 4" in read_puzzle(fixed, "1200", 4, 1, None)[0]


def cells_of(html, kind):
    """The texts of the cells of a kind."""
    return [text for kinds, text in re.findall(r'<td class="([^"]*)">(.*?)</td>', html) if kind in kinds.split()]


def test_boards_mark_what_is_given_changed_and_broken():
    answers = ["1234341221434321", "1234341221434312", "2234341221434321"]
    confidences = (0.1, 0.9, 0.9)
    segments = [
        SegmentAnswer(cells, "valid" if index == 0 else "unsolved", index == 1, confidence)
        for index, (cells, confidence) in enumerate(zip(answers, confidences))
    ]
    reading = PuzzleReading("1000000000000001", "sudoku", segments)
    html = draw_segments(reading)
    assert html.count('<table class="board">') == 3
    first, second, third = html.split("<figure")[1:]
    assert cells_of(first, "given") == ["1", "1"] and cells_of(first, "broken") == []
    assert cells_of(first, "changed") == [] and cells_of(second, "changed") == ["1", "2"]
    assert cells_of(second, "broken") == ["2"] and cells_of(third, "broken") == ["2"]
    assert cells_of(third, "changed") == ["2", "2", "1"]
    assert "solved, confidence 0.10" in first and "halts" in second and "halts" not in third
    assert "halt after segment 2" in draw_answer(reading)
    # boxes of two by two
    assert cells_of(first, "box-right") == ["2", "4", "1", "3"]
    assert cells_of(first, "box-bottom") == ["3", "4", "1", "2"]


def test_a_maze_has_walls_and_a_way():
    board = draw_segments(PuzzleReading("####SG###", "maze", [SegmentAnswer("####So###", "unsolved", False, None)]))
    assert len(cells_of(board, "wall")) == 7 and cells_of(board, "way") == ["o"]


def test_a_zero_is_a_blank_only_where_the_rules_are_known():
    for cells, rules, shown in (
        ("1020", None, ["1", "0", "2", "0"]),
        ("1020" * 4, "sudoku", ["1", "", "2", ""] * 4),
    ):
        reading = PuzzleReading(cells, rules, [SegmentAnswer(cells, "unchecked", False, None)])
        assert re.findall("<td[^>]*>(.*?)</td>", draw_segments(reading)) == shown


def test_a_model_without_a_halting_head_is_not_said_to_go_on():
    segment = SegmentAnswer("12", "unchecked", False, None)
    assert "no halting head" in draw_answer(PuzzleReading("10", None, [segment]))
    segment = SegmentAnswer("12", "unchecked", False, 0.2)
    assert "would not halt so far" in draw_answer(PuzzleReading("10", None, [segment]))


def test_a_segment_that_changes_nothing_is_pale():
    same = SegmentAnswer("12", "unchecked", False, None)
    html = draw_segments(PuzzleReading("10", None, [same, same]))
    assert html.count("small same") == 1


def test_cells_are_written_row_by_row():
    assert as_lines("123456789") == "123\n456\n789"
    assert as_lines("12345") == "12345" and as_lines("") == ""
