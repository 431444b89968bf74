import importlib.metadata
import subprocess
import sys
import textwrap

import pytest
import typer
from huggingface_hub.utils import get_session

from hf_loop.cli.errors import one_line_errors
from hf_loop.cli.main import main


COMMANDS = (
    "quickstart",
    "train",
    "generate",
    "demo",
    "info",
    "sweep",
    "study",
    "eval",
    "scan",
    "nodes",
    "inspect",
    "retrofit",
    "unroll",
    "convert",
    "card",
    "push",
)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)


def test_help_imports_neither_torch_nor_transformers():
    # as the installed script does it; a clock would measure the machine, the imports are what takes the time
    result = run(
        """
        import sys, sysconfig
        sys.argv = [sysconfig.get_path("scripts") + "/hf-loop", "--help"]
        from hf_loop.cli.main import main
        try:
            main()
        finally:
            heavy = {"torch", "transformers", "datasets", "numpy", "matplotlib", "accelerate"} & set(sys.modules)
            assert not heavy, heavy
        """
    )
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("name", ["hf-loop.py", "hf-loop", "hf_loop_run.py"])
def test_models_are_registered_whatever_a_script_is_called(name, tmp_path):
    script = tmp_path / name
    script.write_text(
        "import hf_loop\nfrom transformers import AutoConfig\nprint(AutoConfig.for_model('looped_lm').num_loops)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "4\n"), result.stderr


def test_the_package_can_be_run():
    command = [sys.executable, "-m", "hf_loop.cli", "generate", "./no/such/folder", "prompt"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "there is no folder" in result.stderr, result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-loop", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in (0, None)
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-command"], "no-such-command"),
        (["generate"], "Missing argument"),
        (["generate", "model", "prompt", "--depth", "3"], "--depth"),
        (["generate", "model", "prompt", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "model", "prompt", "--loops", "1,0"], "'0' is not a loop count"),
        (["generate", "./no/such/folder", "prompt"], "there is no folder ./no/such/folder"),
    ],
)
def test_an_error_is_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-loop", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hf-loop: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_errors_of_many_lines_become_one(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        raise ValueError("first\n  second")
    assert capsys.readouterr().err == "hf-loop: error: first second\n"


def test_a_file_error_names_the_file(capsys, tmp_path):
    with pytest.raises(SystemExit), one_line_errors():
        (tmp_path / "missing.txt").read_text()
    assert "missing.txt" in capsys.readouterr().err


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("HF_LOOP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"), one_line_errors():
        raise ValueError("wrong")


def test_a_missing_package_and_a_missing_network_are_one_line(capsys, monkeypatch):
    with pytest.raises(SystemExit), one_line_errors():
        raise ImportError("install\nx")
    assert capsys.readouterr().err == "hf-loop: error: install x\n"

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(SystemExit), one_line_errors():
        get_session().get("http://127.0.0.1:1")
    assert capsys.readouterr().err == "hf-loop: error: the Hub cannot be reached: no network\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("bug")


def test_an_interruption_is_not_a_traceback(capsys, monkeypatch):
    def interrupted(**options):
        raise typer.Abort

    monkeypatch.setattr("hf_loop.cli.main.app", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "hf-loop: interrupted\n"


def test_the_version_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-loop", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hf-loop {importlib.metadata.version('hf-loop')}\n"


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["swep", "model"], "'sweep'"),
        (["sweep", "model", "--lops", "2"], "--loops"),
        (["scan", "model", "--text", "here/txet.txt"], "here/text.txt"),
        (["generate", "./hree/model", "prompt"], "here/model"),
        (["generate", "here/model", "prompt", "--memory", "here/txt.txt"], "here/text.txt"),
        (["generate", "here/model", "prompt", "--save-memory", "hree/memory"], "here"),
        (["retrofit", "here/modl/", "new"], "here/model"),
        (["convert", "here/modl/", "new"], "here/model"),
        (["card", "hree/model"], "here/model"),
        (["push", "hree/model", "me/model"], "here/model"),
        (["train", "here/recipee.yaml"], "here/recipe.yaml"),
    ],
)
def test_the_nearest_name_is_suggested(arguments, nearest, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    for name in ("text.txt", "recipe.yaml"):
        (tmp_path / "here" / name).touch()
    monkeypatch.setattr(sys, "argv", ["hf-loop", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n")) == (2, 1)
    assert nearest in errors


def test_completion_is_offered_and_needs_no_torch():
    result = run(
        """
        import os, sys, sysconfig
        sys.argv = [sysconfig.get_path("scripts") + "/hf-loop"]
        os.environ |= {"_HF_LOOP_COMPLETE": "complete_bash", "COMP_WORDS": "hf-loop sw", "COMP_CWORD": "1"}
        from hf_loop.cli.main import main
        try:
            main()
        finally:
            assert "torch" not in sys.modules
        """
    )
    assert result.stdout.split() == ["sweep"], result.stderr
