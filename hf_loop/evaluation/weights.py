"""Looking at safetensors files without loading them."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open


def check_weight_files(folder: str | Path) -> None:
    """Checks that every safetensors file of a folder is complete, by its header.

    Raises:
        ValueError: If a file is truncated or not a safetensors file; the message names it.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            size = path.stat().st_size
            raise ValueError(f"{path} is truncated or damaged ({size} bytes): {error}.") from error


def count_stored_parameters(folder: str | Path) -> int | None:
    """The number of weights in a folder's safetensors files; a shared weight is stored, and counted, once.

    Returns:
        `int` or `None`: `None` if the folder has no such file.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        return None
    total = 0
    for path in paths:
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 not a dict
    return total
