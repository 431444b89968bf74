import math

import pytest
from matplotlib.figure import Figure

from hf_loop.evaluation import DepthControls, plot_depth_controls
from hf_loop.evaluation.depth_control_results import ControlledDepth


def draw(path, monkeypatch, shares_loops, frozen=9e9):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure))
    rows = [ControlledDepth(loops, 4.0 / loops, 3.0, 3.0, frozen, 2.0, 2.0, 2.0, 1.0) for loops in (1, 2)]
    plot_depth_controls(DepthControls("model", 2, shares_loops, 10, 10, rows=rows), path)
    return drawn[0].axes[0]


def test_curves_that_are_others_by_definition_are_not_drawn(tmp_path, monkeypatch):
    def names(axes):
        return {line.get_label().split("(")[0] for line in axes.get_lines()}

    own = draw(tmp_path / "figure.png", monkeypatch, shares_loops=False)
    shared = draw(tmp_path / "figure.png", monkeypatch, shares_loops=True)
    assert names(own) - names(shared) == {"loop k again, repeat", "last k loops, suffix"}


@pytest.mark.parametrize("frozen", [9e9, math.nan])
def test_a_control_that_explodes_leaves_the_others_readable(frozen, tmp_path, monkeypatch):
    axes = draw(tmp_path / "figure.png", monkeypatch, shares_loops=True, frozen=frozen)
    low, high = axes.get_ylim()
    assert 1 < low < 2 and 4 < high < 5


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        plot_depth_controls(DepthControls("model", 2, True, 10, 10), tmp_path / "figure.png")
