"""Output folders: one writer at a time, and after a kill at any moment nothing or everything."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_loop.cli.save import check_new_folder
from hf_loop.files import write_text
from hf_loop.output_folders import folder_lock, whole_folder


NEW = {"config.json": "new", "figures/figure.png": "new", "model.safetensors": "new"}


def write_and_die(output_dir: Path, moment: int) -> bool:
    """Write a folder in a child process that is killed before its n-th change of the file system: whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    calls = itertools.count(1)

    def killed(function):
        def call(*args, **kwargs):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, killed(getattr(os, name)))
    try:
        with whole_folder(output_dir) as folder:
            for name in NEW:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("new")
    finally:
        os._exit(0)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", [None, {}, {"config.json": "old", "model.safetensors": "old", "notes.txt": "mine"}])
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path, before):
    output_dir = tmp_path / "out"
    for moment in itertools.count(1):
        if before is not None:
            output_dir.mkdir(exist_ok=True)
        for name, text in (before or {}).items():
            (output_dir / name).write_text(text)
        was_killed = write_and_die(output_dir, moment)
        # the next writer cleans up
        with folder_lock(output_dir):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["out"] * output_dir.exists()
        found = contents(output_dir)
        assert found in (before or {}, {**(before or {}), **NEW}), moment
        if not was_killed:
            assert moment > 10 and found == {**(before or {}), **NEW}
            return
        if output_dir.exists():
            shutil.rmtree(output_dir)


HOLDER = """
import sys
from hf_loop.output_folders import folder_lock
with folder_lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "a" / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_second_writer_is_refused_and_changes_nothing(tmp_path, holder, monkeypatch):
    output_dir = tmp_path / "a" / "out"
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "a")
    # by whatever name
    for folder in (output_dir, Path("out"), "out/", tmp_path / "a" / ".." / "a" / "out"):
        with (
            pytest.raises(ValueError, match=r"out/? is in use: another process is writing into it"),
            folder_lock(folder),
        ):
            pytest.fail("both have the lock")
    with pytest.raises(ValueError, match="is in use"), whole_folder(output_dir):
        pytest.fail("both have the lock")
    output_dir.mkdir()
    with pytest.raises(ValueError, match="is in use"):
        check_new_folder(output_dir)
    output_dir.rmdir()
    assert sorted(tmp_path.rglob("*")) == before
    # folders beside it are free
    with folder_lock(tmp_path / "a" / "other"):
        pass


def test_a_killed_writer_locks_nobody_out(tmp_path, holder):
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path / "a" / "out"), folder_lock(tmp_path / "a" / "out"):
        # again in one process: a run locks its folder and so does its trainer
        pass
    assert list((tmp_path / "a").iterdir()) == []


def test_the_lock_leaves_no_folder_that_it_made(tmp_path):
    with folder_lock(tmp_path / "deep" / "er" / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_what_a_killed_writer_left_is_removed(tmp_path):
    kept = {".hidden.tmp": "", "notes-12345678.tmp": "", ".notes-1234.tmp": "", ".out-abcdefgh.tmp": ""}
    for folder in (tmp_path, tmp_path / "out"):
        folder.mkdir(exist_ok=True)
        for name in (*kept, ".out-0123abcd.tmp", ".other-0123abcd.tmp"):
            write_text(folder / name, "")
    with folder_lock(tmp_path / "out"):
        pass
    # beside the folder other writers may be at work
    assert set(os.listdir(tmp_path)) == {*kept, "out", ".other-0123abcd.tmp"}
    assert set(os.listdir(tmp_path / "out")) == set(kept)


def test_files_are_written_through_links_and_never_over_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ValueError, match=f"{name} is no regular file; give another name"):
            write_text(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link", "pipe"]
