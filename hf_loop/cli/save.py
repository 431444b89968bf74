"""Writes a model folder whole or not at all."""

import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


CONFIG_FILE = "config.json"


def check_new_folder(output_dir: Path) -> None:
    """Refuse an output folder that is not new or empty.

    Raises:
        ValueError: if `output_dir` is a file, or a folder that is not empty.
    """
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder; give another one")


@contextmanager
def whole_folder(output_dir: Path) -> Generator[Path]:
    """Give a temporary folder to write into, which becomes `output_dir` once everything is in it.

    Args:
        output_dir (`Path`): the folder to make; it is new or empty (see [`check_new_folder`]).
    """
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # within the folder or beside it, as only within a file system is a rename one step
    is_there = output_dir.is_dir()
    place = output_dir if is_there else output_dir.parent
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{output_dir.name}-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        yield folder
        # the umask decides who may read the files, and not safetensors, which makes private ones
        mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        if not is_there:
            folder.rename(output_dir)
            return
        # a folder that is there stays the same one: it may be where the user is, or a file system of its own; without
        # its configuration, which comes last, it is no model folder
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            path.rename(output_dir / path.name)


def size_on_disk(folder: Path) -> str:
    """Return the size of a folder's weights, as text."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
