"""The figure that shows perplexity along a text."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from .block_perplexity import BlockCurve
from .figures import clear_axes, legend_below, new_figure, save_figure, style_of


# beyond this ratio of the highest value to the lowest, a linear axis would show the worst curve alone
LOG_RATIO = 20


def plot_block_curves(
    curves: Sequence[BlockCurve],
    path: str | Path,
    *,
    reference: BlockCurve | None = None,
    title: str | None = None,
) -> None:
    """Draw perplexity over the place in the text into an image file.

    Args:
        curves (`Sequence[BlockCurve]`): curves of the same texts and blocks.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        reference (`BlockCurve`, *optional*): draw every perplexity over this curve's at the same block: texts differ
            more from block to block than models do.
        title (`str`, *optional*): the figure's title.

    Raises:
        ValueError: if there are no curves, or they are not of the same blocks.
    """
    if not curves:
        raise ValueError("curves is empty; there is nothing to draw")
    sizes = {(curve.block_size, len(curve.num_predicted)) for curve in [*curves, *([reference] if reference else [])]}
    if len(sizes) > 1:
        raise ValueError(f"curves must be of the same blocks, got (block_size, blocks) {sorted(sizes)}")
    figure = new_figure(7.4, 5.4)
    axes = figure.add_subplot()
    divisors = [1.0] * len(curves[0].num_predicted) if reference is None else reference.perplexities()
    ends = [curve_block * curves[0].block_size for curve_block in range(1, len(divisors) + 1)]
    drawn = []
    for index, curve in enumerate(curves):
        values = [value / divisor for value, divisor in zip(curve.perplexities(), divisors, strict=True)]
        drawn += [value for value in values if isfinite(value)]
        label = f"{curve.label} ({curve.perplexity:.2f})"
        axes.plot(ends, values, markersize=2.5, linewidth=1.3, label=label, **style_of(index))
    if drawn and max(drawn) > LOG_RATIO * min(drawn):
        axes.set_yscale("log")
    axes.set_xlabel("tokens read")
    axes.set_ylabel("perplexity" if reference is None else f"perplexity over that of: {reference.label}")
    clear_axes(axes)
    legend_below(figure, title="perplexity of the whole in brackets")
    if title is not None:
        axes.set_title(title)
    save_figure(figure, path)
