"""The figures of a study: accuracy over difficulty, over loops and against compute, and the growth of the state."""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import (
    REFERENCE_COLOR,
    clear_axes,
    count_axis,
    legend_below,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)
from .study_results import MeasuredRun, StudyRuns, trained_difficulty
from .study_statistics import SeedSpread, pareto_front, spread_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANEL_WIDTH, PANEL_HEIGHT = 3.3, 2.7
MOST_COLUMNS = 3
LEGEND_WIDTH = 6.4


def plot_difficulties(runs: StudyRuns, path: str | Path) -> None:
    """Draw accuracy over difficulty, a panel for each task and a line for each arm, with the range over the seeds.

    The reference arm has a second line at its deepest loops. A dashed vertical line marks the hardest difficulty of
    training, a dotted line what guessing gives.
    """
    study = runs.study
    figure, panels = _panels(list(study.tasks), 0.3 * math.ceil((len(study.arms) + 1) / 2))
    for task, axes in panels.items():
        for index, arm in enumerate(study.arms):
            found = runs.of(task, arm)
            style = style_of(index) | {"label": study.title_of(arm)}
            _draw_line(axes, found, [run.reading_loops for run in found], style)
            deepest = [run.loops[-1] for run in found]
            if arm == study.reference and any(run.reading_loops != last for run, last in zip(found, deepest)):
                label = f"{study.title_of(arm)}, {deepest[0]} loops"
                _draw_line(axes, found, deepest, style | {"linestyle": ":", "marker": "x", "label": label})
        found = [run for arm in study.arms for run in runs.of(task, arm)]
        if found:
            guess = found[0].guessing
            axes.plot(list(guess), list(guess.values()), color=REFERENCE_COLOR, linestyle=":", label="guessing")
        bound = trained_difficulty(study, task)
        if bound is not None:
            axes.axvline(bound, color=REFERENCE_COLOR, linestyle="--", linewidth=1, label="hardest in training")
        axes.set_title(study.title_of(task), fontsize="medium")
        axes.set_xlabel("difficulty")
        axes.locator_params(axis="x", integer=True)
        share_axis(axes, "exact match")
        clear_axes(axes)
    legend_below(figure, num_columns=2)
    save_figure(figure, path)


def plot_heat_maps(runs: StudyRuns, path: str | Path) -> None:
    """Draw accuracy over loops x difficulty of the reference arm, a panel for each task: the mean over the seeds."""
    study = runs.study
    tasks = [task for task in study.tasks if len(_loops_of(runs, task)) > 1]
    figure, panels = _panels(tasks, 0.0)
    image: Any = None
    for task, axes in panels.items():
        found = runs.of(task, str(study.reference))
        loops = _loops_of(runs, task)
        trained, beyond = runs.difficulties(task)
        difficulties = [*trained, *beyond]
        values = [
            [sum(run.accuracy(count, [value]) for run in found) / len(found) for value in difficulties]
            for count in loops
        ]
        image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        axes.set_xticks(range(len(difficulties)), labels=[str(value) for value in difficulties])
        axes.set_yticks(range(len(loops)), labels=[str(count) for count in loops])
        if beyond and trained:
            axes.axvline(len(trained) - 0.5, color="white", linewidth=1.5, linestyle="--")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                color = "black" if value > 0.6 else "white"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=color)
        axes.set_title(study.title_of(task), fontsize="medium")
        axes.set_xlabel("difficulty (beyond the line: not in training)" if beyond else "difficulty", fontsize="small")
        axes.set_ylabel("loops")
    if image is not None:
        figure.colorbar(image, ax=list(panels.values()), label="exact match", shrink=0.8)
    save_figure(figure, path)


def plot_compute(runs: StudyRuns, path: str | Path) -> None:
    """Draw accuracy against the compute of an answer, a panel for each task, with the Pareto front of all arms."""
    study = runs.study
    figure, panels = _panels(list(study.tasks), 0.3 * math.ceil(len(study.arms) / 2))
    for task, axes in panels.items():
        points = []
        for index, arm in enumerate(study.arms):
            style = style_of(index)
            for votes in study.arms[arm].votes:
                own = compute_points(runs, task, arm, votes)
                points += own
                if own and votes == study.arms[arm].votes[0]:
                    axes.plot(*zip(*own), markersize=4, linewidth=0.8, label=study.title_of(arm), **style)
                elif own:
                    # a line over loops is one of one answer; more votes are points of their own
                    style |= {"linestyle": "", "markerfacecolor": "none"}
                    axes.plot(*zip(*own), markersize=6, label=f"{study.title_of(arm)}, votes", **style)
        front = [points[index] for index in pareto_front(points)]
        if front:
            axes.step(*zip(*front), where="post", color="0.7", linewidth=4, alpha=0.5, zorder=0, label="Pareto front")
        axes.set_xscale("log")
        # their labels would overlap
        axes.minorticks_off()
        axes.set_title(study.title_of(task), fontsize="medium")
        axes.set_xlabel("floating-point operations of an answer")
        share_axis(axes, "exact match")
        clear_axes(axes)
    legend_below(figure, num_columns=2)
    save_figure(figure, path)


