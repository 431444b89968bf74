"""The figure that shows the loss over loops under the controls of depth."""

import math
from pathlib import Path

from .depth_control_results import DepthControls
from .figures import REFERENCE_COLOR, clear_axes, count_axis, legend_below, new_figure, save_figure, style_of


NAMES = {
    "prefix": "naive cut, prefix(k)",
    "repeat": "loop k again, repeat(k)",
    "suffix": "last k loops, suffix(k)",
    "frozen": "step k again, frozen(k)",
    "temperature": "naive, fitted temperature",
    "gains": "naive, fitted gains",
    "affine": "naive, fitted affine map",
}
# they are another curve by definition where all loops share their weights
OF_OWN_WEIGHTS = ("repeat", "suffix")
# nats above the range of the other curves at which a curve is cut off
HEADROOM = 0.15


def plot_depth_controls(controls: DepthControls, path: str | Path, *, title: str | None = None) -> None:
    """Draw the loss over loops, naive and under every control, into an image file.

    The y axis shows the naive cut and the fitted readouts whole; a control far above them leaves the picture. Where
    all loops share their weights, repeat(k) and suffix(k) are not drawn, since they are the whole model and prefix(k).

    Args:
        controls (`DepthControls`): what was measured.
        path (`str` or `Path`): the file; its ending picks the format (`.png`, `.svg`, `.pdf`).
        title (`str`, *optional*): the figure's title.

    Raises:
        ValueError: if nothing was measured.
    """
    if not controls.rows:
        raise ValueError("controls has no rows; there is nothing to draw")
    figure = new_figure(6.4, 4.8)
    axes = figure.add_subplot()
    counts = [row.loops for row in controls.rows]
    for index, (name, label) in enumerate(NAMES.items()):
        if controls.shares_loops and name in OF_OWN_WEIGHTS:
            continue
        values = [getattr(row, name) for row in controls.rows]
        axes.plot(counts, values, markersize=4, label=label, **style_of(index))
    axes.axhline(
        controls.rows[-1].prefix, color=REFERENCE_COLOR, linestyle=":", linewidth=1, label="the model at full depth"
    )
    bounding = ("prefix", "temperature", "gains", "affine")
    seen = [value for row in controls.rows for name in bounding if math.isfinite(value := getattr(row, name))]
    if seen:
        room = HEADROOM * (max(seen) - min(seen)) or 1.0
        axes.set_ylim(min(seen) - room, max(seen) + room)
    count_axis(axes, counts, f"k, of {controls.num_loops} loops")
    axes.set_ylabel("loss (nats per token)")
    clear_axes(axes)
    legend_below(figure)
    if title is not None:
        axes.set_title(title)
    save_figure(figure, path)
