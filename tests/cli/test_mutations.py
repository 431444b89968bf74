"""Command lines and model folders, valid ones changed: whatever is wrong is one line that names it, no traceback."""

import json
import os
import shutil
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, set_seed

from hf_loop.cli.main import main
from hf_loop.models import (
    FeedbackConfig,
    FeedbackForCausalLM,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    LoopedConfig,
    LoopedForCausalLM,
    SleepConfig,
    SleepForCausalLM,
)

from .test_solve import PUZZLES, make_folder


TEXT = "ball:1 1<->2 2<->3 ball:3\n" * 20
# the commands that read a folder, each with what it needs: {model}, {new}, {text} and {puzzles} are places
COMMANDS = {
    "plain": [
        ["scan", "{model}", "--text", "{text}", "--max-tokens", "30", "--max-length", "1", "--output-dir", "{new}"],
        ["retrofit", "{model}", "{new}", "--core", "1-1"],
        ["check", "{model}"],
        ["generate", "{model}", "ball:1", "--max-new-tokens", "2", "--loops", "1"],
        ["info", "{model}"],
    ],
    "looped": [
        ["sweep", "{model}", "--text", "{text}", "--loops", "1", "--max-tokens", "30", "--output-dir", "{new}"],
        ["generate", "{model}", "ball:1", "--max-new-tokens", "2", "--loops", "1,2"],
        ["unroll", "{model}", "{new}"],
        ["card", "{model}"],
        ["info", "{model}"],
    ],
    "feedback": [
        ["generate", "{model}", "ball:1 1<->2", "--max-new-tokens", "2", "--memory", "{model}/memory.safetensors"],
        ["info", "{model}"],
    ],
    "sleep": [["generate", "{model}", "ball:1 1<->2", "--max-new-tokens", "2"], ["info", "{model}"]],
    "hierarchical": [["generate", "{model}", "ball:1", "--max-new-tokens", "2", "--loops", "1"], ["info", "{model}"]],
    "puzzle": [["solve", "{model}", "{puzzles}", "--output", "{model}/answers.csv"], ["info", "{model}"]],
}
CASES = [(kind, command) for kind, commands in COMMANDS.items() for command in commands]
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "results.json")
FUZZ = settings(
    max_examples=int(os.environ.get("HF_LOOP_FUZZ", "6")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)

scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, -1, 3, 7, 64, 0.5, -1.5, 1e30, float("nan"), float("inf")])
    | st.sampled_from(["", "x", "llama", "float16", "nn", "null", "1", "../x", "日本"])
)
values: Any = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "model_type", "dtype"]), inner),
    max_leaves=4,
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer, backbone_config):
    """A folder of each kind of model, with all files that commands read."""
    place = tmp_path_factory.mktemp("folders")
    set_seed(0)
    looped = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    feedback = FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone_config, block_size=4, feedback_length=2))
    models = {
        "plain": LlamaForCausalLM(backbone_config),
        "looped": LoopedForCausalLM(looped),
        "feedback": feedback,
        "sleep": SleepForCausalLM(SleepConfig(backbone_config=backbone_config, sleep_window=4)),
        "hierarchical": HierarchicalForCausalLM(
            HierarchicalConfig(backbone_config=backbone_config, shared_stack=True)
        ),
    }
    for kind, model in models.items():
        model.save_pretrained(place / kind)
        tokenizer.save_pretrained(place / kind)
    with torch.no_grad():
        cache = feedback.eval()(torch.arange(6)[None], use_cache=True).cache
    feedback.save_memory(cache, place / "feedback" / "memory.safetensors")
    curve = {"metric": "accuracy", "label": "m", "num_loops": [1, 2], "values": [0.5, 1.0], "trained_loops": 2.0}
    (place / "looped" / "results.json").write_text(json.dumps({"curves": [curve], "seed": 1, "notes": ["a"]}))
    make_folder(place / "puzzle")
    (place / "puzzles.txt").write_text(f"{PUZZLES[0]}\n")
    (place / "text.txt").write_text(TEXT)
    return place


