"""What a report says of runs whose numbers are known."""

import json

import pytest

from hf_loop.evaluation.study_report import (
    answers,
    arms_table,
    card_section,
    loops_table,
    main_table,
    pairs_table,
    report,
    summary,
    write_report,
)
from hf_loop.evaluation.study_results import StudyRuns, trained_difficulty
from hf_loop.trainer.data import TASKS, make_task_rows

from .study_example import small_runs, small_study


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_main_table_is_over_the_difficulties_of_training():
    # 0.6, 0.61, 0.62 at two loops; (0.1 + 0.1) / 2, (0.12 + 0.1) / 2, (0.14 + 0.1) / 2
    assert cells(main_table(small_runs())) == [
        ["addition", "2 to 3", "0.10", "0.61 (0.60 to 0.62)", "0.11 (0.10 to 0.12)"]
    ]


def test_pairs_are_runs_of_the_same_seed():
    # 0.5 for every seed; beyond training 0.2 - 0.2. Of 200 rows: 1.96 sqrt((0.61 * 0.39 + 0.11 * 0.89) / 200) = 0.08;
    # of 100: 1.96 sqrt(2 * 0.2 * 0.8 / 100) = 0.11
    assert cells(pairs_table(small_runs())) == [
        ["addition", "once", "as in training", "+0.50", "+0.42 to +0.58", "better"],
        ["addition", "once", "beyond training", "+0.00", "-0.11 to +0.11", "no difference shown"],
    ]


def test_more_loops_and_harder_rows():
    (row,) = cells(loops_table(small_runs()))
    # best at four loops with 0.7 = (0.9 + 0.5) / 2, which is the deepest; rows of difficulty 4 go from 0.2 to 0.8
    assert row == ["addition", "looped", "2 of 4", "4", "0.70", "0.00", "4", "0.20", "0.80"]


def test_overthinking_is_the_best_minus_the_deepest():
    runs = small_runs()
    for run in runs.of("addition", "looped"):
        for cell in run.cells:
            if cell.loops == 4 and cell.difficulty < 4:
                cell.num_right = 40
    (row,) = cells(loops_table(runs))
    assert row[3:6] == ["1", "0.61 (0.60 to 0.62)", "0.21 (0.20 to 0.22)"]


def test_the_answer_is_in_words():
    first, second = answers(small_runs())
    assert first == "**looped** against **once**, on the difficulties of training: better: addition (+0.50)."
    assert second.endswith("on rows harder than any in training: no difference shown: addition (+0.00).")


def test_what_arms_cost():
    first, second = cells(arms_table(small_runs()))
    assert first == ["addition", "looped", "10", "3", "1.00e+06", "2.00e+03", "2"]
    assert second[5] == "1.00e+03"


def test_the_report_is_written_whole(tmp_path):
    files = write_report(small_runs(), tmp_path, "hf-loop study run study.yaml")
    text = (tmp_path / "report.md").read_text()
    for part in ("# Loops against layers", "Do loops help?", "Loops should help.", "- It is small.", "0.61 (0.60 to"):
        assert part in text
    for file in files:
        assert file.stat().st_size > 100
        if file.suffix == ".png":
            assert f"figures/{file.name}" in text
            assert file.read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "summary.json").read_text())["accuracy"]["addition"]["once"] == [0.1, 0.11, 0.12]
    assert card_section(small_runs()).startswith("## Loops against layers\n")


def test_a_report_names_runs_that_failed_and_what_rests_on_fewer_seeds():
    runs = small_runs()
    del runs.runs["addition", "once", 1]
    runs.failures["addition", "once", 1] = "the weights are not finite"
    text = report(runs, "x")
    assert "- addition, once, seed 1: the weights are not finite" in text
    assert cells(main_table(runs))[0][3:] == ["0.61 (0.60 to 0.62)", "0.11 (0.10 to 0.12), 2 of 3 seeds"]
    assert [row[1] for row in cells(pairs_table(runs))] == ["once, 2 of 3 seeds"] * 2
    assert "better: addition (+0.50, 2 of 3 seeds)" in answers(runs)[0]
    assert summary(runs)["failed_runs"] == [
        {"task": "addition", "arm": "once", "seed": 1, "error": "the weights are not finite"}
    ]
    assert "of 3 seeds" not in report(small_runs(), "x")


@pytest.mark.parametrize("sizes", [[1.0, float("inf"), float("nan")], [0.0, 0.0, 0.0]])
def test_a_state_of_any_size_is_reported(tmp_path, sizes):
    runs = small_runs()
    for run in runs.of("addition", "looped"):
        run.state_growth = sizes
    assert write_report(runs, tmp_path, "x")


STUDY_TASKS = [
    name for name in TASKS if name not in ("maze", "passkey_text", "puzzle_csv", "reasoning_gym_task", "sudoku")
]


@pytest.mark.parametrize("name", [*STUDY_TASKS, "scan: length"])
def test_the_hardest_rows_of_training_are_known_without_options_too(name):
    task, _, split = name.partition(": ")
    options = {"split": split} if split else {}
    num_train = 3000 if task == "multi_hop_facts" else 500
    rows = make_task_rows(task, num_train, 1, 5, options)[0]["train"]
    bound = trained_difficulty(small_study(tasks={"it": {"task": task, "task_options": options}}), "it")
    assert bound == max(rows["difficulty"])


def test_a_report_of_some_runs_says_how_many_are_missing(tmp_path):
    runs = small_runs()
    del runs.runs["addition", "once", 1]
    assert "**1 of 6 runs are missing.**" in report(runs, "x")
    # pairs are of seeds that both have
    assert cells(pairs_table(runs))[0][3] == "+0.50"
    with pytest.raises(ValueError, match="holds no measured run yet"):
        write_report(StudyRuns(small_study(), {}), tmp_path, "x")
