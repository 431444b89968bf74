"""Writes a model folder whole or not at all."""

import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


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
    # beside the folder: only within a file system is a rename one step
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        yield folder
        # the umask decides who may read the files, and not safetensors, which makes private ones
        mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        if output_dir.is_dir():
            output_dir.rmdir()
        folder.rename(output_dir)


def size_on_disk(folder: Path) -> str:
    """Return the size of a folder's weights, as text."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
