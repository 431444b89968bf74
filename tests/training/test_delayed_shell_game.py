"""The comparison of a composed model with each half of it: what differs, and that it goes on where it stopped."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from hf_loop import FeedbackForCausalLM


PATH = Path(__file__).parents[2] / "training" / "recipes" / "composed" / "delayed_shell_game.py"


@pytest.fixture
def experiment(monkeypatch):
    spec = importlib.util.spec_from_file_location("delayed_shell_game", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BLOCKS", (2, 3))
    monkeypatch.setattr(module, "LOOPS", (1, 2))
    return module


def call(experiment, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["delayed_shell_game.py", *map(str, arguments)])
    experiment.main()


def test_runs_go_on_and_make_a_table(experiment, monkeypatch, tmp_path, capsys):
    tiny = yaml.safe_load(PATH.with_suffix(".yaml").read_text())["debug"]
    del tiny["training.output_dir"]
    options = ["--seeds", 0, *(part for key, value in tiny.items() for part in ("--set", f"{key}={value}"))]
    call(experiment, monkeypatch, tmp_path, *options, "--variants", "memory alone")
    call(experiment, monkeypatch, tmp_path, *options)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [result["variant"] for result in results] == ["memory alone", "composed", "depth alone", "six layers"]
    memory_alone, composed, depth_alone, six_layers = results
    assert [set(result["loops"]) for result in results] == [{"1"}, {"1", "2"}, {"1", "2"}, {"1"}]
    assert all(set(result["blocks"]) == {"2", "3"} for result in results)
    # before the first of four swaps and after each; the last answer is the one that is measured otherwise
    assert all(len(result["swaps"]) == 5 for result in results)
    assert all(result["swaps"][-1] == result["loops"]["1"] for result in (memory_alone, six_layers))
    # loops share the weights of the one layer, and a memory has two learned vectors
    assert composed["parameters"] == memory_alone["parameters"] == depth_alone["parameters"] + 2 * 64
    assert six_layers["parameters"] > 4 * composed["parameters"]
    models = {name: FeedbackForCausalLM.from_pretrained(tmp_path / f"{name}_0") for name in ("composed", "six_layers")}
    assert [model.config.num_hidden_layers for model in models.values()] == [6, 6]
    assert all(model.config.feedback_length == 2 for model in models.values())

    capsys.readouterr()
    call(experiment, monkeypatch, tmp_path, "--table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| variant | seed | parameters | 2 blocks | 3 blocks | loops: 1 | loops: 2 |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| composed", "| memory alone", "| depth alone", "| six layers"
    ]  # fmt: skip
    assert lines[3].split(" | ")[5:7] == ["", ""]
