"""The figure of a search for modules."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.figures import (
    REFERENCE_COLOR,
    clear_axes,
    legend_below,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)
from .modularity_results import SUBROUTINES, ModularityResults, other


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# a heat map with more loops than this has no room for numbers
MOST_NUMBERS = 8
MAX_TICKS = 8


def plot_modularity(results: ModularityResults, path: str | Path, *, title: str | None = None) -> None:
    """Draw the results of [`measure_modularity`] into an image file: a row of three panels for each subroutine.

    The left one shows SubDiff and AblDiff of each kind of mask, a dot for each seed and a short line for their mean; a
    dashed line is the highest value there can be. The middle one shows accuracy on both tests when the subnetwork is
    ablated in one loop alone, beside all loops and none. The right one shows the overlap of the masks of every two
    loops, where each loop has its own.

    Args:
        results (`ModularityResults`): the measurement.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title, by default the label.

    Raises:
        ValueError: if there are no runs.
    """
    if not results.runs:
        raise ValueError("results hold no runs; there is nothing to draw")
    figure = new_figure(13.5, 7.8)
    grid: Any = figure.subplots(len(SUBROUTINES), 3, squeeze=False, width_ratios=(1.25, 1.0, 0.8))
    for row, subroutine in zip(grid, SUBROUTINES, strict=True):
        _draw_differences(row[0], results, subroutine)
        _draw_single_loops(row[1], results, subroutine)
        _draw_overlap(row[2], results, subroutine)
    seeds = len({run.seed for run in results.runs})
    default = f"{results.label}: subnetworks of two subroutines, {seeds} {'seed' if seeds == 1 else 'seeds'} of masks"
    figure.suptitle(default if title is None else title, fontsize="large")
    legend_below(figure, 6)
    save_figure(figure, path)


def _draw_differences(axes: "Axes", results: ModularityResults, subroutine: str) -> None:
    kinds = [kind for kind in results.kinds() if kind[1][0].subroutine == subroutine]
    measures = (
        ("SubDiff", results.sub_diff, results.random_sub_diff, subroutine),
        ("AblDiff", results.abl_diff, results.random_abl_diff, other(subroutine)),
    )
    width = 0.36
    for index, (name, of_mask, of_random, best) in enumerate(measures):
        color = style_of(index)["color"]
        shift = (index - 0.5) * width
        for x, (_, runs, is_random) in enumerate(kinds):
            values = [(of_random if is_random else of_mask)(run) for run in runs]
            ends = x + shift - 0.42 * width, x + shift + 0.42 * width
            axes.hlines(statistics.fmean(values), *ends, color=color, linewidth=2.5, label=name)
            axes.scatter([x + shift] * len(values), values, color=color, s=14, alpha=0.6)
        axes.axhline(1 - results.chance[best], color=color, linestyle="--", linewidth=1, label=f"{name} at most")
    axes.axhline(0, color=REFERENCE_COLOR, linewidth=0.8)
    axes.set_xticks(range(len(kinds)), labels=[name.replace(" ", "\n", 1) for name, _, _ in kinds])
    axes.set_ylim(-1.02, 1.02)
    axes.set_ylabel("difference in accuracy above chance")
    axes.set_title(f"masks of {subroutine.upper()}: own task against the other", fontsize="medium")
    clear_axes(axes)


def _draw_single_loops(axes: "Axes", results: ModularityResults, subroutine: str) -> None:
    runs = results.runs_of("trained", subroutine, False)
    loops = results.loops
    # none and all stand apart from the single loops
    positions = [-1.5, *range(len(loops)), len(loops) + 0.5]
    for index, test in enumerate(SUBROUTINES, start=2):
        style = style_of(index)
        series = [
            [results.accuracy[test], *(part[test] for part in run.ablated_in_loop), run.ablated[test]] for run in runs
        ]
        if series:
            means = [statistics.fmean(values) for values in zip(*series)]
            axes.plot(positions[1:-1], means[1:-1], markersize=4, label=f"accuracy on {test.upper()}", **style)
            for end in (0, -1):
                axes.scatter(positions[end], means[end], color=style["color"], marker=style["marker"], s=24)
            for values in series:
                axes.scatter(positions, values, color=style["color"], s=8, alpha=0.5)
        axes.axhline(
            results.chance[test], color=style["color"], linestyle=":", linewidth=1, label=f"guessing on {test.upper()}"
        )
    step = -(-len(loops) // MAX_TICKS)
    axes.set_xticks(
        [positions[0], *positions[1:-1:step], positions[-1]], labels=["none", *map(str, loops[::step]), "all"]
    )
    axes.set_xlabel("loop in which the subnetwork is ablated")
    axes.set_title(f"without the subnetwork of {subroutine.upper()}", fontsize="medium")
    share_axis(axes, "accuracy")
    clear_axes(axes)


def _draw_overlap(axes: "Axes", results: ModularityResults, subroutine: str) -> None:
    runs = results.runs_of("trained", subroutine, True)
    if not runs or not runs[0].loop_overlap:
        axes.set_axis_off()
        return
    count = len(runs[0].loop_overlap)
    cells = range(count)
    found, chance = (
        [[statistics.fmean(matrix[i][j] for matrix in matrices) for j in cells] for i in cells]
        for matrices in ([run.loop_overlap for run in runs], [run.chance_overlap for run in runs])
    )
    image = axes.imshow(found, vmin=0, vmax=1, cmap="Blues")
    if count <= MOST_NUMBERS:
        for i in cells:
            for j in cells:
                color = "white" if found[i][j] > 0.6 else "black"
                axes.text(j, i, f"{found[i][j]:.2f}", color=color, fontsize=7, ha="center", va="center")
    step = -(-count // MAX_TICKS)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(0, count, step), labels=[str(loop) for loop in results.loops[:count:step]])
    axes.set(xlabel="loop", ylabel="loop")
    others = [chance[i][j] for i in cells for j in cells if i != j]
    by_chance = f"\nrandom masks: {statistics.fmean(others):.2f}" if others else ""
    axes.set_title(f"overlap of the masks of {subroutine.upper()}{by_chance}", fontsize="medium")
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="intersection over union")


__all__ = ["plot_modularity"]
