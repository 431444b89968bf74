"""The figure of a puzzle model: accuracy over segments, where it halts, and how well its head is calibrated."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import (
    COLORS,
    REFERENCE_COLOR,
    clear_axes,
    count_axis,
    legend_below,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_puzzle_results(results: dict[str, Any], path: str | Path, *, max_segments: int) -> None:
    """Draw what [`~hf_loop.evaluation.measure_puzzles`] returned into an image file.

    The first panel is accuracy over segments. A model that halts has a panel for each measure of difficulty, with the
    mean number of segments of its puzzles, and above each bar their exact accuracy and their number; one with a
    halting head has a last panel, the reliability diagram of the probabilities it predicts.

    Args:
        results (`dict[str, Any]`): the measurements.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        max_segments (`int`): segments after which training, and halting, end; marked by a dashed line.
    """
    halting: dict[str, Any] = results["halting"]
    calibration = next(iter(halting.values()))["calibration"] if halting else []
    num_panels = 1 + len(halting) + bool(calibration)
    figure = new_figure(0.6 + 3.4 * num_panels, 3.8)
    panels: list[Axes] = list(figure.subplots(1, num_panels, squeeze=False)[0])
    _draw_accuracy(panels[0], results["accuracy"], max_segments)
    for axes, (name, quality) in zip(panels[1:], halting.items()):
        _draw_segments(axes, name, quality["segments_by_difficulty"])
    if calibration:
        _draw_calibration(panels[-1], calibration)
    for axes in panels:
        axes.set_axisbelow(True)
    legend_below(figure, num_columns=3 if num_panels == 1 else 5)
    save_figure(figure, path)


def _draw_accuracy(axes: "Axes", accuracy: dict[str, list[float]], max_segments: int) -> None:
    counts = [int(count) for count in accuracy]
    for index, label in enumerate(("every cell right", "cells right")):
        shares = [both[index] for both in accuracy.values()]
        axes.plot(counts, shares, markersize=3, label=label, **style_of(index))
    axes.axvline(max_segments, color=REFERENCE_COLOR, linestyle="--", linewidth=1, label="most in training")
    count_axis(axes, counts, "segments")
    share_axis(axes, "accuracy")
    clear_axes(axes)


def _draw_segments(axes: "Axes", name: str, groups: dict[str, Any]) -> None:
    labels = list(groups)
    bars = axes.bar(labels, [segments for segments, _, _ in groups.values()], color=COLORS[0], width=0.7)
    texts = [f"{accuracy:.2f}\n{count}" for _, accuracy, count in groups.values()]
    axes.bar_label(bars, texts, fontsize=6, color="0.3")
    axes.margins(y=0.12)
    axes.set_xlabel(f"{name.replace('_', ' ')} (above a bar: exact accuracy, puzzles)", fontsize="small")
    axes.set_ylabel("segments until it halts")
    axes.tick_params(axis="x", labelsize="small")
    clear_axes(axes)


def _draw_calibration(axes: "Axes", calibration: list[tuple[float, float, int]]) -> None:
    """A reliability diagram; the larger a point, the more predictions it stands for."""
    asked = sum(count for _, _, count in calibration)
    said, shares, counts = zip(*calibration)
    axes.plot([0, 1], [0, 1], color=REFERENCE_COLOR, linestyle=":", linewidth=1, label="right as often as predicted")
    axes.plot(said, shares, color=COLORS[2], linewidth=0.8, label="halting head; area: share of predictions")
    axes.scatter(said, shares, s=[12 + 200 * count / asked for count in counts], color=COLORS[2], alpha=0.7)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("mean predicted probability of being solved", fontsize="small")
    axes.set_ylabel("fraction solved")
    axes.spines[["top", "right"]].set_visible(False)
