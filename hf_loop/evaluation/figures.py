"""What all figures share: a canvas without a display, colours, plain axes and a file that is written whole."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..files import atomic_path


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# colours that stay apart for colour-blind readers (Okabe and Ito, 2008), without the yellow, which is pale on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")
# trained depths, guessing and other lines to compare with
REFERENCE_COLOR = "0.4"


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure of so many inches, which needs no display and leaves pyplot's global state alone."""
    # imported on use: commands that draw nothing do not wait for matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@functools.cache
def _drawn_characters() -> frozenset[int]:
    """Return the code points that the fonts of matplotlib's settings have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=[family])) for family in FontProperties().get_family()]
    return frozenset(code for file in files for code in get_font(file).get_charmap())


def drawable(text: str) -> str:
    """Return a user's text as matplotlib can draw it: without a formula, and where the font has no character, with its
    escape, since boxes that are all alike tell nothing."""
    known = _drawn_characters()
    shown = (
        character if ord(character) in known else character.encode("unicode_escape").decode() for character in text
    )
    return "".join(shown).replace("$", r"\$")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure to an image file, whole or not at all.

    Args:
        figure (`Figure`): the figure.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).

    Raises:
        ValueError: if matplotlib has no such format.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.removeprefix(".") or "png")


def style_of(index: int) -> dict[str, Any]:
    """Return colour, line style and marker of series `index`, which no other series of a figure has.

    Raises:
        ValueError: if there are more series than a figure can tell apart.
    """
    turn, color = divmod(index, len(COLORS))
    # four styles and five markers meet again after twenty turns
    if turn >= len(LINE_STYLES) * len(MARKERS):
        raise ValueError(f"a figure can tell {len(COLORS) * len(LINE_STYLES) * len(MARKERS)} series apart, got more")
    return {
        "color": COLORS[color],
        "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
        "marker": MARKERS[turn % len(MARKERS)],
    }


def clear_axes(axes: "Axes", grid: Literal["y", "both"] = "y") -> None:
    """Hide the top and right sides of the frame, and draw pale grid lines."""
    axes.grid(axis=grid, color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def count_axis(axes: "Axes", counts: Sequence[int], label: str) -> None:
    """Let the x axis count in powers of two, with these integers as ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, labels=[str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel(label)


def share_axis(axes: "Axes", label: str) -> None:
    """Let the y axis show shares from 0 to 1, with room for the markers at both ends."""
    axes.set_ylabel(label)
    axes.set_ylim(-0.02, 1.02)


def mark_guessing(axes: "Axes", share: float, label: str = "guessing") -> None:
    """Draw a dotted line at the share of right answers that guessing gives."""
    axes.axhline(share, color=REFERENCE_COLOR, linestyle=":", linewidth=1, label=label)


def legend_beside(axes: "Axes") -> None:
    """Put the legend to the right of the axes, where it covers no curve."""
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def legend_below(figure: "Figure", num_columns: int = 2, title: str | None = None) -> None:
    """Put one legend of all panels below them, where it covers no curve."""
    # one entry for every label, also where several panels have it
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=num_columns, frameon=False,
        fontsize="small", title=title, title_fontsize="small",
    )  # fmt: skip
