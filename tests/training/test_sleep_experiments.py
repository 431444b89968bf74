"""The experiments on sleep: they go on where they stopped, count answers, and compare like with like."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_loop.tasks import associative_recall, successor


FOLDER = Path(__file__).parents[2] / "training" / "recipes" / "sleep"


@pytest.fixture
def load(monkeypatch):
    # as for a script that is run: what lies beside it can be imported
    monkeypatch.syspath_prepend(str(FOLDER))

    def load_module(name: str):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_module


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [module.__file__, *map(str, arguments)])
    module.main()


def results_in(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_recall_runs_once_and_is_drawn(load, monkeypatch, tmp_path):
    recall = load("recall")
    monkeypatch.setattr(recall, "BLOCKS", (2, 4))
    options = ["--steps", 2, "--test-rows", 4, "--seeds", 0]
    call(recall, monkeypatch, tmp_path, *options, "--variants", "attention only")
    call(recall, monkeypatch, tmp_path, *options, "--variants", "attention only", "N = 2")
    results = results_in(tmp_path)
    assert [(result["variant"], result["seed"]) for result in results] == [("attention only", 0), ("N = 2", 0)]
    assert all(set(result["accuracy"]) == {"2", "4"} for result in results)
    assert sum(entry["num_questions"] for entry in results[0]["by_distance"]) == 8
    call(recall, monkeypatch, tmp_path, "--plot")
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "| variant | seeds | 2 | 4 |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| attention only", "| N = 2"]
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


@torch.no_grad()
def test_nothing_reaches_the_last_window_by_attention_alone(load):
    """Without fast weights the answers of the last window do not depend on what was written before."""
    recall = load("recall")
    splits, tokenizer = associative_recall(1, 8, 2, 3, seed=0, **recall.TASK)
    model = recall.build("attention only", tokenizer).eval()
    input_ids = torch.tensor(splits["test"]["input_ids"])
    other = input_ids.clone()
    other[:, : -recall.WINDOW] = input_ids[:, : -recall.WINDOW].flip(0)
    logits = [model(ids, use_cache=False).logits[:, -recall.WINDOW :] for ids in (input_ids, other)]
    assert not torch.equal(input_ids, other) and torch.equal(*logits)
    assert recall.build("N = 2", tokenizer).config.sleep_window == recall.WINDOW


@pytest.mark.parametrize(("task", "columns"), [("rule_110", "exact"), ("successor", "1")])
def test_passes_run_once_and_are_drawn(load, monkeypatch, tmp_path, task, columns):
    passes = load("passes")
    options = [task, tmp_path, "--steps", 2, "--test-rows", 32, "--seeds", 0]
    variants = ["N = 4", "N = 1, compute of N = 4", "looped, 4 loops"]
    call(passes, monkeypatch, *options, "--variants", *variants[:2])
    call(passes, monkeypatch, *options, "--variants", *variants)
    results = results_in(tmp_path)
    assert [result["variant"] for result in results] == variants
    # two steps at four passes pay for seven at one, rounded
    assert [result["steps_made"] for result in results] == [2, round(2 * passes.cost(task, 4)), 2]
    call(passes, monkeypatch, task, tmp_path, "--plot")
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0].startswith(f"| variant | cost | seeds | {columns} | ")
    assert len(table) == 2 + len(variants)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_what_the_controls_cost(load):
    passes = load("passes")
    tokens = {"rule_110": (16, 4), "successor": (8, 3)}
    for task, (slept, asking) in tokens.items():
        four = (4 * slept + asking) / (slept + asking)
        assert passes.total_cost(task, "N = 1") == 1
        assert passes.total_cost(task, "N = 4") == passes.total_cost(task, "N = 1, compute of N = 4") == four
        assert passes.total_cost(task, "N = 1, 8 layers") == passes.total_cost(task, "looped, 4 loops") == 4


def test_every_variant_can_be_built(load):
    passes = load("passes")
    for task, make in (("rule_110", passes.rule_110), ("successor", passes.successor)):
        splits, tokenizer = make(1, 1, **passes.TASKS[task])
        length = len(splits["train"][0]["input_ids"])
        for variant, (num_passes, times, _) in passes.VARIANTS.items():
            model = passes.build(task, variant, tokenizer)
            assert model.config.backbone_config.num_hidden_layers == 2 * times
            if num_passes:
                # the questions have a window of their own, the last
                window = model.config.sleep_window
                assert model.config.num_sleep_passes == num_passes
                first = next(i for i, label in enumerate(splits["train"][0]["labels"]) if label != -100)
                assert (first - 1) // window == (length - 1) // window


def test_answers_are_read_at_the_labels(load, monkeypatch):
    runs = load("runs")
    monkeypatch.setattr(runs, "EVAL_TOKENS", 3 * 24)
    rows = successor(1, 8, 2, max_nodes=8, num_edge_blocks=3, block_size=6, num_queries=2)[0]["test"]

    class Oracle:
        def eval(self):
            return self

        def __call__(self, input_ids, use_cache):
            # position t predicts the token at t + 1
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids.roll(-1, 1), 64).float())

    expected = np.array([[label for label in row if label != -100] for row in rows["labels"]])
    assert np.array_equal(runs.answers(Oracle(), rows), expected)


def test_shares_are_written_with_their_spread(load):
    spread = load("runs").spread
    assert spread([0.5, 0.5]) == "0.500"
    assert spread([1.0, 0.5]) == "0.750 (0.500 to 1.000)"
