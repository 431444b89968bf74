"""No result is lost where output ends early or cannot show a character; progress can be turned off."""

import io
import json
import os
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerFast

from hf_loop.cli.output import LastingStream, lasting_output, spinner


def run(command: list, redirect: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a shell that gives its own exit code, whatever reads its output."""
    line = f'set -o pipefail; "$@" {redirect}'
    arguments = ["bash", "-c", line, "bash", sys.executable, "-m", "hf_loop.cli", *map(str, command)]
    environ = os.environ | {"PYTHONIOENCODING": "utf-8"} | environment
    return subprocess.run(arguments, capture_output=True, env=environ, timeout=120)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "games.txt"
    path.write_text("ball:1 1<->2 2<->3 ball:3\n" * 20)
    return path


@pytest.fixture
def japanese_folder(looped_folder):
    """A looped model whose tokens are written in Japanese."""
    file = looped_folder / "tokenizer.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    words = stored["model"]["vocab"]
    stored["model"]["vocab"] = {f"日本{index}" if "-" in word else word: index for word, index in words.items()}
    file.write_text(json.dumps(stored))
    assert "日本" in PreTrainedTokenizerFast.from_pretrained(looped_folder).decode(range(len(words)))
    return looped_folder


@pytest.mark.parametrize("reader", ["| head -1", "| true", "2>&1 | true"])
def test_a_sweep_into_a_pipe_that_is_closed_keeps_its_results(reader, looped_folder, text_file, tmp_path):
    arguments = ["sweep", looped_folder, "--text", text_file, "--loops", "1,2", "--output-dir", tmp_path / "out"]
    result = run(arguments, reader)
    assert (result.returncode, b"Traceback" in result.stderr, b"Error" in result.stderr) == (0, False, False)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["curves"][0]["num_loops"] == [1, 2]
    assert (tmp_path / "out" / "perplexity_over_loops.png").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_missing_character_loses_nothing(encoding, japanese_folder, plain_folder, text_file, tmp_path):
    result = run(["generate", japanese_folder, "ball:2", "--loops", "1,2"], PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert "1 loop" in result.stdout.decode(encoding)
    arguments = ["scan", plain_folder, "--text", text_file, "--max-tokens", 30, "--output-dir", tmp_path / "größe"]
    result = run(arguments, PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "größe").iterdir()} == {"scan.json", "scan.csv", "scan.png"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_under_the_output_is_said_after_the_results_are_kept(looped_folder, text_file, tmp_path):
    arguments = ["sweep", looped_folder, "--text", text_file, "--loops", "1", "--output-dir", tmp_path / "out"]
    result = run(arguments, "> /dev/full")
    errors = [line for line in result.stderr.decode().splitlines() if line.startswith("hf-loop: ")]
    assert (result.returncode, b"Traceback" in result.stderr) == (2, False)
    assert errors == ["hf-loop: error: [Errno 28] No space left on device, so some output is lost"]
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_process_without_output_runs(plain_folder):
    assert run(["check", plain_folder], ">&- 2>&-").returncode == 0


def test_what_follows_a_closed_pipe_is_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="ascii") as pipe:
        stream = LastingStream(pipe)
        assert stream.write("日本") == 2
        stream.flush()
        stream.write("more")
        stream.check()


def test_streams_that_are_no_files_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with lasting_output() as output:
        print("日本")
        assert sys.stdout is output
    assert sys.stdout.getvalue() == "日本\n"


@pytest.mark.parametrize("command", ["sweep", "scan", "generate", "retrofit", "unroll"])
def test_quiet_leaves_the_results_alone(command, hf_loop, looped_folder, plain_folder, text_file, tmp_path):
    new = tmp_path / "new"
    arguments = {
        "sweep": [looped_folder, "--text", text_file, "--loops", "1", "--output-dir", new],
        "scan": [plain_folder, "--text", text_file, "--max-tokens", 30, "--max-length", 1, "--output-dir", new],
        "generate": [looped_folder, "ball:2", "--max-new-tokens", 2],
        "retrofit": [plain_folder, new],
        "unroll": [looped_folder, new],
    }
    code, out, err = hf_loop(command, *arguments[command], "--quiet")
    assert (code, err) == (0, "")
    assert out


def test_brackets_in_the_name_of_a_folder_are_no_markup():
    with spinner("loading model[/v2]", quiet=False):
        pass
