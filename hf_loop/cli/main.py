"""`hf-loop`: the command line of the library."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from .bench import bench
from .card import card
from .chat import chat
from .check import check
from .convert import convert
from .demo import demo
from .errors import one_line_errors
from .eval import eval_
from .generate import generate
from .info import info
from .inspect import inspect
from .modularity import modularity
from .nodes import nodes
from .output import lasting_output
from .push import push
from .quickstart import quickstart
from .retrofit import retrofit
from .scan import scan
from .solve import solve
from .study import study
from .sweep import sweep
from .train import train
from .unroll import unroll


# the exit code that shells give a process stopped by Ctrl-C
INTERRUPTED = 130

app = typer.Typer(
    name="hf-loop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(wanted: bool) -> None:
    """Print the version and end the command, if it was asked for."""
    if wanted:
        typer.echo(f"hf-loop {importlib.metadata.version('hf-loop')}")
        raise typer.Exit


@app.callback()
def hf_loop(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train, run and measure language models that compute in loops."""


app.command()(quickstart)
app.command()(train)
app.command()(generate)
app.command()(chat)
app.command()(solve)
app.command()(demo)
app.command()(info)
app.command()(sweep)
app.add_typer(study, name="study")
app.command("eval")(eval_)
app.command()(scan)
app.command()(nodes)
app.command()(inspect)
app.command()(bench)
app.command()(modularity)
app.command()(retrofit)
app.command()(unroll)
app.command()(convert)
app.command()(check)
app.command()(card)
app.command()(push)


def main() -> None:
    """Run a command as the console script does, with errors as one line (see [`one_line_errors`])."""
    with lasting_output() as output, one_line_errors():
        try:
            code = app(standalone_mode=False)
        except typer.Abort as abort:
            # typer takes the end of a file that is read for the end of what a person types
            if isinstance(abort.__cause__, EOFError):
                raise abort.__cause__ from None
            code = INTERRUPTED
        output.check()
        # typer turns Ctrl-C into this exit code instead of an exception
        if code == INTERRUPTED:
            print("hf-loop: interrupted", file=sys.stderr)
        sys.exit(code)
