"""Tables in markdown."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its first column to the left and the others to the right.

    Args:
        headings (`Sequence[str]`): the headings of the columns.
        rows (`Sequence[Sequence[str]]`): the cells, as many in a row as headings.
    """
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    # a bar in a cell would end it
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
