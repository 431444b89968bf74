"""The figure that shows a metric over loops."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .curves import LoopCurve, has_safe_range, safe_range
from .figures import (
    LINE_STYLES,
    clear_axes,
    count_axis,
    legend_below,
    mark_guessing,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes


MAX_TICKS = 10


def plot_loop_curves(
    curves: Sequence[LoopCurve], path: str | Path, *, title: str | None = None, tolerance: float | None = None
) -> None:
    """Draw curves of one metric over the number of loops into an image file.

    The x axis is logarithmic in base 2 with plain integers as ticks. Dashed vertical lines mark the trained depths, a
    dotted one what guessing gives; the shaded band is the safe range of the first curve.

    Args:
        curves (`Sequence[LoopCurve]`): curves of the same metric; the first one is the model in question.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title.
        tolerance (`float`, *optional*): tolerance of [`safe_range`].

    Raises:
        ValueError: if there are no curves or they measure different things.
    """
    if not curves:
        raise ValueError("curves is empty; there is nothing to draw")
    metrics = {curve.metric for curve in curves}
    if len(metrics) > 1:
        raise ValueError(f"curves must share one metric, got {', '.join(sorted(metrics))}")

    # room for the legend, two entries to a line
    figure = new_figure(6.4, 4.0 + 0.2 * len(curves))
    axes = figure.add_subplot()
    _draw_safe_range(axes, curves[0], tolerance, f" of {curves[0].label}" if len(curves) > 1 else "")
    marked: set[float] = set()
    for index, curve in enumerate(curves):
        style = style_of(index)
        axes.plot(curve.num_loops, curve.values, markersize=4, label=curve.label, **style)
        if curve.trained_loops is not None and curve.trained_loops not in marked:
            marked.add(curve.trained_loops)
            axes.axvline(
                curve.trained_loops,
                color=style["color"],
                linestyle=LINE_STYLES[1 + LINE_STYLES.index(style["linestyle"]) % (len(LINE_STYLES) - 1)],
                linewidth=1,
                label=f"trained depth {curve.trained_loops:g}",
            )
    # of several tasks, each of which can be guessed otherwise, no line says which is its own
    guessing = curves[0].guessing
    if guessing is not None and all(curve.guessing in (None, guessing) for curve in curves):
        mark_guessing(axes, guessing)
    _label_axes(axes, curves, title)
    legend_below(figure)
    save_figure(figure, path)


def _draw_safe_range(axes: "Axes", curve: LoopCurve, tolerance: float | None, owner: str) -> None:
    if not has_safe_range(curve):
        return
    low, high = safe_range(curve, tolerance)
    # a little wider than the counts themselves, so that a range of one count can be seen
    axes.axvspan(low / 1.04, high * 1.04, color="0.92", zorder=0, label=f"safe range{owner}: {low} to {high}")


def _label_axes(axes: "Axes", curves: Sequence[LoopCurve], title: str | None) -> None:
    counts = sorted({count for curve in curves for count in curve.num_loops})
    if len(counts) > MAX_TICKS:
        counts = [count for count in counts if count & (count - 1) == 0] or counts[:: len(counts) // MAX_TICKS + 1]
    count_axis(axes, counts, "number of loops")
    if curves[0].metric == "accuracy":
        share_axis(axes, "accuracy")
    else:
        values = [value for curve in curves for value in curve.values if math.isfinite(value)]
        # a collapse by orders of magnitude would flatten everything else on a linear axis
        is_wide = bool(values) and max(values) > 10 * min(values)
        axes.set_yscale("log" if is_wide else "linear")
        axes.set_ylabel("perplexity (log scale)" if is_wide else "perplexity")
    clear_axes(axes)
    if title is not None:
        axes.set_title(title)
