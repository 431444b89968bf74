"""What every figure keeps to: series that can be told apart, legends that cover nothing, bars with their numbers."""

import ast
import importlib.util
import itertools
import sys
from pathlib import Path

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from hf_loop.analysis import NodeProbes, plot_node_probes
from hf_loop.analysis.inspection_plots import plot_inspection
from hf_loop.analysis.inspection_results import Inspection
from hf_loop.analysis.modularity_plots import plot_modularity
from hf_loop.evaluation import LayerScan, LoopCurve, ScanCell, layer_ranges, plot_layer_scan, plot_loop_curves
from hf_loop.evaluation.bench_plots import plot_bench
from hf_loop.evaluation.bench_quality import Quality
from hf_loop.evaluation.bench_results import Bench, BenchRow
from hf_loop.evaluation.block_perplexity import BlockCurve
from hf_loop.evaluation.block_plots import plot_block_curves
from hf_loop.evaluation.depth_control_plots import plot_depth_controls
from hf_loop.evaluation.depth_control_results import ControlledDepth, DepthControls
from hf_loop.evaluation.puzzle_plots import plot_puzzle_results
from hf_loop.evaluation.seed_plots import plot_seeds
from hf_loop.evaluation.study_plots import plot_difficulties

from ..analysis.test_modularity_plots import make_results
from .study_example import small_runs


ROOT = Path(__file__).parents[2]
# more than there are colours, and long names
NAMES = [f"variant {index} with a long name" for index in range(9)]
HALTING = {
    "calibration": [(0.05, 0.0, 3), (0.5, 0.4, 2), (0.98, 1.0, 40)],
    "segments_by_difficulty": {"0": (1.0, 1.0, 5), "1": (2.5, 0.9, 1234), "4": (3.0, 0.5, 7)},
}
ACCURACY = {"1": [0.8, 0.9], "4": [0.9, 0.95], "32": [1.0, 1.0]}


def script(path):
    path = ROOT / "training" / "recipes" / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def loop_curves(path):
    curves = [
        LoopCurve("accuracy", name, [1, 2, 4], [0.1 * index, 0.5, 0.9], 1 + index % 4, guessing=0.35)
        for index, name in enumerate(NAMES)
    ]
    plot_loop_curves(curves, path)


def block_curves(path):
    curves = [BlockCurve(name, 5, [[1.0 + index, 2.0, 3.0]], [4, 5, 5]) for index, name in enumerate(NAMES)]
    plot_block_curves(curves, path)


def controlled_depths(path):
    rows = [ControlledDepth(loops, *(loops + index / 10 for index in range(8))) for loops in (1, 2, 4)]
    plot_depth_controls(DepthControls("model", 4, False, 10, 10, rows=rows), path)


def node_probes(path):
    nodes = [f"node {index} with a long name" for index in range(7)]
    accuracy = [[0.3 + 0.1 * (loop >= index) * index for loop in range(6)] for index in range(7)]
    probes = NodeProbes(nodes, list(range(7)), list(range(6)), [0.3] * 7, accuracy, accuracy, 10, 10)
    plot_node_probes(probes, path)


def puzzle_results(path):
    halting = {"dead_ends": HALTING, "blanks": HALTING}
    plot_puzzle_results({"accuracy": ACCURACY, "halting": halting}, path, max_segments=4)


def layer_scan(path):
    cells = [ScanCell(a, b, 2, "replace", 9.9 + b - a, 0.1) for a, b in layer_ranges(9, stride=3)]
    cells += [ScanCell(a, b, 4, "damped", 9.9 + b - a, 0.1) for a, b in layer_ranges(9)]
    plot_layer_scan(LayerScan("model", 9, 100, 10.0, {}, cells), path)


def bench(path):
    rows = [
        *(BenchRow(f"{count} loops", "loops", Quality(10.0, 0.5, float(count))) for count in (2, 1)),
        *(BenchRow(f"kl:{value}", "exit", Quality(10.0, 0.5, 1.5)) for value in (0.1, 0.2)),
        *(BenchRow(name, "other", Quality(10.0 + index, 0.5)) for index, name in enumerate(NAMES)),
        BenchRow("plain Llama", "plain"),
    ]
    times = {row.name: [0.1 * index, 0.1] for index, row in enumerate(rows, 1)}
    plot_bench(Bench("model", 2, {}, rows, {"1": [times]}), path)


def seeds(path):
    runs = {name: [[1.0, 0.5, index / 20], [0.9, 0.4, 0.0]] for index, name in enumerate(NAMES)}
    plot_seeds(runs, [2, 4, 256], path, x_label="blocks", y_label="right", trained=4, guessing=0.1)