@pytest.fixture
def run(monkeypatch, capsys, folders, tmp_path):
    """Run a command on a copy of a folder that was changed, and check how it ended."""

    def run_command(kind: str, command: list[str], change: Any, *named: str) -> None:
        model, new = tmp_path / kind, tmp_path / "new"
        for folder in (model, new):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folders / kind, model)
        change(model)
        places = {"model": model, "new": new, "text": folders / "text.txt", "puzzles": folders / "puzzles.txt"}
        monkeypatch.setattr(sys, "argv", ["hf-loop", *(part.format(**places) for part in command)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        check_ending(stop.value.code or 0, captured.err, *named)
        if stop.value.code:
            # no half of a result either
            assert not new.exists() or not list(new.rglob("*.safetensors"))

    return run_command


def check_ending(code: Any, errors: str, *named: str) -> None:
    """Hold an exit code and what stands on stderr to each other."""
    lines = [line for line in errors.replace("\r", "\n").splitlines() if line.startswith("hf-loop: ")]
    assert code in (0, 2), errors
    assert "Traceback" not in errors
    assert len(lines) == (code == 2), errors
    if code == 2:
        assert not named or any(name in lines[0] for name in named), lines[0]


@st.composite
def changes_of_json(draw):
    """A file of a folder, and a function that changes an entry of it, at any depth."""
    name = draw(st.sampled_from(JSON_FILES))
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "whole"]))
    path = draw(st.lists(st.integers(0, 50), min_size=1, max_size=4))
    value = draw(values)

    def change(folder: Path) -> None:
        file = folder / name
        if not file.is_file():
            return
        stored = json.loads(file.read_text(encoding="utf-8"))
        if how == "whole":
            file.write_text(json.dumps(value))
            return
        place, key = stored, None
        for step in path:
            keys = sorted(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else ()
            if not keys:
                break
            parent, key = place, keys[step % len(keys)]
            place = parent[key]
        if how == "add" and isinstance(stored, dict):
            stored["unheard_of"] = value
        elif key is not None and how == "remove":
            del parent[key]
        elif key is not None:
            parent[key] = value
        file.write_text(json.dumps(stored))

    return name, change


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize(("kind", "command"), CASES, ids=[f"{command[0]}-{kind}" for kind, command in CASES])
def test_a_changed_entry_of_a_file_is_named(kind, command, run, data):
    name, change = data.draw(changes_of_json())
    stem = name.removesuffix(".json")
    # the field is named where the file is fine by itself
    run(kind, command, change, name, stem, "tokenizer", "`", "the model's own perplexity", "vocabulary")


@FUZZ
@given(name=st.sampled_from([*JSON_FILES, "model.safetensors", "memory.safetensors"]), data=st.data())
@pytest.mark.parametrize(("kind", "command"), CASES, ids=[f"{command[0]}-{kind}" for kind, command in CASES])
def test_changed_bytes_of_a_file_are_one_line(kind, command, run, name, data):
    how = data.draw(st.sampled_from(["cut", "flip", "empty", "zeros", "utf-16", "random"]))
    position, byte = data.draw(st.integers(0, 4000)), data.draw(st.integers(0, 255))

    def change(folder: Path) -> None:
        file = folder / name
        if not file.is_file():
            return
        whole = file.read_bytes()
        at = position % max(len(whole), 1)
        file.write_bytes(
            {
                "cut": whole[:at],
                "flip": whole[:at] + bytes([byte]) + whole[at + 1 :],
                "empty": b"",
                "zeros": b"\0" * at,
                "utf-16": whole.decode("latin-1").encode("utf-16"),
                "random": bytes((byte * index) % 251 for index in range(at)),
            }[how]
        )

    run(kind, command, change)


words = st.sampled_from(
    ["1", "0", "-1", "2.5", "1,2", "1-1", "0-9", "4:8", "x", "", "null", "num_loops=2", "=", "a=b", "block_size=2"]
    + [
        "looped",
        "feedback",
        "--",
        "-",
        "--help",
        "--loops",
        "--text",
        "--core",
        "--set",
        "--family",
        "--quiet",
        "plain",
    ]
    + ["text.txt", "nowhere", "no/where", "plain/config.json", "shell_game", "new", ".", "..", "/", "~", "日本"]
) | st.text(string.printable, max_size=8)


@FUZZ
@given(
    command=st.sampled_from([command for _, command in CASES]),
    inserted=st.lists(st.tuples(st.integers(0, 12), st.booleans(), words), min_size=1, max_size=3),
)
def test_a_changed_command_line_is_one_line(command, inserted, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # a name that may be a repository's is asked for on the Hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kind in COMMANDS:
        if not (tmp_path / kind).exists():
            shutil.copytree(folders / kind, tmp_path / kind)
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    kind = next(kind for kind, other in CASES if other is command)
    arguments = [
        part.format(model=kind, new="new", text=folders / "text.txt", puzzles=folders / "puzzles.txt")
        for part in command
    ]
    for position, replaces, word in inserted:
        at = position % len(arguments)
        arguments[at : at + replaces] = [word]
    monkeypatch.setattr(sys, "argv", ["hf-loop", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    check_ending(stop.value.code or 0, capsys.readouterr().err)
