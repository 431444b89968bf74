import csv
import math

import pytest

from hf_loop.evaluation import LayerScan, ScanCell, layer_ranges


@pytest.fixture
def scan():
    return LayerScan(
        label="model",
        num_layers=8,
        num_tokens=100,
        base_perplexity=10.0,
        settings={"window": 512, "weights": "ab"},
        cells=[
            ScanCell(2, 3, 4, "damped", 9.5, 0.01),
            ScanCell(2, 3, 4, "replace", math.inf, math.inf),
            ScanCell(1, 1, 2, "replace", 12.0, 0.02),
            ScanCell(5, 7, 2, "replace", 11.0, 0.03),
        ],
    )


def test_ranges_are_a_grid_of_first_layers_and_lengths():
    assert layer_ranges(3) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert layer_ranges(6, stride=2) == [(0, 0), (0, 2), (0, 4), (2, 2), (2, 4), (4, 4)]
    assert layer_ranges(6, stride=2, min_length=2) == [(0, 1), (0, 3), (0, 5), (2, 3), (2, 5), (4, 5)]
    assert layer_ranges(9, min_length=2, max_length=3, within=(4, 7)) == [(4, 5), (4, 6), (5, 6), (5, 7), (6, 7)]
    assert len(layer_ranges(30)) == 30 * 31 // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "`stride` must be an integer of at least 1, got 0"),
        ({"min_length": 0}, "`min_length` must be an integer of at least 1"),
        ({"max_length": 0}, "`max_length` must be an integer of at least 1"),
        ({"min_length": 3, "max_length": 2}, "min_length 3 leaves no range: at most 2"),
        ({"min_length": 3, "within": (4, 5)}, "min_length 3 leaves no range: at most 2"),
        ({"within": (5, 4)}, "runs backwards"),
        ({"within": (4, 8)}, "passes the end: the model has the layers 0 to 7"),
    ],
)
def test_bad_grids_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        layer_ranges(8, **options)


def test_the_best_come_first_and_panels_are_in_reading_order(scan):
    assert [scan.ratio(cell) for cell in scan.best()] == [0.95, 1.1, 1.2, math.inf]
    assert [cell.perplexity for cell in scan.best(2)] == [9.5, 11.0]
    panels = scan.panels()
    assert list(panels) == [("replace", 2), ("replace", 4), ("damped", 4)]
    assert [cell.first for cell in panels["replace", 2]] == [1, 5]


def test_a_saved_scan_is_the_same_scan(scan, tmp_path):
    scan.save(tmp_path / "scan.json")
    assert LayerScan.load(tmp_path / "scan.json") == scan
    assert "Infinity" not in (tmp_path / "scan.json").read_text()


def test_the_table_holds_all_cells_best_first(scan):
    rows = list(csv.DictReader(scan.to_csv().splitlines()))
    assert [row["ratio"] for row in rows] == ["0.95", "1.1", "1.2", "inf"]
    assert rows[0] == {
        "first": "2",
        "last": "3",
        "num_loops": "4",
        "update": "damped",
        "perplexity": "9.5",
        "standard_error": "0.01",
        "ratio": "0.95",
    }


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": []}', '{"cells": [{"first": 1}]}', "3"])
def test_a_file_that_holds_no_scan_is_named(content, tmp_path):
    path = tmp_path / "scan.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"scan\.json (does not hold a layer|is not valid|must hold a)"):
        LayerScan.load(path)


def test_settings_are_compared_by_name(scan):
    scan.check_settings({"window": 512}, "scan.json")
    with pytest.raises(ValueError, match=r"scan.json was measured .* \(window 512 there, 256 here\); use another"):
        scan.check_settings({"window": 256, "weights": "ab"}, "scan.json")
