import math
import sys

import matplotlib.image
import pytest

from hf_loop.evaluation import LayerScan, ScanCell, layer_ranges, plot_layer_scan
from hf_loop.evaluation.scan_plots import _norm


def make_scan(cells) -> LayerScan:
    return LayerScan("model", 8, 100, 10.0, {}, cells)


def grid(update, num_loops, stride=1):
    ranges = layer_ranges(8, stride=stride)
    return [ScanCell(a, b, num_loops, update, 9.9 + 0.5 * (b - a) ** num_loops, 0.01) for a, b in ranges]


def test_it_writes_a_png_without_touching_pyplot(tmp_path):
    scan = make_scan(grid("replace", 2) + grid("replace", 4, stride=3) + grid("damped", 2, stride=2)[:-2])
    plot_layer_scan(scan, tmp_path / "scan.png")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_a_cell_that_helps_is_blue_and_one_that_harms_is_red(tmp_path):
    colors = {}
    for name, perplexity in (("helps", 6.0), ("harms", 16.0), ("infinite", math.inf)):
        plot_layer_scan(make_scan([ScanCell(3, 4, 2, "replace", perplexity, 0.1)]), tmp_path / f"{name}.png")
        image = matplotlib.image.imread(tmp_path / f"{name}.png")
        height, width = image.shape[:2]
        # inside the only cell and beside the number at its middle
        colors[name] = image[int(0.4 * height), int(0.3 * width), :3]
    assert colors["helps"][2] > colors["helps"][0] + 0.2
    assert colors["harms"][0] > colors["harms"][2] + 0.2
    assert colors["infinite"][0] > colors["infinite"][2] + 0.2


@pytest.mark.parametrize(
    ("perplexities", "widest"),
    [([10.0], 1.02), ([9.0, 10.5], 1.05), ([9.0, 1e9, math.inf], 10 / 9), ([50.0], 2.0), ([math.inf], 1.02)],
)
def test_the_scale_is_symmetric_and_ruined_cells_do_not_widen_it(perplexities, widest):
    cells = [ScanCell(0, last, 2, "replace", value, 0.1) for last, value in enumerate(perplexities)]
    norm = _norm(make_scan(cells))
    assert float(norm(1.0)) == pytest.approx(0.5)
    assert norm.vmax == pytest.approx(widest)
    assert norm.vmin == pytest.approx(1 / widest)


def test_an_empty_scan_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scan holds no cells"):
        plot_layer_scan(make_scan([]), tmp_path / "scan.png")
    assert list(tmp_path.iterdir()) == []
