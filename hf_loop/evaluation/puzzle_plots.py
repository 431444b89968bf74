"""The figure of a puzzle model: accuracy over segments, where it halts, and how well its head is calibrated."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import COLORS, clear_axes, count_axis, new_figure, save_figure, share_axis


if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_puzzle_results(results: dict[str, Any], path: str | Path, *, max_segments: int) -> None:
    """Draw what [`~hf_loop.evaluation.measure_puzzles`] returned into an image file.

    The first panel is accuracy over segments. A model that halts has a panel for each measure of difficulty, with the
    mean number of segments of its puzzles and their exact accuracy; one with a halting head has a last panel, the
    reliability diagram of the probabilities it predicts.

    Args:
        results (`dict[str, Any]`): the measurements.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        max_segments (`int`): segments after which training, and halting, end; marked by a dashed line.
    """
    halting: dict[str, Any] = results["halting"]
    calibration = next(iter(halting.values()))["calibration"] if halting else []
    num_panels = 1 + len(halting) + bool(calibration)
    figure = new_figure(0.6 + 3.4 * num_panels, 3.4)
    panels: list[Axes] = list(figure.subplots(1, num_panels, squeeze=False)[0])
    _draw_accuracy(panels[0], results["accuracy"], max_segments)
    for axes, (name, quality) in zip(panels[1:], halting.items()):
        _draw_segments(axes, name, quality["segments_by_difficulty"])
    if calibration:
        _draw_calibration(panels[-1], calibration)
    for axes in panels:
        axes.set_axisbelow(True)
    save_figure(figure, path)


def _draw_accuracy(axes: "Axes", accuracy: dict[str, list[float]], max_segments: int) -> None:
    counts = [int(count) for count in accuracy]
    for index, label in enumerate(("every cell right", "cells right")):
        shares = [both[index] for both in accuracy.values()]
        axes.plot(counts, shares, marker="o", markersize=3, color=COLORS[index], label=label)
    axes.axvline(max_segments, color="0.4", linestyle="--", linewidth=1, label="most in training")
    count_axis(axes, counts, "segments")
    share_axis(axes, "accuracy")
    clear_axes(axes)
    axes.legend(frameon=False, fontsize="small", loc="best")


def _draw_segments(axes: "Axes", name: str, groups: dict[str, Any]) -> None:
    labels = list(groups)
    bars = axes.bar(labels, [segments for segments, _, _ in groups.values()], color=COLORS[0], width=0.7)
    axes.bar_label(bars, [f"{accuracy:.2f}" for _, accuracy, _ in groups.values()], fontsize="x-small", color="0.3")
    axes.set_xlabel(f"{name.replace('_', ' ')} (above a bar: its exact accuracy)", fontsize="small")
    axes.set_ylabel("segments until it halts")
    axes.tick_params(axis="x", labelsize="small")
    clear_axes(axes)


def _draw_calibration(axes: "Axes", calibration: list[tuple[float, float, int]]) -> None:
    """A reliability diagram; the larger a point, the more predictions it stands for."""
    asked = sum(count for _, _, count in calibration)
    said, shares, counts = zip(*calibration)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1)
    axes.plot(said, shares, color=COLORS[2], linewidth=0.8)
    axes.scatter(said, shares, s=[12 + 200 * count / asked for count in counts], color=COLORS[2], alpha=0.7)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("mean predicted probability of being solved", fontsize="small")
    axes.set_ylabel("fraction solved")
    axes.spines[["top", "right"]].set_visible(False)
