"""The figure of a look inside the loops: the answers after every loop, and how far the state moves."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.figures import COLORS, clear_axes, drawable, new_figure, save_figure
from .inspection_results import ANSWER, Inspection


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# characters of a token in a cell and of the prompt in the title
LONGEST_TOKEN, LONGEST_PROMPT = 10, 60
# rows and columns with text; beyond that the heat map has no room for it
MAX_ROWS_WITH_TEXT, MAX_COLUMNS_WITH_TEXT = 48, 24
# columns that are named beyond that, and the width of all in inches
MAX_COLUMNS_NAMED, MAX_WIDTH = 64, 14
ROW_HEIGHT = 0.27


def plot_inspection(inspection: Inspection, path: str | Path, *, title: str | None = None) -> None:
    """Draw an inspection into an image file.

    On the left a heat map: a row for every loop, a column for every token of the prompt, in each cell the most
    probable next token; the darker, the more probable. With more than 48 loops or 24 tokens there is no room for it.
    On the right the step of every loop over the norm of the state, and the rank of the token that was followed, if
    any, after the last token of the prompt; 1 is the first. A character that the font does not have is drawn as its
    escape, `U+4F60` as `\\u4f60`; matplotlib's own settings choose another font.

    Args:
        inspection (`Inspection`): what was found.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title, by default the model, the readout and the end of the prompt.
    """
    num_loops, num_tokens = inspection.num_loops, len(inspection.tokens)
    width = max(4.0, num_tokens * _column_width(inspection))
    height = min(ROW_HEIGHT, 14 / num_loops) * num_loops
    panels = 2 if inspection.followed is None else 3
    figure = new_figure(width + 2.1 * (panels - 1) + 1.6, max(2.2, height) + 1.2)
    axes: Any = figure.subplots(1, panels, sharey=True, width_ratios=[width] + [2.0] * (panels - 1))
    image = _draw_lens(axes[0], inspection)
    bar = figure.colorbar(image, ax=list(axes), aspect=max(25, 8 * height), pad=0.02)
    bar.set_label("probability", fontsize="small")
    bar.ax.tick_params(labelsize=7)
    _draw_curve(axes[1], inspection.step_norm, "step / norm of state", COLORS[1])
    if inspection.followed_rank is not None:
        ranks = [1 + row[-1] for row in inspection.followed_rank]
        _draw_curve(axes[2], ranks, f"rank of {cut(str(inspection.followed).strip())}", COLORS[2])
        if axes[2].get_xscale() == "linear":
            axes[2].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(_title(inspection) if title is None else title, fontsize="medium")
    save_figure(figure, path)


def _title(inspection: Inspection) -> str:
    prompt = " ".join(inspection.prompt.split())
    what = "the answer" if inspection.readout == ANSWER else f"logit lens of {inspection.readout}"
    return (
        f"{cut(inspection.label, LONGEST_PROMPT)}: {what} after every loop\n{cut(prompt, LONGEST_PROMPT, at_end=True)}"
    )


def _draw_lens(axes: "Axes", inspection: Inspection) -> Any:
    num_loops, num_tokens = inspection.num_loops, len(inspection.tokens)
    shares = [[math.nan if value is None else value for value in row] for row in inspection.probability]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if num_loops <= MAX_ROWS_WITH_TEXT and num_tokens <= MAX_COLUMNS_WITH_TEXT:
        for row, texts in enumerate(inspection.top):
            for column, text in enumerate(texts):
                color = "white" if shares[row][column] > 0.6 else "black"
                axes.text(column, row, cut(text), color=color, fontsize=7, ha="center", va="center")
    is_narrow = num_tokens > MAX_COLUMNS_WITH_TEXT
    # counted from the last token, whose answer is the one that matters
    named = range(num_tokens - 1, -1, -math.ceil(num_tokens / MAX_COLUMNS_NAMED))[::-1]
    axes.set_xticks(named)
    names = [cut(inspection.tokens[column]) for column in named]
    axes.set_xticklabels(names, fontsize=7, rotation=90 if is_narrow else 0)
    axes.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    step = -(-num_loops // MAX_ROWS_WITH_TEXT)
    counts = list(range(1, num_loops + 1, step))
    axes.set_yticks([count - 1 for count in counts])
    trained = inspection.trained_loops
    axes.set_yticklabels([f"{count} (trained)" if count == trained else str(count) for count in counts])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_ylabel("loops")
    return image


def _draw_curve(axes: "Axes", values: Any, label: str, color: str) -> None:
    points = [(value, row) for row, value in enumerate(values) if value is not None]
    axes.plot([value for value, _ in points], [row for _, row in points], color=color, marker="o", markersize=3)
    low, high = min(points)[0] if points else 0, max(points)[0] if points else 0
    # a logarithmic axis needs two powers of ten, or it has too few ticks
    if low > 0 and math.floor(math.log10(high)) > math.ceil(math.log10(low)):
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.set_xlim(0, 1.08 * high if high > 0 else 1)
    axes.set_xlabel(label, fontsize="small")
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", left=False, labelleft=False)
    clear_axes(axes, "both")


def _column_width(inspection: Inspection) -> float:
    num_tokens = len(inspection.tokens)
    if num_tokens > MAX_COLUMNS_WITH_TEXT:
        return min(0.2, MAX_WIDTH / num_tokens)
    longest = max(len(cut(text)) for row in [inspection.tokens, *inspection.top] for text in row)
    return max(0.5, 0.09 * longest + 0.12)


def cut(text: str, most: int = LONGEST_TOKEN, at_end: bool = False) -> str:
    """Return what of a text fits into so many characters as they are drawn, its beginning or its end."""
    pieces = [drawable(character) for character in text]
    if sum(map(len, pieces)) <= most:
        return "".join(pieces)
    kept: list[str] = []
    for piece in reversed(pieces) if at_end else pieces:
        # at least one character
        if kept and sum(map(len, kept)) + len(piece) >= most:
            break
        kept.append(piece)
    return f"…{''.join(reversed(kept))}" if at_end else f"{''.join(kept)}…"


__all__ = ["plot_inspection"]
