"""The figure that shows the loop at which each node of a computation becomes readable."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.figures import new_figure, save_figure
from .probe import NodeProbes


if TYPE_CHECKING:
    from matplotlib.axes import Axes


MAX_ROWS_WITH_NAMES = 40
MAX_LOOPS_NAMED = 12


def plot_node_probes(probes: NodeProbes, path: str | Path, *, share: float = 0.5, title: str | None = None) -> None:
    """Draw the accuracy of every node's probe after every loop into an image file, and its selectivity beside it.

    Nodes are ordered by depth, inputs below. A frame marks the first loop after which a node is readable: a model of
    one operation a loop has a diagonal of frames.

    Args:
        probes (`NodeProbes`): the probes.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        share (`float`, *optional*, defaults to 0.5): see [`~NodeProbes.readable_loop`].
        title (`str`, *optional*): the figure's title.
    """
    num_nodes, num_loops = len(probes.nodes), len(probes.loops)
    height = min(9.0, 1.6 + 0.22 * min(num_nodes, MAX_ROWS_WITH_NAMES))
    figure = new_figure(2.6 + 0.62 * min(num_loops, MAX_LOOPS_NAMED) * 2, max(3.2, height))
    left, right = figure.subplots(1, 2, sharey=True)
    selectivity = [probes.selectivity(node) for node in probes.nodes]
    _draw(left, probes, probes.accuracy, "accuracy on held-out rows", (0.0, 1.0), "viridis")
    _draw(right, probes, selectivity, "selectivity (accuracy - control)", (-1.0, 1.0), "RdBu")
    for index, node in enumerate(probes.nodes):
        loop = probes.readable_loop(node, share, stays=False) if probes.chance[index] < 1 else None
        if loop is not None:
            _frame(left, probes.loops.index(loop), index)
    _name_nodes(left, probes)
    figure.suptitle(
        title or f"framed: the first loop with {100 * share:g} % of the way from chance to 1", fontsize="medium"
    )
    save_figure(figure, path)


def _draw(
    axes: "Axes", probes: NodeProbes, values: list[list[float]], title: str, limits: tuple[float, float], colors: str
) -> None:
    image = axes.imshow(
        values, origin="lower", aspect="auto", interpolation="nearest", cmap=colors, vmin=limits[0], vmax=limits[1]
    )
    figure: Any = axes.figure
    figure.colorbar(image, ax=axes)
    step = math.ceil(len(probes.loops) / MAX_LOOPS_NAMED)
    axes.set_xticks(range(0, len(probes.loops), step), labels=[str(loop) for loop in probes.loops[::step]])
    axes.set_xlabel("state after loop")
    axes.set_title(title, fontsize="medium")


def _name_nodes(axes: "Axes", probes: NodeProbes) -> None:
    """Name every node, or where there are too many the first of each depth."""
    depths = probes.depths
    if len(depths) <= MAX_ROWS_WITH_NAMES:
        places = list(range(len(depths)))
        labels = [f"{name} ({depth})" for name, depth in zip(probes.nodes, depths, strict=True)]
    else:
        places = [place for place, depth in enumerate(depths) if place == 0 or depth != depths[place - 1]]
        labels = [f"depth {depths[place]}" for place in places]
    axes.set_yticks(places, labels=labels, fontsize="small")
    axes.set_ylabel("node (depth in the graph)")


def _frame(axes: "Axes", x: int, y: int) -> None:
    from matplotlib.patches import Rectangle

    # black on white is visible on pale and on dark cells
    for color, width in (("white", 3.0), ("black", 1.4)):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="none", edgecolor=color, linewidth=width))


__all__ = ["plot_node_probes"]
