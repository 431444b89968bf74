"""The experiment on segments: it goes on where it stopped, and its variants are as large as they are said to be."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from hf_loop import HierarchicalForPuzzle


PATH = Path(__file__).parents[2] / "training" / "recipes" / "hierarchical" / "sudoku_segments.py"


@pytest.fixture
def experiment(monkeypatch):
    spec = importlib.util.spec_from_file_location("sudoku_segments", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SEGMENTS", (1, 2, 4))
    return module


def call(experiment, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["sudoku_segments.py", *map(str, arguments)])
    experiment.main()


def test_a_run_that_has_its_line_is_skipped(experiment, monkeypatch, tmp_path):
    tiny = ["--size", 4, "--steps", 4, "--batch-size", 4, "--hidden-size", 16, "--max-segments", 2]
    options = [*tiny, "--num-puzzles", 4, "--test-rows", 6, "--seeds", 0]
    call(experiment, monkeypatch, tmp_path, *options, "--variants", "trm")
    call(experiment, monkeypatch, tmp_path, *options, "--variants", "trm", "plain, equal parameters")
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [result["variant"] for result in results] == ["trm", "plain, equal parameters"]
    for result in results:
        assert set(result["accuracy"]) == {"1", "2", "4"}
        assert 0 <= result["one_blank_accuracy"] <= 1
        assert result["failures"]["num_rows"] == 6
        assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path / result["model"]), HierarchicalForPuzzle)
    assert results[0]["model"] != results[1]["model"]
    assert set(results[0]["halting"]) == {"blanks", "dead_ends"} and results[1]["halting"] == {}
    with pytest.raises(SystemExit, match=r"results\.jsonl has no run of these options yet"):
        call(experiment, monkeypatch, tmp_path, "--plot")
    call(experiment, monkeypatch, tmp_path, *options, "--plot")
    text = (tmp_path / "tables.md").read_text()
    assert text.startswith("Exact accuracy") and text.count("| trm |") == 2
    for name in ("segments.png", "halting.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_means_over_seeds_are_weighted(experiment):
    parts = [(1, (1.0, 0.5), 30), (0, (2.0, 1.0), 4), (1, (2.0, 0.0), 10)]
    assert experiment.pooled(parts) == {0: [2.0, 1.0], 1: [1.25, 0.375]}


def test_variants_are_equal_where_they_say_so(experiment):
    args = Namespace(size=6, hidden_size=64, max_segments=8)
    sizes = {}
    for name in experiment.VARIANTS:
        config = experiment.config_of(name, args)
        with torch.device("meta"):
            parameters = HierarchicalForPuzzle(config).num_parameters()
        sizes[name] = (parameters, config.num_hidden_layers)
    base, calls = sizes["trm"]
    assert sizes["trm, one step"] == (base, calls) and calls == 24
    for name in ("hrm, equal compute", "hrm, equal compute, last cycle", "plain, equal compute"):
        assert sizes[name][1] == calls, name
    for name in [name for name in sizes if "equal parameters" in name]:
        # heads that say when to halt differ
        assert abs(sizes[name][0] - base) < 200, name
    assert sizes["hrm, equal parameters"][1] == calls / 2
