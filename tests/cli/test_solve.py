"""`hf-loop solve`: what files it reads, what it writes, and what it refuses."""

import csv

import pytest
import torch

from hf_loop import HierarchicalForPuzzle, HierarchicalPuzzleConfig
from hf_loop.tasks import sudoku


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_loops": 1,
    "low_cycles": 1,
    "max_segments": 2,
}
PUZZLES = ["1034041021400021", "0000341221434321", "1.3434.22143.321", "123412"]


def make_folder(folder, **fields):
    tokenizer = sudoku(1, 1, size=4)[1]
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": len(tokenizer), "num_puzzles": 2, "num_puzzle_tokens": 1, **fields}
    HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset("trm", **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def puzzle_folder(tmp_path):
    return make_folder(tmp_path / "solver")


def write(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def answers(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_lines_of_several_sizes(hf_loop, puzzle_folder, tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*PUZZLES, "", ""]).encode())
    code, out, err = hf_loop("solve", puzzle_folder, file, "--batch-size", 3)
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "mine.answers.csv")), err
    rows = answers(tmp_path / "mine.answers.csv")
    assert [row["puzzle"] for row in rows] == [text.replace(".", "0") for text in PUZZLES]
    assert [len(row["answer"]) for row in rows] == [16, 16, 16, 6]
    assert {row["segments"] for row in rows} == {"2"}
    # six cells are no Sudoku, and what an untrained model answers is none
    assert [row["status"] for row in rows] == ["unsolved"] * 3 + ["unchecked"]
    assert out.splitlines()[-2] == "3 unsolved, 1 unchecked of 4 puzzles"
    assert "unsolved  " + rows[0]["answer"] in out


def test_a_table_with_solutions_and_ids(hf_loop, puzzle_folder, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(PUZZLES[:2]))
    hf_loop("solve", puzzle_folder, lines, "--segments", 1, "--loops", 2, "--quiet")
    first = answers(tmp_path / "lines.answers.csv")
    solutions = [first[0]["answer"], "1" * 16]
    table = write(
        tmp_path / "table.csv",
        [("source", "puzzle", "solution", "puzzle_id"), *(("x", *row, 0) for row in zip(PUZZLES, solutions))],
    )
    out = tmp_path / "elsewhere.csv"
    code, text, err = hf_loop("solve", puzzle_folder, table, "--segments", 1, "--loops", 2, "--output", out)
    assert code == 0, err
    assert [row["status"] for row in answers(out)] == ["solved", "unsolved"]
    assert [row["answer"] for row in answers(out)] == [row["answer"] for row in first]
    assert "1 solved, 1 unsolved of 2 puzzles" in text


def test_many_puzzles_are_counted_and_not_listed(hf_loop, puzzle_folder, tmp_path):
    file = tmp_path / "many.txt"
    file.write_text("\n".join(PUZZLES[:1] * 12))
    code, out, _ = hf_loop("solve", puzzle_folder, file, "--rules", "none", "--halt")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "12 unchecked of 12 puzzles" in out


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "12x4", [], "a.txt, line 1: cells must hold one of '01234', got 'x'"),
        ("a.txt", "\n\n", [], "a.txt holds no puzzle"),
        ("a.csv", "", [], "a.csv must have a column puzzle, got none"),
        ("a.csv", "question,answer\n1,2\n", [], "a.csv must have a column puzzle, got question, answer"),
        ("a.csv", "puzzle,solution\n1234,123\n", [], "a.csv, line 2: the solution has 3 cells, and the puzzle 4"),
        ("a.csv", "puzzle,puzzle_id\n1234,x\n", [], "a.csv, line 2: puzzle_id must be an integer from 0, got 'x'"),
        (
            "a.csv",
            "puzzle,puzzle_id\n1234,2\n",
            [],
            "a.csv, line 2: puzzle_id must be below 2, the",
        ),
        ("a.csv", "puzzle,puzzle_id\n,0\n", [], "a.csv, line 2: the puzzle has no cells"),
        ("a.csv", 'puzzle\n"' + "1" * 200_000 + '"\n', [], "a.csv is no CSV: field larger than field limit"),
        ("a.txt", "1234", ["--rules", "sudoku"], "--rules: "),
        ("a.txt", "1234", ["--output", "no/where.csv"], "--output: there is no folder no"),
    ],
)
def test_what_is_refused_is_one_line(hf_loop, puzzle_folder, tmp_path, name, content, options, message):
    file = tmp_path / name
    file.write_text(content)
    code, out, err = hf_loop("solve", puzzle_folder, file, *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not list(tmp_path.glob("*.answers.csv"))


def test_other_models_and_files_are_refused(hf_loop, puzzle_folder, plain_folder, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1234")
    for arguments, message in (
        ((plain_folder, file), "is a llama model; solve takes puzzle models, generate others"),
        ((puzzle_folder, tmp_path / "b.txt"), "there is no file"),
        ((puzzle_folder, tmp_path), "is a folder, give a file"),
        ((puzzle_folder, file, "--output", file), "holds the puzzles"),
    ):
        code, _, err = hf_loop("solve", *arguments)
        assert code == 2
        assert message in err.splitlines()[-1]
    mixer = make_folder(tmp_path / "mixer", token_mixer="mlp", max_position_embeddings=17, mixer_intermediate_size=8)
    code, _, err = hf_loop("solve", mixer, file)
    assert (code, err.splitlines()[-1].endswith("the model was made for puzzles of 16 cells, got 4")) == (2, True)