def plot_growth(runs: StudyRuns, path: str | Path) -> None:
    """Draw the root mean square of the state after every loop, a panel for each task and a line for each arm."""
    study = runs.study
    figure, panels = _panels(list(study.tasks), 0.3 * math.ceil(len(study.arms) / 2))
    for task, axes in panels.items():
        counts: set[int] = set()
        for index, arm in enumerate(study.arms):
            found = [run.state_growth for run in runs.of(task, arm) if len(run.state_growth) > 1]
            if found:
                loops = list(range(1, len(found[0]) + 1))
                counts |= set(loops)
                # a state of zeros has no logarithm, and no place on the axis
                means = [0.0 if 0 in sizes else statistics.geometric_mean(sizes) for sizes in zip(*found)]
                style: dict[str, Any] = style_of(index) | {"marker": "", "label": study.title_of(arm)}
                axes.plot(loops, means, **style)
        if counts:
            count_axis(axes, [count for count in sorted(counts) if count & (count - 1) == 0], "loop")
        axes.set_yscale("log")
        axes.set_ylabel("size of the state")
        axes.set_title(study.title_of(task), fontsize="medium")
        clear_axes(axes)
    legend_below(figure, num_columns=2)
    save_figure(figure, path)


def compute_points(runs: StudyRuns, task: str, arm: str, votes: int | None = None) -> list[tuple[float, float]]:
    """Return compute and accuracy of an arm on the difficulties of training, for every loop count and number of votes
    (or one of them), in the mean over the seeds and by rising compute."""
    found = runs.of(task, arm)
    trained, beyond = runs.difficulties(task)
    difficulties = set(trained or beyond)
    points = []
    for loops, count in sorted({(cell.loops, cell.votes) for run in found for cell in run.cells}, key=str):
        cells = [
            cell
            for run in found
            for cell in run.cells
            if (cell.loops, cell.votes) == (loops, count) and cell.difficulty in difficulties
        ]
        if votes not in (None, count):
            continue
        num_rows = sum(cell.num_rows for cell in cells)
        flops = sum(cell.flops * cell.num_rows for cell in cells) / num_rows
        points.append((flops, sum(cell.num_right for cell in cells) / num_rows))
    return sorted(points)


def accuracy_by_difficulty(found: list[MeasuredRun], loops: list[int | None]) -> dict[int, SeedSpread]:
    """Return the accuracy of runs by difficulty, each run at its own loop count."""
    difficulties = sorted({cell.difficulty for run in found for cell in run.cells})
    spreads = {}
    for value in difficulties:
        spread = spread_of([run.accuracy(count, [value]) for run, count in zip(found, loops, strict=True)])
        if spread is not None:
            spreads[value] = spread
    return spreads


def _draw_line(axes: "Axes", found: list[MeasuredRun], loops: list[int | None], style: dict[str, Any]) -> None:
    spreads = accuracy_by_difficulty(found, loops)
    if not spreads:
        return
    axes.plot(list(spreads), [spread.mean for spread in spreads.values()], markersize=4, **style)
    lows, highs = ([getattr(spread, name) for spread in spreads.values()] for name in ("low", "high"))
    axes.fill_between(list(spreads), lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def _loops_of(runs: StudyRuns, task: str) -> list[int]:
    return sorted({count for run in runs.of(task, str(runs.study.reference)) for count in run.loops if count})


def _panels(tasks: list[str], legend_height: float) -> "tuple[Figure, dict[str, Axes]]":
    num_columns = max(1, min(MOST_COLUMNS, len(tasks)))
    num_rows = max(1, math.ceil(len(tasks) / num_columns))
    # the legend of a single panel is wider than the panel
    width = max(LEGEND_WIDTH, PANEL_WIDTH * num_columns)
    figure = new_figure(width, PANEL_HEIGHT * num_rows + legend_height)
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    panels = dict(zip(tasks, grid.flat))
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_axis_off()
    return figure, panels