def halting(path):
    results = [{"variant": name, "halting": {"dead_ends": HALTING}} for name in NAMES]
    script("hierarchical/sudoku_segments.py").draw_halting(results, path)


def passes(path):
    accuracy = {"exact": 0.9, "bits": 0.95, "exact_by_guessing": 0.3, "bits_by_guessing": 0.5}
    results = [{"task": "rule_110", "variant": name, "accuracy": accuracy} for name in NAMES]
    script("sleep/passes.py").draw(results, path)


def inspection(path):
    numbers: dict = dict.fromkeys(("step_norm", "cosine", "acceleration", "distance_to_final"), [2.0, 0.3, 0.01])
    top, probability = [["a long token", "b"]] * 3, [[0.1, 0.9]] * 3
    found = Inspection(
        "model", "a b", "answer", 3, [0, 1], ["a", "b"], top, probability, **numbers, periods=[0, 1], since=[0, 2],
        followed="a", followed_rank=[[1, 0]] * 3, followed_probability=probability,
    )  # fmt: skip
    plot_inspection(found, path)


def modularity(path):
    plot_modularity(make_results(6), path)


def study(path):
    plot_difficulties(small_runs(), path)


FIGURES = {
    "hf_loop/analysis/inspection_plots.py": inspection,
    "hf_loop/analysis/probe_plots.py": node_probes,
    "hf_loop/analysis/modularity_plots.py": modularity,
    "hf_loop/evaluation/bench_plots.py": bench,
    "hf_loop/evaluation/plots.py": loop_curves,
    "hf_loop/evaluation/block_plots.py": block_curves,
    "hf_loop/evaluation/depth_control_plots.py": controlled_depths,
    "hf_loop/evaluation/puzzle_plots.py": puzzle_results,
    "hf_loop/evaluation/scan_plots.py": layer_scan,
    "hf_loop/evaluation/seed_plots.py": seeds,
    "hf_loop/evaluation/study_plots.py": study,
    "training/recipes/hierarchical/sudoku_segments.py": halting,
    "training/recipes/sleep/passes.py": passes,
}
HAVE_ACCURACY = ("plots.py", "seed_plots.py", "study_plots.py", "passes.py")


@pytest.fixture(params=FIGURES)
def figure(request, tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig

    def keep(figure, *args, **options):
        drawn.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    FIGURES[request.param](tmp_path / "figure.png")
    (figure,) = drawn
    figure.source = request.param.rpartition("/")[2]
    return figure


def test_every_figure_is_inspected():
    makers = set()
    for path in [*ROOT.glob("hf_loop/**/*.py"), *ROOT.glob("training/**/*.py")]:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(getattr(call, "id", getattr(call, "attr", "")) in ("save_figure", "savefig") for call in calls):
            makers.add(path.relative_to(ROOT).as_posix())
    assert makers - {"hf_loop/evaluation/figures.py"} == set(FIGURES)


def test_no_two_series_look_the_same(figure):
    for axes in figure.axes:
        looks = [
            (line.get_color(), line.get_linestyle(), line.get_marker())
            for line in axes.get_lines()
            # one point of a series at each place, without a line
            if line.get_linestyle() != "None" or line.get_marker() != "None"
        ]
        assert len(looks) == len(set(looks)), axes.get_title()


def test_no_legend_covers_what_is_drawn(figure):
    figure.canvas.draw()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]
    for legend, axes in itertools.product(legends, figure.axes):
        assert not legend.get_window_extent().overlaps(axes.get_window_extent()), axes.get_title()
    # every label of every panel is in a legend
    named = {text.get_text() for legend in legends for text in legend.get_texts()}
    assert named >= {label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]}


def test_a_legend_is_inside_the_picture(figure):
    figure.canvas.draw()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend() is not None)]
    for legend in legends:
        extent, whole = legend.get_window_extent(), figure.bbox
        assert whole.x0 - 1 <= extent.x0 and extent.x1 <= whole.x1 + 1, figure.source
        assert whole.y0 - 1 <= extent.y0 and extent.y1 <= whole.y1 + 1, figure.source


def test_a_bar_has_the_size_of_its_group(figure):
    for axes in figure.axes:
        for bars in (container for container in axes.containers if isinstance(container, BarContainer)):
            texts = [text.get_text().splitlines()[-1] for text in axes.texts]
            assert texts == ["5", "1234", "7"] and len(bars) == 3


def test_a_share_of_right_answers_stands_beside_guessing(figure):
    labels = {label for axes in figure.axes for label in axes.get_legend_handles_labels()[1]}
    assert ("guessing" in labels) == (figure.source in HAVE_ACCURACY)


def test_a_scan_says_its_stride(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axes, text, **options: titles.append(text))
    layer_scan(tmp_path / "scan.png")
    assert ["stride 3" in title for title in titles] == [True, False]
