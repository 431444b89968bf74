"""Benchmarks over loops: what was measured is not measured again, and lm-eval sees the model at its depth.

lm-eval itself is an extra. Where it is not installed a double stands for its three entrances, and the test of the real
one is skipped.
"""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_loop.evaluation.benchmarks import BenchmarkResults, benchmarks_over_loops
from hf_loop.loading import load_pretrained

from .tiny_task import CHOICES, ROWS, write_task


class Double:
    """What `lm_eval` is to hf_loop. The accuracy is a tenth of the loops; `fault` is raised at call `fails_at`."""

    def __init__(self):
        self.calls, self.fails_at, self.fault, self.likelihood = [], None, KeyboardInterrupt(), -1.0
        self.modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models")}
        self.modules["lm_eval.models.huggingface"] = SimpleNamespace(HFLM=SimpleNamespace)
        self.modules["lm_eval"].__version__ = "0"
        self.modules["lm_eval"].simple_evaluate = self.simple_evaluate
        self.modules["lm_eval.tasks"].TaskManager = lambda include_path: SimpleNamespace(
            all_tasks=["choices", "group", "text"]
        )

    def simple_evaluate(self, language_model, *, tasks, **options):
        config = language_model.pretrained.config
        num_loops = config.num_loops if config.has_loops else 1
        if self.fails_at == len(self.calls):
            raise self.fault
        self.calls.append((*tasks, num_loops))
        (task,) = tasks
        own = {"alias": task, "sample_len": 2, "acc,none": num_loops / 10, "acc_stderr,none": 0.01}
        results = {task: own} if task != "group" else {task: own, "part": own, "other": {"acc_stderr,none": "N/A"}}
        if task == "text":
            results = {task: {"alias": task, "word_perplexity,none": 20.0, "word_perplexity_stderr,none": "N/A"}}
        sample = {"filtered_resps": [(self.likelihood, False), (-2.0, False)]}
        kind = "loglikelihood_rolling" if task == "text" else "multiple_choice"
        return {"results": results, "samples": {task: [sample] * 2}, "configs": {task: {"output_type": kind}}}


@pytest.fixture
def double(monkeypatch):
    double = Double()
    for name, module in double.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return double


def evaluate(hf_loop, folder, *options):
    return hf_loop("eval", folder, "--tasks", "choices,text", "--loops", "1,3", *options)


def test_every_task_is_measured_at_every_depth(double, hf_loop, looped_folder, tmp_path):
    code, out, error = evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")
    assert code == 0, error
    assert double.calls == [("choices", 1), ("choices", 3), ("text", 1), ("text", 3)]
    rows = [line.replace("│", " ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        ["choices", "acc", "1", "0.1000", "0.0100", "0.5000", "2"],
        ["choices", "acc", "3", "0.3000", "0.0100", "0.5000", "2"],
        ["text", "word_perplexity", "1", "20.0000", "-", "-", "2"],
        ["text", "word_perplexity", "3", "20.0000", "-", "-", "2"],
    ]
    names = {"benchmarks.json", "accuracy_of_tasks.png", "perplexity_of_tasks.png"}
    assert {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")} == names


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError("no data"), ValueError("a task's fault")])
def test_what_was_measured_is_not_measured_again(double, fault, hf_loop, looped_folder, tmp_path):
    double.fails_at, double.fault = 3, fault
    assert evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")[0] in (2, 130)
    assert len(json.loads((tmp_path / "out" / "benchmarks.json").read_text())["results"]) == 3
    done, double.calls, double.fails_at = double.calls, [], None
    assert evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")[0] == 0
    assert done[:3] == [("choices", 1), ("choices", 3), ("text", 1)] and double.calls == [("text", 3)]


def test_results_under_other_settings_are_left_alone(double, hf_loop, looped_folder, tmp_path):
    evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")
    before = (tmp_path / "out" / "benchmarks.json").read_text()
    code, out, error = evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out", "--limit", 5)
    assert code == 2 and "limit None there, 5 here" in error
    model = load_pretrained(AutoModelForCausalLM, looped_folder)
    with torch.no_grad():
        model.model.backbone.layers[1].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(looped_folder)
    code, out, error = evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")
    assert code == 2 and "weights" in error and (tmp_path / "out" / "benchmarks.json").read_text() == before


