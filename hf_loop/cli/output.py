"""Output that ends no command: not where its reader goes away, nor where a character set or a disk lacks something."""

import contextlib
import io
import os
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from rich.console import Console


class LastingStream:
    """A text stream that drops what cannot be written: a command goes on, since its result is more than its output.

    Args:
        stream (`TextIO`): the stream to write to. Characters that its encoding lacks are replaced.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.fault: OSError | None = None
        # others, such as those of notebooks, have no encoding to fail in
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Write `text`, and return its length, as if all of it could be written."""
        with self._lasting():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand everything on to the reader."""
        with self._lasting():
            self.stream.flush()

    def check(self) -> None:
        """Hand everything on, and refuse to have dropped something that has a reader, as `> file` on a full disk.

        Raises:
            OSError: if so.
        """
        self.flush()
        if self.fault is not None:
            raise OSError(self.fault.errno, f"{self.fault.strerror}, so some output is lost") from self.fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            # a reader that is gone, as with `| head -1`, misses nothing
            if not isinstance(error, BrokenPipeError):
                self.fault = error
            # what is in the stream's buffer would fail again, at the latest when Python ends
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


def spinner(text: str, quiet: bool) -> AbstractContextManager:
    """Say on a terminal what a command is doing, inside a `with` block, unless `quiet` (see [`quiet_libraries`])."""
    if quiet:
        quiet_libraries()
        return contextlib.nullcontext()
    from rich.console import Console
    from rich.text import Text

    # Text, because rich would read [brackets] in the name of a folder as markup
    return Console(stderr=True).status(Text(text))


def table_console(width: int) -> "Console":
    """Make a console for a table that is so wide: in a file or a pipe, which have no width, its cells are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of transformers, datasets and huggingface_hub."""
    import datasets
    import huggingface_hub
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()


@contextlib.contextmanager
def lasting_output() -> Generator[LastingStream]:
    """Make `sys.stdout` and `sys.stderr` lasting streams inside the `with` block, and give the first of them."""
    # a process may be started without them
    output, errors = (LastingStream(stream or io.StringIO()) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield output
        finally:
            output.flush()
            errors.flush()
