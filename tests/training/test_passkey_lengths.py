"""The experiment on lengths: it goes on where it stopped, and counts whole keys."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_loop.tasks import passkey


PATH = Path(__file__).parents[2] / "training" / "recipes" / "feedback" / "passkey_lengths.py"


@pytest.fixture
def experiment(monkeypatch):
    spec = importlib.util.spec_from_file_location("passkey_lengths", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BLOCKS", (2, 4))
    return module


def call(experiment, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["passkey_lengths.py", *map(str, arguments)])
    experiment.main()


def test_a_run_that_has_its_line_is_skipped(experiment, monkeypatch, tmp_path):
    options = ["--steps", 2, "--test-rows", 3, "--seeds", 0]
    call(experiment, monkeypatch, tmp_path, *options, "--variants", "f8, longer, passing")
    call(experiment, monkeypatch, tmp_path, *options, "--variants", "f8, longer, passing", "window")
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(result["variant"], result["seed"]) for result in results] == [("f8, longer, passing", 0), ("window", 0)]
    assert all(set(result["accuracy"]) == {"2", "4"} for result in results)
    call(experiment, monkeypatch, tmp_path, "--plot")
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "| variant | seeds | 2 | 4 |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| f8, longer, passing", "| window"]
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


def test_every_variant_can_be_built(experiment):
    for name, fields in experiment.VARIANTS.items():
        backbone = experiment.LlamaConfig(vocab_size=8, **experiment.BACKBONE)
        config = experiment.FeedbackConfig(backbone_config=backbone, **{**experiment.DEFAULTS, **fields})
        assert config.block_size == 32, name
    assert experiment.VARIANTS["f8"] == {}


def test_a_key_counts_if_all_of_it_is_right(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "EVAL_TOKENS", 3 * 64)
    rows = passkey(4, 8, test_blocks=(2,))[0]["test_2"]

    class Oracle:
        def eval(self):
            return self

        def __call__(self, input_ids, use_cache, logits_to_keep):
            # position t predicts the token at t + 1; after rows whose key begins with an odd symbol, one is wrong
            logits = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 70).float()
            odd = input_ids[:, 2] % 2 == 1
            logits[odd, -3] = logits[odd, -3].roll(1, -1)
            return SimpleNamespace(logits=logits[:, -logits_to_keep:])

    expected = sum(row[2] % 2 == 0 for row in rows["input_ids"]) / 8
    assert 0 < expected < 1
    assert experiment.exact_accuracy(Oracle(), rows) == expected


def test_the_table_names_the_lowest_seed(experiment):
    results = [{"variant": "f8", "accuracy": {"2": 1.0, "4": value}} for value in (0.5, 1.0)]
    assert experiment.table(results).splitlines()[2] == "| f8 | 2 | 1.000 | 0.750 (0.500) |"
