"""Sudoku, mazes and the published files: answers are right, difficulty is what was asked for, and nothing leaks."""

import importlib
import random
import time
from collections import Counter

import pytest
from datasets.exceptions import DatasetGenerationError
from transformers import AutoTokenizer

from hf_loop.tasks import maze, puzzle_csv, sudoku
from hf_loop.tasks.grids import grid_tokenizer
from hf_loop.tasks.maze import MAZE_CHARACTERS, dig_maze, is_test_layout, turned, ways_from
from hf_loop.tasks.sudoku import is_test_solution
from hf_loop.tasks.sudoku_boards import (
    Search,
    apply_symmetry,
    dead_ends,
    has_one_solution,
    is_solved,
    random_solution,
    random_symmetry,
    signature,
)


# a published example of a hard board (Arto Inkala, 2012), and an easy one of side 4
HARD = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
EASY = (1, 0, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 4)


def numbers(text):
    return tuple(map(int, text))


def test_the_search_finds_all_solutions_and_counts_dead_ends():
    assert len(list(Search([0] * 16, 4).solutions())) == len(set(Search([0] * 16, 4).solutions())) == 288
    (solution,) = Search(numbers(HARD), 9).solutions()
    assert is_solved(solution, 9) and all(clue in (0, number) for clue, number in zip(numbers(HARD), solution))
    assert has_one_solution(numbers(HARD), 9) and not has_one_solution([0] * 81, 9)
    assert dead_ends(numbers(HARD), 9) > 20
    assert dead_ends(solution, 9) == 0
    assert not is_solved([1] * 81, 9) and not is_solved([0] * 81, 9)
    assert not has_one_solution((1, 1, *EASY[2:]), 4)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_symmetries_keep_solutions_and_their_split(size):
    rng = random.Random(0)
    for _ in range(20):
        solution = random_solution(size, rng)
        seen = apply_symmetry(random_symmetry(size, rng), solution)
        assert is_solved(solution, size) and is_solved(seen, size)
        assert signature(seen, size) == signature(solution, size)
        assert is_test_solution(seen, size) == is_test_solution(solution, size)


def test_the_two_classes_of_side_four_are_on_two_sides():
    solutions = list(Search([0] * 16, 4).solutions())
    assert sorted(Counter(signature(solution, 4) for solution in solutions).values()) == [96, 192]
    assert sum(is_test_solution(solution, 4) for solution in solutions) == 96


@pytest.mark.parametrize(
    ("size", "options"), [(4, {}), (6, {"min_blanks": 10, "max_blanks": 20}), (9, {"max_blanks": 30})]
)
def test_sudoku_rows(size, options):
    splits, tokenizer = sudoku(40, 8, size, num_puzzles=10, **options)
    for name, is_test in (("train", False), ("test", True)):
        for row in splits[name]:
            puzzle, answer = numbers(row["puzzle"]), numbers(row["answer"])
            assert next(Search(puzzle, size).solutions()) == answer and has_one_solution(puzzle, size)
            assert is_test_solution(answer, size) == is_test
            assert row["blanks"] == puzzle.count(0)
            # of the puzzle before symmetries, which turn the search
            assert row["dead_ends"] == dead_ends(puzzle, size) or name == "train"
            assert options.get("min_blanks", 1) <= row["blanks"] <= options.get("max_blanks", 81)
            assert row["input_ids"] == [number + 1 for number in puzzle]
            assert row["labels"] == [number + 1 for number in answer]
            assert tokenizer(row["puzzle"])["input_ids"] == row["input_ids"]
            assert tokenizer.decode(row["labels"]) == row["answer"]
    assert len(set(splits["test"]["puzzle"])) == 8
    # ten puzzles, then these under symmetries
    assert len({signature(numbers(answer), size) for answer in splits["train"]["answer"]}) <= 10
    assert len(set(splits["train"]["puzzle"])) > 30
    again = sudoku(40, 8, size, num_puzzles=10, **options)[0]
    assert again["train"]["puzzle"] == splits["train"]["puzzle"]
    assert sudoku(5, 8, size, seed=1, **options)[0]["test"]["puzzle"] != splits["test"]["puzzle"]


def test_difficulty_by_search(monkeypatch):
    # the package has the function under the module's name
    monkeypatch.setattr(importlib.import_module("hf_loop.tasks.sudoku"), "MAX_TRIES", 100)
    splits, _ = sudoku(4, 2, 6, min_dead_ends=2)
    assert min([*splits["train"]["dead_ends"], *splits["test"]["dead_ends"]]) >= 2
    with pytest.raises(ValueError, match="100 puzzles of size=4 in a row had fewer than .*min_dead_ends=99"):
        sudoku(1, 1, 4, min_dead_ends=99)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5}, "size must be one of 4, 6, 9, got 5"),
        ({"num_puzzles": 0}, "num_puzzles must be an integer of at least 1, got 0"),
        ({"size": 4, "max_blanks": 17}, "min_blanks and max_blanks must lie between 1 and 16, got 1 and 17"),
        ({"min_dead_ends": -1}, "min_dead_ends must not be negative, got -1"),
    ],
)
def test_bad_options_of_sudoku_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sudoku(1, 1, **options)


