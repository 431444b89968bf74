"""Options that several commands share, and how their text is read."""

import sys
from typing import Annotated

import typer


Loops = Annotated[str, typer.Option("--loops", help="Loop counts, separated by commas.")]
Prelude = Annotated[
    int | None, typer.Option(help="For a checkpoint that is not looped: layers that run once before the loop.")
]
Coda = Annotated[
    int | None, typer.Option(help="For a checkpoint that is not looped: layers that run once after the loop.")
]
Core = Annotated[
    str | None,
    typer.Option(
        metavar="FIRST-LAST",
        help="For a checkpoint that is not looped: the layers to loop, counted from 0, both ends included. Layers "
        "between it and a given --prelude or --coda are left out.",
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no warnings of other libraries.")]
FieldValues = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the configuration; may be repeated."),
]


def check_text(text: str, name: str) -> None:
    """Refuse text that Python has made of bytes that are none, since tokenizers fail on it.

    Args:
        text (`str`): an argument, or a line that was read.
        name (`str`): what it is, for the message.

    Raises:
        ValueError: if it is no text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds bytes that are no text in {sys.getfilesystemencoding().upper()}") from error


def parse_loops(text: str) -> list[int]:
    """Read a list of loop counts such as `1,2,4,8`.

    Returns:
        `list[int]`: the counts, ascending.

    Raises:
        ValueError: if an entry is not a positive integer, or is named twice.
    """
    counts = []
    for entry in text.split(","):
        entry = entry.strip()
        if not (entry.isascii() and entry.isdigit()) or int(entry) < 1:
            raise ValueError(f"--loops: {entry!r} is not a loop count; give integers of at least 1, as in 1,2,4,8")
        if int(entry) in counts:
            raise ValueError(f"--loops: {entry} is named twice")
        counts.append(int(entry))
    return sorted(counts)
