"""Writing a file whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` to `path` through a temporary file in the same folder and `os.replace`.

    A reader never sees half a file, and a failed write leaves the old one as it was.

    Args:
        path (`str` or `Path`): The file to write; its folder must exist.
        text (`str`): The content, written as UTF-8.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes files private; a result file follows the user's umask like any other
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
