import math
import sys

import pytest

from hf_loop.evaluation import LoopCurve, plot_loop_curves


def test_it_writes_a_png_without_touching_pyplot(tmp_path):
    curves = [
        LoopCurve("accuracy", "sampled depth", [1, 2, 3, 6, 12, 24], [0.3, 0.4, 0.7, 1.0, 1.0, 0.99], 6.0),
        LoopCurve("accuracy", "fixed depth", [1, 2, 6], [0.3, 0.3, 1.0], 6.0),
        LoopCurve("accuracy", "unknown depth", [1, 2], [0.3, 0.3]),
    ]
    plot_loop_curves(curves, tmp_path / "figure.png", title="shell game")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_a_collapsed_perplexity_and_many_counts_can_be_drawn(tmp_path):
    loops = list(range(1, 20))
    curve = LoopCurve("perplexity", "model", loops, [20.0] + [30.0 * 2**n for n in range(17)] + [math.inf], 1.0)
    plot_loop_curves([curve], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_bad_input_gets_a_clear_error(tmp_path):
    accuracy = LoopCurve("accuracy", "a", [1], [0.5], 1.0)
    with pytest.raises(ValueError, match="curves is empty"):
        plot_loop_curves([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="one metric, got accuracy, perplexity"):
        plot_loop_curves([accuracy, LoopCurve("perplexity", "b", [1], [9.0])], tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []
