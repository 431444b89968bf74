"""`hf-loop demo`: what it refuses, before it opens a page, and that the page opens. What is on it: tests/demo."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from hf_loop.cli.demo import build_page

from ..demo.models import PUZZLE_TOKENIZER, make_solver, save


def test_gradio_is_asked_for_before_the_model(hf_loop, monkeypatch, looped_folder):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for model in (looped_folder, "no/such/folder"):
        code, _, error = hf_loop("demo", model)
        assert (code, error.count("\n")) == (2, 1)
        assert "pip install 'hf-loop[demo]'" in error


def test_models_that_have_no_page_are_refused(hf_loop, tmp_path, looped_folder):
    pytest.importorskip("gradio")
    assert "there is no folder" in hf_loop("demo", tmp_path / "missing")[2]
    for name in looped_folder.glob("*token*"):
        name.unlink()
    code, _, error = hf_loop("demo", looped_folder)
    assert (code, error.count("\n")) == (2, 1) and "holds no tokenizer" in error


def test_a_taken_port_and_a_strange_address_are_said_in_one_line(hf_loop, looped_folder):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = hf_loop("demo", looped_folder, "--port", port, "--quiet")
    last = error.strip().splitlines()[-1]
    assert (code, last.startswith(f"hf-loop: error: port {port} is taken, or 127.0.0.1 is")) == (2, True), error
    # an address for examples, which no machine has
    code, _, error = hf_loop("demo", looped_folder, "--host", "192.0.2.1", "--port", port, "--quiet")
    assert code == 2 and "192.0.2.1" in error.strip().splitlines()[-1]


def test_the_page_of_a_folder_says_what_the_model_is(looped_folder, plain_folder, tmp_path):
    pytest.importorskip("gradio")

    def head(folder):
        return next(
            item["props"]["value"]
            for item in build_page(str(folder)).get_config_file()["components"]
            if item["props"].get("elem_id") == "head"
        )

    assert head(looped_folder).startswith("## looped\n1+1+1 layers (prelude, core, coda), 2 loops. ")
    # looped without training, so that one loop is the original
    assert "3 layers" in head(plain_folder) or "0+3+0 layers" in head(plain_folder)
    assert "2 segments" in head(save(tmp_path / "solver", make_solver(max_segments=2), PUZZLE_TOKENIZER))


def test_the_command_serves_until_it_is_interrupted(looped_folder):
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hf_loop.cli", "demo", str(looped_folder), "--port", str(port), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert "looped, loop by loop" in page.read().decode()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (0, 130)
    finally:
        process.kill()
        process.stdout.close()
