"""`hf-loop`: the command line of the library."""

import sys

import typer

from .card import card
from .chat import chat
from .check import check
from .convert import convert
from .errors import one_line_errors
from .generate import generate
from .info import info
from .push import push
from .quickstart import quickstart
from .retrofit import retrofit
from .scan import scan
from .sweep import sweep
from .train import train
from .unroll import unroll


# the exit code that shells give a process stopped by Ctrl-C
INTERRUPTED = 130

app = typer.Typer(
    name="hf-loop",
    help="Train, run and measure language models that compute in loops.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(quickstart)
app.command()(train)
app.command()(generate)
app.command()(chat)
app.command()(info)
app.command()(sweep)
app.command()(scan)
app.command()(retrofit)
app.command()(unroll)
app.command()(convert)
app.command()(check)
app.command()(card)
app.command()(push)


def main() -> None:
    """Run a command as the console script does, with errors as one line (see [`one_line_errors`])."""
    with one_line_errors():
        try:
            code = app(standalone_mode=False)
        except typer.Abort:
            code = INTERRUPTED
        # typer turns Ctrl-C into this exit code instead of an exception
        if code == INTERRUPTED:
            print("hf-loop: interrupted", file=sys.stderr)
        sys.exit(code)
