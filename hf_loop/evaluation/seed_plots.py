"""The figure of an experiment over seeds: a share of right answers over a count, a line for each variant."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .figures import (
    REFERENCE_COLOR,
    clear_axes,
    count_axis,
    legend_beside,
    mark_guessing,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)


def plot_seeds(
    runs: Mapping[str, Sequence[Sequence[float]]],
    counts: Sequence[int],
    path: str | Path,
    *,
    x_label: str,
    y_label: str,
    trained: int | None = None,
    guessing: float | None = None,
) -> None:
    """Draw the mean over seeds, in a band from the lowest to the highest, into an image file.

    Args:
        runs (`Mapping[str, Sequence[Sequence[float]]]`): for each variant, the shares of every seed at every count.
        counts (`Sequence[int]`): the counts, which the x axis, logarithmic in base 2, has as ticks.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        x_label (`str`): what is counted.
        y_label (`str`): what the shares are of.
        trained (`int`, *optional*): the highest count in training, marked by a dashed line.
        guessing (`float`, *optional*): what guessing gives, marked by a dotted line.

    Raises:
        ValueError: if there are no runs, or one lacks a share for a count.
    """
    if not runs or any(len(shares) != len(counts) for seeds in runs.values() for shares in seeds):
        raise ValueError(f"every run must have {len(counts)} shares, one for each count, and there must be runs")
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    for index, (variant, seeds) in enumerate(runs.items()):
        columns = list(zip(*seeds))
        style = style_of(index)
        means = [sum(values) / len(values) for values in columns]
        axes.plot(counts, means, markersize=3, label=variant, **style)
        lowest, highest = [min(values) for values in columns], [max(values) for values in columns]
        axes.fill_between(counts, lowest, highest, color=style["color"], alpha=0.12)
    if trained is not None:
        axes.axvline(trained, color=REFERENCE_COLOR, linestyle="--", linewidth=1, label="most in training")
    if guessing is not None:
        mark_guessing(axes, guessing)
    count_axis(axes, counts, x_label)
    share_axis(axes, y_label)
    clear_axes(axes)
    legend_beside(axes)
    save_figure(figure, path)
