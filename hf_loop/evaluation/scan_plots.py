"""The figure of a layer scan."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import new_figure, save_figure
from .scan_results import LayerScan, ScanCell


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm


MAX_TICKS = 11
# panels with more columns than this have no room for numbers in the cells
MAX_COLUMNS_WITH_NUMBERS = 12
# the ends of the colour scale: a range that doubles the perplexity need not be told from one that ruins it
WIDEST_RATIO, NARROWEST_RATIO = 2.0, 1.02
RATIO_TICKS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
# the middle of the colour scale is nearly white: an edge keeps such cells apart from the background
NOT_MEASURED, CELL_EDGE = "0.9", "0.8"
UPDATE_NAMES = {"replace": "plain repetition", "damped": "damped"}


def plot_layer_scan(scan: LayerScan, path: str | Path, *, title: str | None = None) -> None:
    """Draw a layer scan as heat maps into an image file, one panel for each update and loop count.

    A panel's columns are the last looped layer, its rows the first one; so short ranges lie along the diagonal and
    long ones in the lower right corner. The title says the stride where not every range was measured. The colour is
    the perplexity over the base model's, on a logarithmic scale whose middle is 1: blue helps, red harms. The best
    cell of each panel is framed and named; ranges that were not measured are grey.

    Args:
        scan (`LayerScan`): the measurement.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title, by default the scan's label and the base perplexity.

    Raises:
        ValueError: if the scan holds no cell.
    """
    if not scan.cells:
        raise ValueError("scan holds no cells; there is nothing to draw")

    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    panels = scan.panels()
    updates = list(dict.fromkeys(update for update, _ in panels))
    counts = sorted({num_loops for _, num_loops in panels})
    # both updates at one loop count stand side by side
    shape = (len(updates), len(counts)) if len(counts) > 1 else (1, len(updates))
    figure = new_figure(3.9 * shape[1] + 1.4, 3.9 * shape[0] + 0.8)
    grid: Any = figure.subplots(*shape, squeeze=False)
    norm, colormap = _norm(scan), colormaps["RdBu_r"]
    for axes, key in zip(grid.flat, itertools.product(updates, counts), strict=True):
        if key in panels:
            _draw_panel(axes, scan, panels[key], norm, colormap)
        else:
            axes.set_axis_off()
    default_title = f"{scan.label}, looped without training\nbase perplexity {scan.base_perplexity:.2f}"
    figure.suptitle(default_title if title is None else title, fontsize="large")

    ticks = [tick for tick in RATIO_TICKS if tick <= float(norm.vmax or 1) * (1 + 1e-6)][-4:]
    ticks = sorted([1.0, *ticks, *(1 / tick for tick in ticks)])
    label = "perplexity / base perplexity (log scale)"
    bar = figure.colorbar(ScalarMappable(norm, colormap), ax=grid, extend="both", aspect=30, label=label)
    bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
    bar.ax.minorticks_off()
    save_figure(figure, path)


def _norm(scan: LayerScan) -> "LogNorm":
    """Return a colour scale that is symmetric about 1 and wide enough for most cells."""
    from matplotlib.colors import LogNorm

    distances = sorted(abs(math.log(scan.ratio(cell))) for cell in scan.cells if math.isfinite(cell.perplexity))
    typical = distances[int(0.9 * (len(distances) - 1))] if distances else 0.0
    widest = math.exp(min(max(typical, math.log(NARROWEST_RATIO)), math.log(WIDEST_RATIO)))
    return LogNorm(1 / widest, widest)


def _draw_panel(
    axes: "Axes", scan: LayerScan, cells: Sequence[ScanCell], norm: "LogNorm", colormap: "Colormap"
) -> None:
    columns = sorted({cell.last for cell in cells})
    rows = sorted({cell.first for cell in cells})
    # ranges that were not measured are grey; pairs that are no range (last < first) stay white
    for y, first in enumerate(rows):
        for x, last in enumerate(columns):
            if first <= last:
                _fill(axes, x, y, NOT_MEASURED)
    for cell in cells:
        x, y, ratio = columns.index(cell.last), rows.index(cell.first), scan.ratio(cell)
        # draw an infinite ratio as the end of the scale
        shade = float(norm(min(ratio, WIDEST_RATIO)))
        _fill(axes, x, y, colormap(shade))
        if len(columns) <= MAX_COLUMNS_WITH_NUMBERS:
            text = f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.0f}" if ratio < 999.5 else "≥1e3"
            color = "black" if 0.2 < shade < 0.8 else "white"
            axes.text(x, y, text, color=color, fontsize=6, horizontalalignment="center", verticalalignment="center")
    best = min(cells, key=lambda cell: cell.perplexity)
    x, y = columns.index(best.last), rows.index(best.first)
    # black on white is visible on pale and on dark cells
    _fill(axes, x, y, "none", edgecolor="white", linewidth=4)
    _fill(axes, x, y, "none", edgecolor="black", linewidth=1.8)
    caption = f"best: {best.first}-{best.last}, {scan.ratio(best):.3f} of the base"
    stride = _stride(cells)
    strided = f", stride {stride}" if stride > 1 else ""
    axes.set_title(f"{UPDATE_NAMES[best.update]}, {best.num_loops} loops{strided}\n{caption}", fontsize="medium")
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-0.6, len(rows) - 0.4))
    axes.set(xlabel="last looped layer", ylabel="first looped layer")
    for axis, values in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = math.ceil(len(values) / MAX_TICKS)
        axis.set_ticks(range(0, len(values), step), labels=[str(value) for value in values[::step]])
    axes.spines[["top", "right"]].set_visible(False)


def _stride(cells: Sequence[ScanCell]) -> int:
    """Return the step of the first layers and of the lengths of the ranges."""
    firsts = {cell.first for cell in cells}
    lengths = {cell.last - cell.first for cell in cells}
    return math.gcd(*(value - min(values) for values in (firsts, lengths) for value in values))


def _fill(axes: "Axes", x: int, y: int, color: Any, edgecolor: str = CELL_EDGE, linewidth: float = 0.4) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor=edgecolor, linewidth=linewidth))