@pytest.mark.parametrize(("size", "lengths"), [(7, (1, None)), (10, (12, 20)), (15, (30, None))])
def test_maze_rows(size, lengths):
    low, high = lengths
    splits, tokenizer = maze(30, 6, size, min_length=low, max_length=high, num_puzzles=6)
    for name, is_test in (("train", False), ("test", True)):
        for row in splits[name]:
            puzzle, answer = row["puzzle"], row["answer"]
            start, goal = puzzle.index("S"), puzzle.index("G")
            before, place, way = ways_from(puzzle, size, start), goal, []
            while place != start:
                way.append(place)
                place = before[place]
            assert len(way) == row["length"] and low <= row["length"] <= (high or size * size)
            assert {place for place, cell in enumerate(answer) if cell == "o"} == set(way) - {goal}
            assert [cell == "#" for cell in puzzle] == [cell == "#" for cell in answer]
            assert is_test_layout(puzzle, size) == is_test
            assert row["labels"] == [MAZE_CHARACTERS.index(cell) + 1 for cell in answer]
            assert tokenizer.decode(tokenizer(puzzle)["input_ids"]) == puzzle
    assert len(set(splits["test"]["puzzle"])) == 6
    assert 6 < len(set(splits["train"]["puzzle"])) <= 48


def test_a_maze_is_a_tree_and_its_symmetries_are_eight():
    cells = dig_maze(11, random.Random(0))
    free = [place for place, cell in enumerate(cells) if cell != "#"]
    edges = sum(cells[place + step] != "#" for place in free for step in (1, 11))
    assert edges == len(free) - 1 == len(ways_from(cells, 11, free[0])) - 1
    assert len({tuple(turned(range(9), 3, symmetry)) for symmetry in range(8)}) == 8
    assert len({is_test_layout("".join(turned(cells, 11, symmetry)), 11) for symmetry in range(8)}) == 1


def test_bad_options_of_mazes_are_refused():
    with pytest.raises(ValueError, match="size must be an integer of at least 5, got 4"):
        maze(1, 1, 4)
    with pytest.raises(ValueError, match="min_length and max_length must lie between 1 and 49, got 5 and 4"):
        maze(1, 1, 7, min_length=5, max_length=4)
    with pytest.raises(ValueError, match="mazes of size=7 in a row had no new way of min_length=40"):
        maze(1, 1, 7, min_length=40)


def write_csv(path, rows):
    path.write_text("source,question,answer,rating\n" + "".join(f"made here,{q},{a},{r}\n" for q, a, r in rows))
    return str(path)


def test_files_of_sudoku_extreme(tmp_path):
    rows = sudoku(4, 3, 9, max_blanks=40)[0]
    known = [(row["puzzle"].replace("0", "."), row["answer"], 5) for row in rows["train"]]
    renamed = known[0][1].translate(str.maketrans("123456789", "234567891"))
    leaking = ("." + renamed[1:], renamed, 9)
    train = write_csv(tmp_path / "train.csv", known)
    test = write_csv(
        tmp_path / "test.csv", [*[(r["puzzle"], r["answer"], i) for i, r in enumerate(rows["test"])], leaking]
    )
    splits, tokenizer = puzzle_csv(10, 50, train, test)
    assert len(splits["train"]) == 10 and splits["train"]["puzzle"][:4] == [row["puzzle"] for row in rows["train"]]
    assert len(set(splits["train"]["puzzle"])) == 10
    for row in splits["train"]:
        assert is_solved(numbers(row["answer"]), 9)
        assert row["input_ids"] == [int(cell) + 1 for cell in row["puzzle"]]
    # the renamed solution would have been known
    assert sorted(splits["test"]["answer"]) == sorted(row["answer"] for row in rows["test"])
    assert len(tokenizer) == 11
    assert set(puzzle_csv(1, 50, train, test, min_rating=2)[0]["test"]["rating"]) == {2}
    assert len(set(puzzle_csv(9, 1, train, test, num_puzzles=1)[0]["train"]["answer"])) == 9


def test_files_of_millions_of_rows_are_read_once_and_quickly(tmp_path, monkeypatch):
    (row,) = sudoku(1, 1, 9, max_blanks=40)[0]["train"]
    (other,) = sudoku(1, 1, 9, max_blanks=40, seed=1)[0]["test"]
    path = tmp_path / "train.csv"
    line = f"made here,{row['puzzle']},{row['answer']},0\n"
    path.write_text("source,question,answer,rating\n" + line * 200_000)
    test = write_csv(tmp_path / "test.csv", [(other["puzzle"], other["answer"], 1)])
    start = time.process_time()
    splits = puzzle_csv(1000, 10, path, test, num_puzzles=1000)[0]
    # each line by itself took four minutes
    assert time.process_time() - start < 20
    assert (len(splits["train"]), len(splits["test"])) == (1000, 1)
    # the rows of the first process serve the others
    module = importlib.import_module("hf_loop.tasks.puzzle_csv")
    monkeypatch.setattr(module, "PuzzleTable", None)
    again = puzzle_csv(1000, 10, path, test, num_puzzles=1000)[0]
    assert again["train"][:] == splits["train"][:]
    # but not where the file has changed
    path.write_text("source,question,answer,rating\n" + line * 2)
    with pytest.raises(DatasetGenerationError):
        puzzle_csv(1000, 10, path, test, num_puzzles=1000)


