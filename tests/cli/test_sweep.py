import json
import math

import pytest

from hf_loop.evaluation import DepthControls, Results, perplexity_over_loops
from hf_loop.models import LoopedForCausalLM

from ..retrofitting.converters import test_dory


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "games.txt"
    path.write_text("ball:1 1<->2 2<->3 ball:3\n" * 20)
    return path


def test_perplexity_on_a_text(hf_loop, looped_folder, tokenizer, text_file, tmp_path):
    code, out, err = hf_loop(
        "sweep",
        looped_folder,
        "--text",
        text_file,
        "--loops",
        "1,2,4",
        "--window",
        16,
        "--output-dir",
        tmp_path / "out",
    )
    assert code == 0, err
    curve = Results.load(tmp_path / "out").curves[0]
    assert (curve.metric, curve.label, curve.trained_loops) == ("perplexity", "looped", 2.0)
    input_ids = tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"]
    expected = perplexity_over_loops(LoopedForCausalLM.from_pretrained(looped_folder), input_ids, [1, 2, 4], window=16)
    assert curve.values == pytest.approx(expected.values, rel=1e-5)
    assert f"{curve.values[0]:.4f}" in out
    assert "trained depth 2, safe range" in out
    assert (tmp_path / "out" / "perplexity_over_loops.png").is_file()


def test_accuracy_on_a_task_and_a_card_from_it(hf_loop, looped_folder):
    arguments = ("sweep", looped_folder, "--output-dir", looped_folder, "--loops", "1,2", "--num-examples", 16)
    code, out, err = hf_loop(*arguments, "--task", "shell_game", "--length", 4)
    assert code == 0, err
    assert "whole sequences" in out
    results = json.loads((looped_folder / "results.json").read_text())
    assert results["curves"][0]["num_loops"] == [1, 2]
    assert hf_loop("card", looped_folder)[0] == 0
    assert "![accuracy over loops]" in (looped_folder / "README.md").read_text()