def test_a_group_has_its_own_number_and_those_of_its_tasks(double, looped_folder, tmp_path):
    model, tokens = load_pretrained(AutoModelForCausalLM, looped_folder), AutoTokenizer.from_pretrained(looped_folder)
    (result,) = benchmarks_over_loops(model, tokens, ["group"], [2], tmp_path / "results.json").results
    assert result.main == ("acc", 0.2, 0.01)
    assert result.metrics["part/acc,none"] == 0.2 and "other/acc_stderr,none" not in result.metrics
    assert BenchmarkResults.load(tmp_path / "results.json", {}).results == [result]
    assert model.config.num_loops == 2


def test_numbers_that_mean_nothing_are_no_results(double, hf_loop, looped_folder, tmp_path):
    double.likelihood = math.nan
    code, out, error = evaluate(hf_loop, looped_folder, "--output-dir", tmp_path / "out")
    assert code == 2 and "choices at 1 loops gave no numbers" in error
    assert not (tmp_path / "out" / "benchmarks.json").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tasks", "choises"], "no task 'choises'; did you mean 'choices'?"),
        (["--tasks", "choices,choices"], "name tasks once each"),
        (["--tasks", "choices,"], "name tasks once each"),
        (["--tasks", "choices", "--loops", "0"], "'0' is not a loop count"),
        (["--tasks", "choices", "--include-path", "no/such"], "there is no folder no/such"),
        (["--tasks", "choices", "--chat"], "no chat template"),
    ],
)
def test_a_wrong_option_is_one_line(double, options, message, hf_loop, looped_folder, tmp_path):
    code, out, error = hf_loop("eval", looped_folder, "--output-dir", tmp_path / "out", *options)
    assert code == 2 and out == "" and message in error.splitlines()[-1]
    assert double.calls == []


def test_a_file_that_holds_something_else_is_named(double, hf_loop, looped_folder, tmp_path):
    (tmp_path / "benchmarks.json").write_text('{"settings": {}, "results": [{"task": 1}]}')
    code, out, error = evaluate(hf_loop, looped_folder, "--output-dir", tmp_path)
    assert code == 2 and "benchmarks.json" in error and double.calls == []


def test_the_extra_is_named_where_it_is_missing(hf_loop, looped_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, error = hf_loop("eval", looped_folder, "--tasks", "arc_easy")
    assert code == 2 and "pip install 'hf-loop[eval]'" in error


def test_lm_eval_itself_measures_the_model_at_its_depth(hf_loop, looped_folder, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_task(tmp_path / "tasks")
    options = [
        "--tasks",
        "tiny_choice",
        "--loops",
        "1,2,5",
        "--include-path",
        folder,
        "--output-dir",
        tmp_path / "out",
    ]
    code, out, error = hf_loop("eval", looped_folder, *options)
    assert code == 0, error
    results = json.loads((tmp_path / "out" / "benchmarks.json").read_text())["results"]
    assert [result["num_loops"] for result in results] == [1, 2, 5]
    model = load_pretrained(AutoModelForCausalLM, looped_folder)
    tokens = AutoTokenizer.from_pretrained(looped_folder)
    right = {1: 0, 2: 0, 5: 0}
    for count in right:
        for row in ROWS:
            inputs = tokens(row["prompt"], return_tensors="pt")
            with torch.no_grad():
                logits = model(**inputs, num_loops=count).logits[0, -1]
            likeliest = logits[tokens.convert_tokens_to_ids(CHOICES)].argmax()
            right[count] += int(likeliest) == row["answer"]
    assert [result["metrics"]["acc,none"] for result in results] == [count / len(ROWS) for count in right.values()]
    assert len(set(right.values())) > 1 and results[0]["guessing"] == pytest.approx(1 / 3)
