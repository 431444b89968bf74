"""What `hf-loop card --measure` and `hf-loop train --card` do with a puzzle model."""

from pathlib import Path

from .load import default_device


def measure_puzzles(folder: Path, num_examples: int | None = None, progress: bool = True) -> None:
    """Measure a run's puzzle model over segments, write its card, and print what it came to.

    Args:
        folder (`Path`): the output folder of a run.
        num_examples (`int`, *optional*): test puzzles, by default as many as the recipe evaluates.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
    """
    from rich.console import Console
    from rich.table import Table

    from ..evaluation.puzzle_run import measure_puzzle_run

    results = measure_puzzle_run(folder, num_rows=num_examples, device=default_device(), progress=progress)
    table = Table()
    for heading in ("segments", "puzzles solved", "cells right"):
        table.add_column(heading, justify="right")
    for count, shares in results["accuracy"].items():
        table.add_row(count, *(f"{share:.4f}" for share in shares))
    Console().print(table)
