"""The figure of a look inside the loops: the answers after every loop, and how far the state moves."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.figures import COLORS, clear_axes, new_figure, save_figure
from .inspection_results import ANSWER, Inspection


if TYPE_CHECKING:
    from matplotlib.axes import Axes

# characters of a token in a cell and of the prompt in the title
LONGEST_TOKEN, LONGEST_PROMPT = 10, 60
# rows with text; beyond that the heat map has no room for it
MAX_ROWS_WITH_TEXT = 48
ROW_HEIGHT = 0.27


def plot_inspection(inspection: Inspection, path: str | Path, *, title: str | None = None) -> None:
    """Draw an inspection into an image file.

    On the left a heat map: a row for every loop, a column for every token of the prompt, in each cell the most
    probable next token; the darker, the more probable. On the right the step of every loop over the norm of the state,
    and the rank of the token that was followed, if any, after the last token of the prompt; 1 is the first.

    Args:
        inspection (`Inspection`): what was found.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title, by default the model, the readout and the end of the prompt.
    """
    num_loops, num_tokens = inspection.num_loops, len(inspection.tokens)
    longest = max(min(len(text), LONGEST_TOKEN) for row in [inspection.tokens, *inspection.top] for text in row)
    width = max(4.0, num_tokens * max(0.5, 0.09 * longest + 0.12))
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
    prompt = prompt if len(prompt) <= LONGEST_PROMPT else f"… {prompt[-LONGEST_PROMPT:]}"
    what = "the answer" if inspection.readout == ANSWER else f"logit lens of {inspection.readout}"
    return f"{inspection.label}: {what} after every loop\n{plain(prompt)}"


def _draw_lens(axes: "Axes", inspection: Inspection) -> Any:
    num_loops = inspection.num_loops
    shares = [[math.nan if value is None else value for value in row] for row in inspection.probability]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if num_loops <= MAX_ROWS_WITH_TEXT:
        for row, texts in enumerate(inspection.top):
            for column, text in enumerate(texts):
                color = "white" if shares[row][column] > 0.6 else "black"
                axes.text(column, row, cut(text), color=color, fontsize=7, ha="center", va="center")
    axes.set_xticks(range(len(inspection.tokens)))
    axes.set_xticklabels([cut(text) for text in inspection.tokens], fontsize=7)
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


def cut(text: str) -> str:
    """Return a token that fits a cell."""
    return plain(text if len(text) <= LONGEST_TOKEN else f"{text[: LONGEST_TOKEN - 1]}…")


def plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


__all__ = ["plot_inspection"]
