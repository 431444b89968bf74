"""Measuring models over loops, and reporting what was measured."""

from .accuracy import accuracy_over_loops
from .benchmarks import BenchmarkResult, BenchmarkResults, benchmarks_over_loops
from .compositionality import (
    Compositionality,
    ShapeAccuracy,
    WordGuess,
    accuracy_by_shape,
    compositionality,
    read_graphs,
)
from .compositionality_errors import (
    DepthErrors,
    DepthFrequency,
    errors_by_depth,
    node_errors,
    node_values,
    subgraph_frequencies,
)
from .compositionality_information import InformationGain, information_gains, relative_information_gain
from .curves import LoopCurve, safe_range
from .depth_control_plots import plot_depth_controls
from .depth_control_results import DepthControls
from .depth_controls import depth_controls
from .gate_calibration import GateCalibration, gate_calibration
from .memory import kv_bytes_per_loop, kv_bytes_per_token
from .model_card import ModelCardFacts, render_model_card, write_model_card
from .perplexity import perplexity_over_loops
from .plots import plot_loop_curves
from .puzzle_card import measure_puzzles, write_puzzle_card
from .puzzles import (
    FailureChecks,
    HaltingQuality,
    SegmentRecord,
    failure_checks,
    halting_quality,
    record_segments,
    segment_accuracy,
    with_one_blank,
)
from .results import Results
from .scan import scan_layer_ranges
from .scan_plots import plot_layer_scan
from .scan_results import LayerScan, ScanCell, layer_ranges


__all__ = [
    "BenchmarkResult",
    "BenchmarkResults",
    "Compositionality",
    "DepthControls",
    "DepthErrors",
    "DepthFrequency",
    "FailureChecks",
    "GateCalibration",
    "HaltingQuality",
    "InformationGain",
    "LayerScan",
    "LoopCurve",
    "ModelCardFacts",
    "Results",
    "ScanCell",
    "SegmentRecord",
    "ShapeAccuracy",
    "WordGuess",
    "accuracy_by_shape",
    "accuracy_over_loops",
    "benchmarks_over_loops",
    "compositionality",
    "depth_controls",
    "errors_by_depth",
    "failure_checks",
    "gate_calibration",
    "halting_quality",
    "information_gains",
    "kv_bytes_per_loop",
    "kv_bytes_per_token",
    "layer_ranges",
    "measure_puzzles",
    "node_errors",
    "node_values",
    "perplexity_over_loops",
    "plot_depth_controls",
    "plot_layer_scan",
    "plot_loop_curves",
    "read_graphs",
    "record_segments",
    "relative_information_gain",
    "render_model_card",
    "safe_range",
    "scan_layer_ranges",
    "segment_accuracy",
    "subgraph_frequencies",
    "with_one_blank",
    "write_model_card",
    "write_puzzle_card",
]


def __dir__() -> list[str]:
    return __all__