def test_files_of_maze_hard(tmp_path):
    rows = maze(3, 2, 10)[0]
    files = [
        write_csv(tmp_path / f"{name}.csv", [(row["puzzle"], row["answer"], row["length"]) for row in rows[name]])
        for name in ("train", "test")
    ]
    splits, tokenizer = puzzle_csv(12, 2, *files, kind="maze")
    assert splits["train"]["puzzle"][:3] == rows["train"]["puzzle"]
    assert sorted(splits["test"]["puzzle"]) == sorted(rows["test"]["puzzle"])
    assert len(tokenizer) == 6


def test_files_of_boards_of_several_sizes(tmp_path):
    rows = [sudoku(2, 2, size)[0] for size in (4, 6)]
    files = []
    for name in ("train", "test"):
        pairs = [(row["puzzle"], row["answer"], 1) for splits in rows for row in splits[name]]
        files.append(write_csv(tmp_path / f"{name}.csv", pairs))
    splits, tokenizer = puzzle_csv(12, 9, *files)
    assert sorted({len(ids) for ids in splits["train"]["input_ids"]}) == [16, 36]
    assert all(is_solved(numbers(answer), 4 if len(answer) == 16 else 6) for answer in splits["train"]["answer"])
    assert (len(splits["test"]), len(tokenizer)) == (4, 11)


def test_files_of_boards_that_are_neither_square_nor_sudoku(tmp_path):
    train = write_csv(tmp_path / "train.csv", [("ab?c?d", "abbccd", 0), ("a???", "abab", 0)])
    test = write_csv(tmp_path / "test.csv", [("??", "dd", 0), ("?b?b", "abab", 0)])
    splits, tokenizer = puzzle_csv(3, 5, train, test, kind="grid")
    assert splits["train"]["puzzle"] == ["ab?c?d", "a???", "ab?c?d"]
    # the other test answer is trained on
    assert splits["test"]["answer"] == ["dd"]
    assert tokenizer.get_vocab() == {"<pad>": 0, "?": 1, "a": 2, "b": 3, "c": 4, "d": 5}
    assert splits["train"]["labels"][1] == [2, 3, 2, 3]
    with pytest.raises(ValueError, match="line 2: puzzle and answer must have equally many cells, got 'ab' and 'abc'"):
        puzzle_csv(1, 1, write_csv(tmp_path / "bad.csv", [("ab", "abc", 0)]), test, kind="grid")


def test_files_of_another_form_are_refused(tmp_path):
    good = write_csv(tmp_path / "good.csv", [(HARD, "".join(map(str, next(Search(numbers(HARD), 9).solutions()))), 1)])
    for rows, message in (
        ([(HARD, "1" * 81, 1)], "line 2: the answer is none to the puzzle"),
        ([(HARD, "12", 1)], "line 2: puzzle and answer must have 16, 36 or 81 cells, got .* and '12'"),
        ([("1234", "1234", 1)], "line 2: puzzle and answer must have 16, 36 or 81 cells, got '1234'"),
        (
            [(HARD, f"12,{HARD}", 1)],
            "bad.csv: every line must be source, puzzle, answer and rating: .*Expected 4 columns",
        ),
        ([(HARD, HARD, "hard")], "bad.csv: every line must be source, puzzle, answer and rating: .*'hard'"),
        ([], "holds no puzzle with a rating of at least min_rating=0"),
    ):
        with pytest.raises(ValueError, match=message):
            puzzle_csv(1, 1, good, write_csv(tmp_path / "bad.csv", rows))
    with pytest.raises(ValueError, match="no such file"):
        puzzle_csv(1, 1, good, "nowhere.csv")
    with pytest.raises(ValueError, match="kind must be sudoku, maze or grid, got 'chess'"):
        puzzle_csv(1, 1, good, good, kind="chess")
    with pytest.raises(ValueError, match="answer is none to the puzzle"):
        puzzle_csv(1, 1, good, good, kind="maze")


def test_the_tokenizer_is_saved_with_the_model(tmp_path):
    tokenizer = grid_tokenizer("# SGo")
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("S #G")["input_ids"] == [3, 2, 1, 4]
    assert loaded.pad_token_id == 0
    with pytest.raises(ValueError, match="characters must be distinct"):
        grid_tokenizer("aa")
