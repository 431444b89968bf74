"""Runs that are killed at random moments, and then go on to the same losses and weights.

A run is a child process. Half of the moments are changes of the file system, counted: the child dies just before one,
or, where it is the writing of a file, with half of that file on disk. The other half are moments in time, at which it
is killed from outside.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hf_loop.cli import quickstart
from hf_loop.cli.main import main
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe


RECIPES = Path(__file__).parents[1] / "training" / "recipes"
MIXTRAL = {
    "model_type": "mixtral",
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
HRM_TEXT = "{hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_loops: 2}"
# recipes in their debug variants, with what is not in any of them
KINDS = {
    "looped": ("looped/shell_game", ()),
    "looped, streaming, Muon": ("looped/text_pretraining", ("data.streaming=true",)),
    "looped mixture of experts": ("looped/shell_game", (f"model.backbone={json.dumps(MIXTRAL)}",)),
    "retrofit, teacher": ("retrofit/smollm2_135m", ()),
    "feedback": ("feedback/passkey", ("model.config.random_state_passing=0.8",)),
    "feedback, LoRA": ("feedback/smollm2_135m_lora", ("model.config.random_state_passing=0.8",)),
    "sleep": ("sleep/associative_recall", ()),
    "composed": ("composed/delayed_shell_game", ()),
    "puzzle, averaged weights": ("hierarchical/sudoku_4x4", ()),
    "puzzle, best average": (
        "hierarchical/sudoku_6x6",
        ("training.load_best_model_at_end=true", "training.eval_strategy=steps", "training.eval_steps=2"),
    ),
    "hierarchical": (
        "looped/shell_game",
        ("model.family=hierarchical", "model.preset=hrm_text", "model.backbone=null", f"model.config={HRM_TEXT}"),
    ),
}
TRAINING = (
    *("training.max_steps=6", "training.save_strategy=steps", "training.save_steps=2", "training.save_total_limit=2"),
    *("training.logging_steps=1", "training.use_cpu=true", "training.disable_tqdm=true"),
)


def run(kind: str, folder: Path, *, resume: bool = False) -> None:
    name, overrides = KINDS[kind]
    options = [*TRAINING, f"training.output_dir={folder}", *overrides]
    if resume:
        options.append("training.resume_from_checkpoint=true")
    run_recipe(load_recipe(RECIPES / f"{name}.yaml", options, debug=True))


def outcome(folder: Path) -> tuple[list[tuple[int, float]], dict[str, bytes]]:
    """The losses of training and evaluation, and the weights of the model in the end."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [
        (entry["step"], value) for entry in history for name, value in entry.items() if name in ("loss", "eval_loss")
    ]
    return losses, {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Moments:
    """Counts the changes that a process makes to the file system, and ends it before one of them.

    Args:
        fatal: the change to end it at, from 1; the last one that is made is the attribute `count`.
        end: what happens then.
    """

    def __init__(self, fatal: int | None = None, end: Callable[[], None] = die) -> None:
        self.count, self.fatal, self.end = 0, fatal, end

    def watch(self) -> None:
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
            setattr(os, name, self.before(getattr(os, name)))
        for module, name in ((torch, "save"), (safetensors.torch, "save_file"), (json, "dump")):
            setattr(module, name, self.before(getattr(module, name), halves=True))

    def before(self, function: Callable, halves: bool = False) -> Callable:
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.fatal:
                if halves:
                    function(*args, **kwargs)
                    halve([arg for arg in args if isinstance(arg, str | Path)])
                self.end()
            return function(*args, **kwargs)

        return call


def halve(paths: list[str | Path]) -> None:
    for path in map(Path, paths):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def in_child(function: Callable[[], object], log: Path, patience: float | None = None) -> int:
    """Run a function in a child process; kill that after `patience` seconds. The exit code, negative for a signal."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                # pytest has streams of its own there
                sys.stdout = sys.stderr = file
                function()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            with log.open("a") as file:
                traceback.print_exc(file=file)
        finally:
            os._exit(code)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """From a kind to a run that nothing interrupts: its outcome, changes of the file system, seconds and bytes."""
    runs: dict[str, tuple] = {}

    def make(kind: str) -> tuple:
        if kind not in runs:
            folder = tmp_path_factory.mktemp("whole")
            counted = folder / "count"

            def counting() -> None:
                moments = Moments()
                moments.watch()
                run(kind, folder / "run")
                counted.write_text(str(moments.count))

            start = time.monotonic()
            code = in_child(counting, folder / "log")
            assert code == 0, (folder / "log").read_text()
            size = sum(path.stat().st_size for path in (folder / "run").rglob("*"))
            runs[kind] = outcome(folder / "run"), int(counted.read_text()), time.monotonic() - start, size
        return runs[kind]

    return make


def kill_and_resume(kind: str, folder: Path, expected: tuple, moments: int, seconds: float, seed: int) -> None:
    draw = random.Random(f"{kind} {seed}")
    log = folder.with_name("log")
    if seed % 2:
        code = in_child(lambda: run(kind, folder), log, draw.uniform(0.1, 1) * seconds)
        assert code in (0, -signal.SIGKILL), log.read_text()
    else:
        fatal = draw.randint(1, moments)

        def dying() -> None:
            Moments(fatal).watch()
            run(kind, folder)

        assert in_child(dying, log) == -signal.SIGKILL, log.read_text()
    # a run that was killed before its first checkpoint begins again: nothing that it left is in the way
    has_checkpoint = folder.is_dir() and any(folder.glob("checkpoint-*"))
    code = in_child(lambda: run(kind, folder, resume=has_checkpoint), log)
    assert code == 0, log.read_text()
    assert outcome(folder) == expected
    left = [path.name for path in folder.parent.rglob(".*") if path.name.endswith((".tmp", ".whole", ".lock"))]
    assert left == []
    assert len(list(folder.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for seed, kind in enumerate(KINDS)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(kind, seed, whole, tmp_path):
    expected, moments, seconds, _ = whole(kind)
    kill_and_resume(kind, tmp_path / "run", expected, moments, seconds, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_twenty_moments_goes_on_as_if_it_had_not_been(kind, seed, whole, tmp_path):
    expected, moments, seconds, _ = whole(kind)
    kill_and_resume(kind, tmp_path / "run", expected, moments, seconds, seed)


def start_quickstart(folder: Path) -> None:
    quickstart.NUM_TEST_GAMES = 8
    quickstart.quickstart(folder, seed=1, steps=2)


@pytest.fixture(scope="module")
def whole_quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")

    def counting() -> None:
        moments = Moments()
        moments.watch()
        start_quickstart(folder / "run")
        (folder / "count").write_text(str(moments.count))

    start = time.monotonic()
    assert in_child(counting, folder / "log") == 0, (folder / "log").read_text()
    return folder / "run", int((folder / "count").read_text()), time.monotonic() - start


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_killed_quickstart_is_started_again(seed, is_there, whole_quickstart, tmp_path):
    expected, moments, seconds = whole_quickstart
    # a card is named after its folder
    folder, log = tmp_path / "run", tmp_path / "log"
    if is_there:
        folder.mkdir()
    draw = random.Random(seed)
    # the end, where everything is written, has most of the moments
    fatal = draw.randint(1, moments)

    def dying() -> None:
        Moments(fatal).watch()
        start_quickstart(folder)

    patience = draw.uniform(0.1, 1) * seconds if seed % 2 else None
    code = in_child((lambda: start_quickstart(folder)) if seed % 2 else dying, log, patience)
    assert code in (0, -signal.SIGKILL), log.read_text()
    assert in_child(lambda: start_quickstart(folder), log) == 0, log.read_text()
    for name in ("model.safetensors", "results.json", "config.json", "README.md"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(os.listdir(tmp_path)) == ["log", "run"]
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))
    assert "training" not in os.listdir(folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 30 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["looped", "feedback", "puzzle, averaged weights"])
def test_a_run_goes_on_after_the_disk_was_full(kind, seed, whole, small_disk, tmp_path):
    expected, _, _, size = whole(kind)
    log, folder = tmp_path / "log", small_disk / "run"
    name, overrides = KINDS[kind]
    options = [f"--set={option}" for option in (*TRAINING, f"training.output_dir={folder}", *overrides)]
    arguments = ["hf-loop", "train", str(RECIPES / f"{name}.yaml"), "--debug", *options]

    def command(*more: str) -> None:
        sys.argv = [*arguments, *more]
        main()

    # less is left than a run leaves in the end
    left = random.Random(f"{kind} {seed}").randint(0, size)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (30 << 20) - left)
    code = in_child(command, log)
    assert code == 2, log.read_text()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("hf-loop: error: ") and "No space left on device" in last and str(folder) in last
    ballast.unlink()
    has_checkpoint = folder.is_dir() and any(folder.glob("checkpoint-*"))
    assert in_child(lambda: command(*["--resume"] * has_checkpoint), log) == 0, log.read_text()
    assert outcome(folder) == expected
    assert not [path.name for path in small_disk.rglob(".*")]
