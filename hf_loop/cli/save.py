"""What commands check of an output folder, and say of it."""

from pathlib import Path

from ..output_folders import folder_lock


def check_new_folder(output_dir: Path) -> None:
    """Refuse an output folder that is not new or empty, after what a killed command left in it is cleaned up.

    Raises:
        ValueError: if `output_dir` is a file, or a folder that is not empty, or another process is writing into it.
    """
    if output_dir.is_dir():
        with folder_lock(output_dir):
            pass
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder; give another one")


def size_on_disk(folder: Path) -> str:
    """Return the size of a folder's weights, as text."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
