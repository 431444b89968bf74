"""The figure of a benchmark of decoding: quality against time."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench_quality import Quality
from .bench_results import Bench, BenchRow
from .bench_tables import batches_of
from .figures import REFERENCE_COLOR, clear_axes, legend_below, new_figure, save_figure, style_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS: dict[str, Callable[[Quality], float]] = {
    "next-token accuracy": lambda quality: quality.accuracy,
    "perplexity": lambda quality: quality.perplexity,
}


def plot_bench(bench: Bench, path: str | Path, *, title: str | None = None) -> None:
    """Draw the quality of every way to decode against its time into an image file.

    A column of panels is a batch size. Fixed depths, and the thresholds of one exit rule, are joined by a line; the
    number beside a fixed depth is its loops. Bars are the quartiles of the time. A dashed vertical line is the time of
    what has no quality: a plain decoder of random weights.

    Args:
        bench (`Bench`): the measurement.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title.

    Raises:
        ValueError: if nothing was timed.
    """
    batches = batches_of(bench)
    if not batches:
        raise ValueError("bench holds no times; there is nothing to draw")
    series = _series(bench)
    # room for the legend, two or three entries to a line
    figure = new_figure(1.0 + 4.6 * len(batches), 6.4 + (0.08 if len(batches) > 1 else 0.12) * len(series))
    panels: Any = figure.subplots(len(METRICS), len(batches), squeeze=False, sharey="row")
    for row, (label, metric) in zip(panels, METRICS.items()):
        for axes, batch in zip(row, batches):
            for index, (name, members) in enumerate(series.items()):
                _draw(axes, bench, batch, name, members, metric, style_of(index))
            axes.set_title(f"batch {batch}", fontsize="medium")
            axes.set_xlabel(f"time of a token / time with {bench.rows[0].name}", fontsize="small")
            clear_axes(axes, "both")
        row[0].set_ylabel(label)
    figure.suptitle(f"Ways to decode with {bench.label}" if title is None else title, fontsize="large")
    legend_below(figure, num_columns=3 if len(batches) > 1 else 2)
    save_figure(figure, path)


def _series(bench: Bench) -> dict[str, list[BenchRow]]:
    """Return the rows by the name of the line that they are on, in the order of the legend."""
    series: dict[str, list[BenchRow]] = {}
    for row in bench.rows:
        names = {"loops": "fixed depth", "exit": f"exit by {row.name.partition(':')[0]}"}
        name = names.get(row.kind, f"cache {row.name}" if row.kind == "policy" else row.name)
        series.setdefault(name, []).append(row)
    return {name: sorted(rows, key=_loops) for name, rows in series.items()}


def _loops(row: BenchRow) -> float:
    return 0.0 if row.quality is None or row.quality.loops is None else row.quality.loops


def _draw(
    axes: "Axes",
    bench: Bench,
    batch: int,
    name: str,
    rows: list[BenchRow],
    metric: Callable[[Quality], float],
    style: dict[str, Any],
) -> None:
    points = []
    for row in rows:
        ratio = bench.ratio(row.name, batch)
        if ratio is None:
            continue
        if row.quality is None:
            axes.axvline(ratio.median, color=REFERENCE_COLOR, linestyle="--", linewidth=1, label=name)
        elif math.isfinite(metric(row.quality)):
            points.append((ratio, metric(row.quality), row.quality.loops))
    if not points:
        return
    medians, values = [ratio.median for ratio, _, _ in points], [value for _, value, _ in points]
    bars = [[r.median - r.low for r, _, _ in points], [r.high - r.median for r, _, _ in points]]
    style = style if len(points) > 1 else style | {"linestyle": "none"}
    axes.errorbar(medians, values, xerr=bars, markersize=5, linewidth=1, elinewidth=0.8, label=name, **style)
    for ratio, value, loops in points:
        if loops is not None and rows[0].kind == "loops":
            text = f"{loops:.3g}"
            axes.annotate(text, (ratio.median, value), (3, 3), textcoords="offset points", fontsize=6, color="0.3")
