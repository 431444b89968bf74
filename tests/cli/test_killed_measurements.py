"""Measurements that are killed at random moments: the command that is given again ends with the same files."""

import json
import os
import random
import signal

import pytest

from ..test_kills import Moments, in_child, main


COMMANDS = {
    "scan": ("--loops", "2,3", "--window", "16", "--max-tokens", "60", "--device", "cpu"),
    "sweep": ("--loops", "1,2", "--window", "16", "--max-tokens", "60"),
    "sweep with controls": ("--controls", "--loops", "1,2", "--window", "16", "--max-tokens", "60"),
}


def results(folder):
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".json")}
    return {
        name: {key: value for key, value in json.loads(content).items() if key not in ("seconds", "date")}
        if name.endswith(".json")
        else content
        for name, content in found.items()
    }


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_measurement_ends_with_the_same_files(name, seed, plain_folder, looped_folder, tmp_path, monkeypatch):
    text = tmp_path / "games.txt"
    text.write_text("ball:1 1<->2 2<->3 ball:3\n" * 20)
    model = plain_folder if name == "scan" else looped_folder
    log = tmp_path / "log"

    def command(folder):
        arguments = ["hf-loop", name.split()[0], model, "--text", text, *COMMANDS[name], "--output-dir", folder]
        monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
        main()

    counted = tmp_path / "count"

    def counting():
        moments = Moments()
        moments.watch()
        try:
            command(tmp_path / "whole")
        finally:
            counted.write_text(str(moments.count))

    assert in_child(counting, log) == 0, log.read_text()
    fatal = random.Random(f"{name} {seed}").randint(1, int(counted.read_text()))

    def dying():
        Moments(fatal).watch()
        command(tmp_path / "out")

    assert in_child(dying, log) == -signal.SIGKILL, log.read_text()
    assert in_child(lambda: command(tmp_path / "out"), log) == 0, log.read_text()
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))
