import pytest
from matplotlib.image import imread

from hf_loop.evaluation.puzzle_plots import plot_puzzle_results


ACCURACY = {"1": [0.8, 0.9], "4": [0.9, 0.95], "32": [1.0, 1.0]}
HALTED = {
    "calibration": [(0.05, 0.0, 3), (0.5, 0.4, 2), (0.98, 1.0, 40)],
    "segments_by_difficulty": {"24": (1.0, 1.0, 5), "25-27": (2.5, 0.9, 4)},
}


@pytest.mark.parametrize(
    "halting, num_panels",
    [({}, 1), ({"blanks": HALTED, "dead_ends": HALTED}, 4), ({"length": {**HALTED, "calibration": []}}, 2)],
    ids=["no halting", "a head", "a fixed point"],
)
def test_a_panel_for_all_that_was_measured(tmp_path, halting, num_panels):
    path = tmp_path / "figure.png"
    plot_puzzle_results({"accuracy": ACCURACY, "halting": halting}, path, max_segments=4)
    assert imread(path).shape[1] == round((0.6 + 3.4 * num_panels) * 150)
