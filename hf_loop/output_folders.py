"""Output folders: one writer at a time, and everything in them whole or not at all.

A folder that is written whole is first a scratch folder, `.{name}-{random}.tmp`, inside the folder to fill or beside
the folder to make. When everything is in it, it is renamed: to the folder that did not exist, or to
`.{name}-{random}.whole`, from which the files are then moved into the folder that did. So a kill leaves either a
scratch folder, which the next writer removes, or a whole one, whose files the next writer moves.

The lock of an output folder is the lock of a file by `filelock`, which `huggingface_hub` requires: it uses the
system's own locks (`flock`, on Windows `LockFileEx`), which end with the process that holds them, so that a killed run
locks nobody out. The file lies beside the folder, because the folders that commands fill have to be empty.

Commands check their output folder before they load torch, so this module imports it only to write.
"""

import os
import re
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


# without these a folder is no model folder: they are moved in last
CONFIG_FILES = ("adapter_config.json", "config.json")
# what killed writers leave behind: `.models.files.scratch_path` makes such names
SCRATCH_NAME = re.compile(r"\..+-[0-9a-f]{8}\.tmp")
WHOLE_NAME = re.compile(r"\..+-[0-9a-f]{8}\.whole")
# folders that this process has locked
_locked: set[Path] = set()


@contextmanager
def folder_lock(folder: str | os.PathLike) -> Generator[None]:
    """Hold the lock of an output folder inside the `with` block, and clean up what a killed writer left behind.

    The folder need not exist. A process may lock a folder again that it has locked.

    Args:
        folder (`str` or `os.PathLike`): the output folder.

    Raises:
        ValueError: if another process holds the lock; nothing is changed.
    """
    target = Path(folder).resolve()
    if target in _locked:
        yield
        return
    # beside the folder, or in it where only that can be written, as in a file system of its own
    place = target if target.is_dir() and not os.access(target.parent, os.W_OK) else target.parent
    made = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / lock_name(target), blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use: another process is writing into it; wait for its end or give another folder"
        ) from error
    _locked.add(target)
    try:
        clean_scratch(target)
        yield
    finally:
        _locked.discard(target)
        # before the release: whoever opens the file until then is refused
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        for path in made:
            # `made` begins with the innermost folder; one that is not empty stays, and so do those around it. Another
            # process may fill it or remove it at any moment
            with suppress(OSError):
                path.rmdir()


def lock_name(folder: Path) -> str:
    """Return the name of the lock file of an output folder."""
    return f".{folder.name}.lock"


def clean_scratch(folder: Path) -> None:
    """Remove the scratch files in and beside a folder, and move in the files of a scratch folder that is whole.

    Args:
        folder (`Path`): an output folder whose lock is held.
    """
    folder = folder.resolve()
    beside = [path for path in folder.parent.glob(f".{folder.name}-*.tmp") if os.access(folder.parent, os.W_OK)]
    inside = list(folder.iterdir()) if folder.is_dir() else []
    for path in beside + inside:
        if WHOLE_NAME.fullmatch(path.name):
            _move_in(path, folder)
        elif SCRATCH_NAME.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole_folder(output_dir: Path) -> Generator[Path]:
    """Give a scratch folder to write into, whose files are in `output_dir` once everything is written.

    Args:
        output_dir (`Path`): the folder to make or to write into; files of the same names are replaced.

    Raises:
        ValueError: if another process is writing into `output_dir`.
        OSError: if a file cannot be written; the message names it or the folder.
    """
    from .models.files import scratch_path, write_errors_named

    if SCRATCH_NAME.fullmatch(output_dir.name):
        # part of what another `with` block writes whole
        yield output_dir
        return
    with folder_lock(output_dir), write_errors_named(output_dir):
        target = output_dir.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # within the folder or beside it, as only within a file system is a rename one step. A folder that is there
        # stays the same one: it may be where the user is, or a file system of its own
        is_there = target.is_dir()
        scratch = scratch_path(target / target.name if is_there else target)
        try:
            scratch.mkdir()
            yield scratch
            finish_folder(scratch)
            whole = scratch.with_suffix(".whole") if is_there else target
            scratch.rename(whole)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        if is_there:
            _move_in(whole, target)


def finish_folder(folder: Path) -> None:
    """Give the files of a scratch folder the mode of the umask, and have the system write them to the disk."""
    from .models.files import write_through

    # the umask decides who may read the files, and not safetensors, which makes private ones
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        write_through(path)
    write_through(folder)


def _move_in(whole: Path, target: Path) -> None:
    files = sorted((path for path in whole.rglob("*") if path.is_file()), key=lambda path: path.name in CONFIG_FILES)
    for name in CONFIG_FILES:
        # files of two models side by side are no model folder either
        if (whole / name).is_file():
            (target / name).unlink(missing_ok=True)
    for path in files:
        place = target / path.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    shutil.rmtree(whole)