def test_controls_on_a_text(hf_loop, looped_folder, tokenizer, text_file, tmp_path):
    arguments = ("sweep", looped_folder, "--text", text_file, "--window", 15, "--output-dir", tmp_path / "out")
    code, out, err = hf_loop(*arguments, "--loops", "1,2,4", "--controls")
    assert code == 0, err
    controls = DepthControls.load(tmp_path / "out" / "controls.json")
    # four loops are more than the model's own: in the curve alone
    assert [row.loops for row in controls.rows] == [1, 2]
    assert Results.load(tmp_path / "out").curves[0].num_loops == [1, 2, 4]
    # the second half of the windows
    input_ids = tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"][0]
    windows = list(input_ids.split(15))
    assert len(windows) % 2 == 0
    measured = perplexity_over_loops(
        LoopedForCausalLM.from_pretrained(looped_folder), windows[len(windows) // 2 :], [1, 2]
    )
    assert [math.exp(row.prefix) for row in controls.rows] == pytest.approx(measured.values, rel=1e-5)
    assert f"{controls.row(1).prefix:.4f}" in out and "All loops share their weights" in out
    assert (tmp_path / "out" / "controls.png").is_file()
    # the same again measures nothing, other text needs another folder
    before = (tmp_path / "out" / "controls.json").read_bytes()
    assert hf_loop(*arguments, "--loops", "1", "--controls")[0] == 0
    assert (tmp_path / "out" / "controls.json").read_bytes() == before
    code, _, err = hf_loop(*arguments, "--max-tokens", 60, "--controls")
    assert code == 2 and "was measured with other settings" in err


@test_dory.needs_dory
def test_controls_of_a_converted_dory(hf_loop, tokenizer, text_file, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "converted"
    native = test_dory.make_native()
    native.save_pretrained(source)
    tokenizer.save_pretrained(source)
    code, out, err = hf_loop("convert", source, folder, "--quiet")
    assert code == 0, err
    assert "looped_lm over dory" in out and "1+2+2 layers (prelude, core, coda), 3 loops" in out
    arguments = ("--text", text_file, "--window", 15, "--loops", "1,3", "--output-dir", tmp_path / "out", "--quiet")
    code, _, err = hf_loop("sweep", folder, *arguments, "--controls")
    assert (code, err) == (0, "")
    controls = DepthControls.load(tmp_path / "out" / "controls.json")
    input_ids = tokenizer(text_file.read_text(), return_tensors="pt")["input_ids"][0]
    windows = list(input_ids.split(15))
    # against transformers' own model; the last window is shorter
    test = windows[len(windows) // 2 :]
    losses = [native(window[None], labels=window[None]).loss.item() for window in test]
    counts = [len(window) - 1 for window in test]
    expected = sum(loss * count for loss, count in zip(losses, counts)) / sum(counts)
    assert controls.row(3).prefix == pytest.approx(expected, rel=1e-5)


def test_controls_on_a_task(hf_loop, looped_folder, tmp_path):
    arguments = ("sweep", looped_folder, "--task", "shell_game", "--length", 4, "--num-examples", 16, "--loops", "1,2")
    code, out, err = hf_loop(*arguments, "--output-dir", tmp_path / "out", "--controls", "--quiet")
    assert code == 0, err
    controls = DepthControls.load(tmp_path / "out" / "controls.json")
    assert controls.num_fit_tokens == 8 * 5 == controls.num_test_tokens
    assert "share of the gap to full depth" in out


def test_a_second_sweep_joins_the_first(hf_loop, plain_folder, text_file, tmp_path):
    arguments = ("sweep", plain_folder, "--text", text_file, "--loops", "1,2", "--output-dir", tmp_path / "out")
    for core in ("0-1", "1-2", "1-2"):
        code, _, err = hf_loop(*arguments, "--core", core, "--label", f"layers {core}")
        assert code == 0, err
    curves = Results.load(tmp_path / "out").curves
    assert [curve.label for curve in curves] == ["layers 0-1", "layers 1-2"]
    # one loop is the original whatever the range
    assert curves[0].values[0] == pytest.approx(curves[1].values[0], rel=1e-6)
    assert curves[0].trained_loops == 1.0


def test_the_default_folder_is_named_after_the_model(hf_loop, looped_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hf_loop("sweep", "looped", "--text", text_file, "--loops", "1", "--max-tokens", 8)[0] == 0
    assert (tmp_path / "sweeps" / "looped" / "results.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one of --text FILE"),
        (["--text", "a.txt", "--task", "shell_game"], "Give one of --text FILE"),
        (["--text", "missing.txt"], "there is no file missing.txt"),
        (["--task", "chess"], "unknown task 'chess' in --task; there are shell_game, coin_flips"),
        (["--task", "shel_game"], "did you mean 'shell_game'?"),
        (["--task", "coin_flips"], "tokenizer is not the one of coin_flips"),
        (["--task", "shell_game", "--loops", "-1"], "'-1' is not a loop count"),
        (["--task", "shell_game", "--controls", "--loops", "2,4"], "has 2; --loops 2,4 names none"),
    ],
)
def test_errors_are_one_line_and_write_nothing(hf_loop, looped_folder, tmp_path, arguments, message):
    code, _, err = hf_loop("sweep", looped_folder, *arguments, "--output-dir", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_damaged_results_file_is_found_before_the_work(hf_loop, looped_folder):
    (looped_folder / "results.json").write_text("{")
    code, _, err = hf_loop("sweep", looped_folder, "--task", "shell_game", "--output-dir", looped_folder)
    assert code == 2
    assert "is not valid JSON" in err
    assert (looped_folder / "results.json").read_text() == "{"


def test_a_damaged_controls_file_is_found_before_the_work(hf_loop, looped_folder, plain_folder, tmp_path):
    (looped_folder / "controls.json").write_text("{")
    arguments = ("--task", "shell_game", "--controls", "--output-dir")
    code, _, err = hf_loop("sweep", looped_folder, *arguments, looped_folder)
    assert code == 2
    assert "is not valid JSON" in err
    code, _, err = hf_loop("sweep", plain_folder, *arguments, tmp_path / "out")
    assert code == 2
    assert "fewer loops than its own, of which" in err
