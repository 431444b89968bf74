"""The three scripts to start from: each runs as its first lines say, and prints what the README shows."""

import re
import runpy
import sys

import pytest

from ..documents import README, ROOT, blocks
from ..hub_processes import run_python
from ..hub_server import HubServer


FOLDER = ROOT / "training"
# the lines of an output that are the same for any model
HEADINGS = {
    "loop_a_model.py": ["layers; one loop is the original: True", "logits differ by"],
    "train_push_reload.py": ["right answers by loops", "with 12 loops:"],
    "look_inside.py": ["loop  answer       step  without  loss  fitted"],
}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server
        assert server.unknown_requests == []


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """What the script that trains prints, and the folder where it was run."""
    folder = tmp_path_factory.mktemp("scripts")
    script = FOLDER / "train_push_reload.py"
    code = f"""
        import runpy, sys
        sys.argv = ["train_push_reload.py", "me/coin-game", "--steps", "4"]
        runpy.run_path({str(script)!r}, run_name="__main__")
    """
    return run_python(code, hub, folder), folder


def run(name: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")


def check_headings(name: str, output: str) -> None:
    for heading in HEADINGS[name]:
        assert heading in output, output


def test_a_model_is_looped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("loop_a_model.py")
    output = capsys.readouterr().out
    check_headings("loop_a_model.py", output)
    assert re.findall(r"^(\d) x, (\d) layer calls", output, re.MULTILINE) == [("1", "5"), ("2", "6")]
    assert output.endswith("a plain model of 7 layers: logits differ by 0e+00\n")
    # and one that is there: what was just made is looped already
    with pytest.raises(ValueError, match="looped model already"):
        run("loop_a_model.py", tmp_path / "outputs" / "loop_a_model")
    # whose tokens are not those of the game
    with pytest.raises(SystemExit):
        run("look_inside.py", tmp_path / "outputs" / "loop_a_model")
    assert "another tokenizer than the coin game" in capsys.readouterr().err


def test_a_tokenizer_may_return_more_than_a_decoder_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, tokenizer = runpy.run_path(str(FOLDER / "loop_a_model.py"))["tiny_llama"]()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    run("loop_a_model.py", tmp_path / "plain")
    check_headings("loop_a_model.py", capsys.readouterr().out)


def test_a_model_is_trained_pushed_and_loaded_again(trained, hub):
    output, folder = trained
    check_headings("train_push_reload.py", output)
    assert "me/coin-game with 12 loops: '<bos> heads flip keep flip flip keep" in output
    files = hub.files("me/coin-game")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "modeling_looped.py"} <= files.keys()
    card = files["README.md"].decode()
    assert "python training/train_push_reload.py --steps 4" in card
    assert (folder / "outputs" / "coin_game" / "results.json").is_file()


def test_the_trained_model_is_looked_into(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained[1])
    run("look_inside.py")
    output = capsys.readouterr().out
    check_headings("look_inside.py", output)
    rows = re.findall(r"^ +(\d) +\S+ \d+% +([\d.]+) +\d+% +([\d.]+) +([\d.]+)$", output, re.MULTILINE)
    assert [row[0] for row in rows] == list("123456")
    assert all(float(number) > 0 for row in rows for number in row[1:])


@pytest.mark.parametrize("name", HEADINGS)
def test_the_readme_shows_what_a_script_prints(name):
    source = (FOLDER / name).read_text()
    assert 30 <= len(source.splitlines()) <= 80
    assert f"python training/{name}" in source
    shown = "".join(block.text for block in blocks(README, "console"))
    assert f"$ python training/{name}" in shown
    check_headings(name, shown)
