"""From a puzzle recipe to a card with measurements in one command, and the card of a run that was trained before."""

import json
from pathlib import Path

import pytest


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
PUZZLES = RECIPES / "hierarchical" / "sudoku_4x4.yaml"


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_command_leads_from_a_recipe_to_a_measured_card(hf_loop, in_folder):
    options = ["--debug", "--card", "--set", "training.output_dir=run", "--set", "training.disable_tqdm=true"]
    code, out, error = hf_loop("train", PUZZLES, *options)
    assert code == 0, error
    run = in_folder / "run"
    text = (run / "README.md").read_text()
    assert "On 4 puzzles: task sudoku (size 4, num_puzzles 4)" in text
    assert (run / "figures" / "accuracy_over_segments.png").is_file()
    assert out.splitlines()[-1] == "run/README.md" and "puzzles solved" in out
    assert "puzzles: 100%" in error and "one blank: 100%" in error

    code, out, error = hf_loop("card", "run", "--measure", "--num-examples", 6)
    assert code == 0, error
    assert "On 6 puzzles" in (run / "README.md").read_text()
    results = json.loads((run / "puzzle_results.json").read_text())["results"]
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [[count, *(f"{share:.4f}" for share in both)] for count, both in results["accuracy"].items()]


@pytest.mark.parametrize("lost, message", [("recipe.yaml", "has no recipe.yaml"), (None, "give --measure with it")])
def test_what_cannot_be_measured_is_told_and_nothing_is_written(lost, message, hf_loop, in_folder):
    assert hf_loop("train", PUZZLES, "--debug", "--set", "training.output_dir=run")[0] == 0
    if lost:
        (in_folder / "run" / lost).unlink()
    code, out, error = hf_loop("card", "run", *(["--measure"] if lost else ["--num-examples", 6]))
    assert code == 2 and message in error
    assert not (in_folder / "run" / "README.md").exists() and not (in_folder / "run" / "puzzle_results.json").exists()


def test_a_language_model_is_measured_by_sweep(hf_loop, looped_folder):
    code, out, error = hf_loop("card", looped_folder, "--measure")
    assert code == 2 and "measure it with hf-loop sweep" in error


def test_a_recipe_without_test_puzzles_is_refused_before_training(hf_loop, in_folder):
    code, out, error = hf_loop("train", PUZZLES, "--debug", "--card", "--set", "data.num_eval_rows=0")
    assert code == 2 and "data.num_eval_rows" in error and not (in_folder / "outputs").exists()


def test_a_language_model_gets_its_card_too(hf_loop, in_folder):
    recipe = RECIPES / "looped" / "shell_game.yaml"
    code, out, error = hf_loop("train", recipe, "--debug", "--card", "--set", "training.output_dir=run")
    assert code == 0, error
    assert (in_folder / "run" / "README.md").is_file() and out.splitlines()[-1] == "run/README.md"
