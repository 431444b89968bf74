"""One-line errors for the command line."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager


# of the HTTP library of huggingface_hub, which has changed once already; both have a name of this beginning
HTTP_LIBRARY = "httpx"
TRACEBACK_VARIABLE = "HF_LOOP_TRACEBACK"
EXIT_CODE = 2


@contextmanager
def one_line_errors() -> Generator[None]:
    """Turn errors that the user can act on into one line on stderr and exit code 2.

    These are `ValueError` and `OSError` (which covers a missing file and a refusal of the Hub), errors of the network,
    `ImportError` (a package that an option needs is not installed), and typer's own usage errors. Any other exception
    is a bug and keeps its traceback. With `HF_LOOP_TRACEBACK=1` every error keeps it.
    """
    try:
        yield
    except Exception as error:
        if not _is_for_the_user(error) or os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        print(f"hf-loop: error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def one_line(error: Exception) -> str:
    """Return the error's message without line breaks."""
    # typer's usage errors say what is wrong in format_message; str() of an OSError has the file's name
    format_message = getattr(error, "format_message", None)
    message = format_message() if callable(format_message) else str(error)
    if _is_of_network(error):
        message = f"the Hub cannot be reached: {message}"
    return " ".join(message.split()) or type(error).__name__


def _is_for_the_user(error: Exception) -> bool:
    # typer carries its own copy of click, or imports click, by version; both mark a usage error this way
    is_usage = hasattr(error, "format_message")
    return isinstance(error, ValueError | OSError | ImportError) or is_usage or _is_of_network(error)


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.startswith(HTTP_LIBRARY)
