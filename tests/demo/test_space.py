"""A Space has all that its page needs, and is uploaded whole or not at all. A Hub on loopback takes it."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_loop.demo.space import package_versions, space_files

from ..hub_processes import run_python
from ..hub_server import HubServer
from .models import PROMPT, PUZZLE_TOKENIZER, make_model, make_solver, save


pytest.importorskip("gradio")
CARD = "---\nlicense: mit\n---\n# Mine\n"


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "game", make_model("looped"))
    (tmp_path / "game" / "README.md").write_text(CARD)
    (tmp_path / "game" / "notes.txt").write_text("not for the Hub")
    return tmp_path / "game"


def test_the_files_of_a_space(folder):
    files = {item.path_in_repo: item.path_or_fileobj for item in space_files(folder, "me/my-game")}
    assert {"app.py", "requirements.txt", "README.md", "model/model.safetensors", "model/config.json"} <= files.keys()
    assert {"hf_loop/__init__.py", "hf_loop/cli/demo.py", "hf_loop/models/backbone.py"} <= files.keys()
    assert not [name for name in files if name.endswith((".txt", ".pyc")) and name != "requirements.txt"]
    header = ModelCard(files["README.md"].decode()).data.to_dict()
    versions = package_versions()
    expected = {"title": "my-game", "sdk": "gradio", "app_file": "app.py", "license": "mit"}
    assert expected.items() <= header.items()
    assert header["sdk_version"] == versions["gradio"]
    assert header["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = files["requirements.txt"].decode().splitlines()
    assert lines == [f"{name}=={version}" for name, version in versions.items()]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    # neither what tests need nor other extras
    assert {"torch", "transformers", "gradio"} <= versions.keys() and not {"pytest", "lm_eval"} & versions.keys()


def push(hub, home, *arguments, expect_failure=False):
    code = f"import sys\nsys.argv = ['hf-loop', 'push', *{list(map(str, arguments))}]\n"
    code += "from hf_loop.cli.main import main\nmain()\n"
    return run_python(code, hub, home, expect_failure)


def test_a_space_is_pushed_runs_and_forgets_old_files(folder, tmp_path):
    with HubServer() as hub:
        output = push(hub, tmp_path, folder, "me/game", "--space")
        assert output.strip().endswith("/spaces/me/game")
        files = dict(hub.files("spaces/me/game"))
        assert "me/game" not in hub.repositories
        # the empty repository, and one commit
        assert len(hub.repositories["spaces/me/game"].commits) == 2
        (folder / "generation_config.json").unlink()
        push(hub, tmp_path, folder, "me/game", "--space")
        assert files.keys() - hub.files("spaces/me/game").keys() == {"model/generation_config.json"}
        assert hub.unknown_requests == []
    space = tmp_path / "space"
    for name, data in files.items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(data)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    check_space_runs(space, port)


def check_space_runs(space: Path, port: int) -> None:
    """Run a Space as the Hub does, with the package that is in it, and ask its page."""
    code = "import hf_loop, runpy; print(hf_loop.__file__, flush=True); runpy.run_path('app.py', run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=space, stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert Path(process.stdout.readline().strip()).is_relative_to(space)
        from gradio_client import Client

        url = f"http://127.0.0.1:{port}/"
        wait_for(url, process)
        continuations, lens, _ = Client(url, verbose=False).predict(PROMPT, 3, 4, "kl", 0.1, api_name="/read")
        assert "3 loops" in continuations and 'class="lens"' in lens
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(300):
        assert process.poll() is None, "the Space ended"
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the Space did not open its page")


def without_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def with_token(folder):
    (folder / "README.md").write_text("hf_" + "SECRET" * 6)


FAULTS = {
    "no tokenizer": (without_tokenizer, "holds no tokenizer"),
    "truncated weights": (truncated, "is truncated"),
    "an access token": (with_token, "holds an access token"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "has no README.md"),
    "no model": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_could_not_run_is_refused_before_any_request(fault, folder, monkeypatch, capsys):
    from hf_loop.cli.main import main

    def refuse(*arguments, **options):
        raise AssertionError("a request was made")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    damage, message = FAULTS[fault]
    damage(folder)
    monkeypatch.setattr(sys, "argv", ["hf-loop", "push", str(folder), "me/game", "--space"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_puzzle_model_has_a_space_too(tmp_path):
    save(tmp_path, make_solver(), PUZZLE_TOKENIZER)
    (tmp_path / "README.md").write_text(CARD)
    assert "model/model.safetensors" in {item.path_in_repo for item in space_files(tmp_path, "solver")}
