"""`hf-loop study`: it runs what is missing, reports what there is, and refuses what cannot work before it trains."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..documents import ROOT
from ..evaluation.study_example import STUDY
from ..retrofitting.converters import ifm_reference as ifm
from ..retrofitting.converters.recurrent_reference import write_checkpoint


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.mark.timeout(300)
def test_a_study_goes_on_and_is_reported(hf_loop, study_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("study", "run", study_file, "--processes", 1, "--quiet")
    code, out, err = hf_loop(*arguments, "--seeds", "0")
    assert code == 0, err
    folder = tmp_path / "outputs" / "studies" / "small"
    measured = {path: path.stat().st_mtime_ns for path in folder.rglob("measured.json")}
    assert len(measured) == 2
    assert "| addition | 2 to 3 |" in out and "report.md" in out
    # a second seed is added to the first
    assert hf_loop(*arguments, "--seeds", "0,1")[0] == 0
    assert len(list(folder.rglob("measured.json"))) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in measured.items())
    report = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    assert hf_loop("study", "report", folder)[0] == 0
    assert (folder / "report.md").read_text() == report
    # a model of a run is a model folder, and can be measured beside the arms
    model = folder / "runs" / "addition" / "looped" / "seed_0"
    code, _, err = hf_loop("info", model)
    assert code == 0, err
    code, out, err = hf_loop(*arguments, "--seeds", "0,1", "--checkpoint", model)
    assert code == 0, err
    assert "| seed_0 |" in out.splitlines()[0]
    folders = (model, folder / "runs" / "addition" / "seed_0" / "seed_0")
    own, again = (json.loads((path / "measured.json").read_text()) for path in folders)
    shared = [cell for cell in again["cells"] if cell["loops"] in (1, 2, 4)]
    assert shared == own["cells"] and again["num_parameters"] == own["num_parameters"]


@pytest.mark.timeout(600)
def test_published_checkpoints_are_compared_after_solved_examples(hf_loop, tmp_path):
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters | {"<s>": 256, "</s>": 257}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    published = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    arms = []
    for recipe in ("dense_ouro", "dense_d28", "dense_d112"):
        settings = ifm.RECIPES[recipe] | {"vocab_size": 258}
        source = write_checkpoint(tmp_path / recipe, {"model": settings}, ifm.make_tensors(settings))
        published.save_pretrained(source / "tokenizer")
        assert hf_loop("convert", source, tmp_path / "converted" / recipe, "--quiet")[0] == 0
        arms += ["--set", f"arms.{recipe}.checkpoint={tmp_path / 'converted' / recipe}"]
    file = ROOT / "training" / "studies" / "ifm_looped_lm.yaml"
    folder = tmp_path / "out"
    options = ("--debug", "--processes", 1, "--quiet", "--output-dir", folder)
    code, out, err = hf_loop("study", "run", file, *options, *arms)
    assert code == 0, err
    assert "| 28 layers, 4 loops | 28 layers | 112 layers |" in out.splitlines()[0]
    runs = {path.parts[-3]: json.loads(path.read_text()) for path in folder.glob("runs/addition/*/*/measured.json")}
    assert {arm: sorted({cell["loops"] for cell in run["cells"]}) for arm, run in runs.items()} == {
        "dense_ouro": [1, 2, 3, 4, 6, 8],
        "dense_d28": [1, 2],
        "dense_d112": [1],
    }
    assert len(list(folder.rglob("measured.json"))) == 12
    assert all(run["settings"]["num_examples"] == 1 for run in runs.values())
    report = (folder / "report.md").read_text()
    assert "28 layers, 4 loops" in report and "no difference shown" in report


SHORT_P_HOP = {
    "num_test_rows": 4,
    "task_options": {"difficulty": 1, "alphabet_size": 3, "sequence_length": 12},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"adition": {}}}, "tasks.adition: data.task must be one of addition, "),
        ({"tasks": {"addition": {"task_options": {"difficulti": 3}}}}, "tasks.addition: unknown key 'difficulti'"),
        ({"tasks": {"addition": {"test_split": "tests"}}}, "test_split must be one of train, test, got 'tests'"),
        (
            {"tasks": {"coin_flips": {"num_test_rows": 5, "test_options": {"num_moves": 5}}}},
            "tasks.coin_flips: the answers of 5 of 5 test rows are asked for in training rows",
        ),
        (
            {"tasks": {"p_hop": SHORT_P_HOP | {"test_options": {"sequence_length": 6}}}},
            "test_options must not make rows shorter, got {'sequence_length': 6}",
        ),
        ({"arms": {"a": {"training": {"max_step": 3}}}}, "unknown key 'max_step' in section 'training'"),
        ({"arms": {"a": {"model": {"config": {"num_loop": 3}}}}}, "num_loop"),
        ({"tasks": {"addition": {"num_examples": -1}}}, "num_examples must not be negative, got -1"),
        ({"reference": "b", "arms": {"a": {}, "b": {"checkpoint": "x"}}}, "reference must be an arm that is trained"),
        ({"arms": {"a": {"checkpoint": "x", "steps": "equal_compute"}}}, "a checkpoint is not trained"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_trained(hf_loop, study_file, tmp_path, change, message):
    study_file.write_text(yaml.safe_dump(STUDY | change))
    code, out, err = hf_loop("study", "run", study_file, "--output-dir", tmp_path / "out", "--quiet")
    assert (code, out) == (2, "") and message in err, err
    assert not (tmp_path / "out").exists()


def test_a_report_needs_a_study(hf_loop, tmp_path, study_file):
    code, _, err = hf_loop("study", "report", tmp_path)
    assert code == 2 and "has no study.yaml" in err
    code, _, err = hf_loop("study", "run", study_file, "--seeds", "a")
    assert code == 2 and "--seeds: 'a' is no list of integers" in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_study_leaves_no_process_and_goes_on(study_file, tmp_path):
    command = [sys.executable, "-m", "hf_loop.cli", "study", "run", study_file, "--output-dir", tmp_path / "out"]
    command += ["--processes", "1", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("measured.json")):
        assert process.poll() is None
        time.sleep(0.1)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    first = {path: path.read_text() for path in tmp_path.rglob("measured.json")}
    assert children and 0 < len(first) < 6
    time.sleep(5)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(list(tmp_path.rglob("measured.json"))) == 6
    assert all(path.read_text() == text for path, text in first.items())


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
