"""`hf-loop train`: the command around `run_recipe`."""

import sys
from pathlib import Path

import pytest

from hf_loop.cli.main import main


ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "training" / "recipes" / "looped" / "shell_game.yaml")


@pytest.fixture
def hf_loop(monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-loop", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        return exit_info.value.code or 0, capfd.readouterr()

    return run


def test_train_and_resume(hf_loop, tmp_path):
    arguments = ["train", RECIPE, "--debug", "--set", f"training.output_dir={tmp_path / 'run'}"]
    arguments += ["--set", "training.save_strategy=steps", "--set", "training.save_steps=1"]
    code, output = hf_loop(*arguments)
    assert code == 0
    assert output.out.splitlines()[-1] == str(tmp_path / "run")
    assert "42,432 parameters, training loss " in output.out
    assert (tmp_path / "run" / "model.safetensors").is_file()

    code, output = hf_loop(*arguments)
    assert code == 2
    assert output.err.splitlines()[-1].startswith("hf-loop: error: training.output_dir is not empty: ")
    code, output = hf_loop(*arguments, "--resume")
    assert code == 0


def test_a_quiet_run_says_what_came_of_it_alone(hf_loop, tmp_path):
    puzzles = str(ROOT / "training" / "recipes" / "hierarchical" / "sudoku_4x4.yaml")
    for recipe, card in ((RECIPE, ()), (puzzles, ("--card",))):
        folder = tmp_path / Path(recipe).stem
        code, output = hf_loop("train", recipe, "--debug", "--quiet", *card, "--set", f"training.output_dir={folder}")
        assert (code, output.err) == (0, "")
        first, second, *rest = output.out.splitlines()
        assert "training loss" in first and second == str(folder)
        assert bool(rest) == bool(card) and not any("{" in line for line in rest)


def test_a_run_that_overflows_saves_no_model(hf_loop, tmp_path):
    arguments = ("--set", f"training.output_dir={tmp_path / 'run'}", "--set", "training.learning_rate=1e30")
    code, output = hf_loop("train", RECIPE, "--debug", *arguments)
    assert code == 2
    error = output.err.splitlines()[-1]
    assert error.startswith("hf-loop: error: the weights of the trained model are not finite numbers: model.")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such recipe"),
        (
            [RECIPE, "--set", "model.config.num_lops=3"],
            "unknown key 'num_lops' in model.config; did you mean 'num_loops'?",
        ),
        ([RECIPE, "--set", "model.config.num_loops=0"], "got 0"),
        ([RECIPE, "--set", "max_steps=3"], "an override must name section.key, got 'max_steps'"),
        ([RECIPE, "--max-steps", "3"], "--max-steps"),
        ([], "Missing argument"),
    ],
)
def test_errors_are_one_line(hf_loop, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, output = hf_loop("train", *arguments)
    assert code == 2
    errors = [line for line in output.err.splitlines() if line.startswith("hf-loop: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in output.err
    assert not list(tmp_path.iterdir())
