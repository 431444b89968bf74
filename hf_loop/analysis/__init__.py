"""What goes on inside the loops of a model."""

from .capture import Captured, CapturedCall, capture
from .dynamics import (
    LoopDynamics,
    PathIndependence,
    count_flips,
    find_cycles,
    first_lasting_right,
    loop_dynamics,
    overthinking,
    path_independence,
)
from .interventions import Intervention
from .lens import FittedLens, LensReading, fit_lens, logit_lens, loop_answers
from .masks import MaskScores, masked_weights
from .patching import EffectTable, ablate, effect_table, freeze, patch, run_patched, skip, swap
from .probe import NodeProbes, NodeTable, node_table, probe_nodes
from .probe_plots import plot_node_probes
from .probe_states import loop_states


__all__ = [
    "Captured",
    "CapturedCall",
    "EffectTable",
    "FittedLens",
    "Intervention",
    "LensReading",
    "LoopDynamics",
    "MaskScores",
    "NodeProbes",
    "NodeTable",
    "PathIndependence",
    "ablate",
    "capture",
    "count_flips",
    "effect_table",
    "find_cycles",
    "first_lasting_right",
    "fit_lens",
    "freeze",
    "logit_lens",
    "loop_answers",
    "loop_dynamics",
    "loop_states",
    "masked_weights",
    "node_table",
    "overthinking",
    "patch",
    "path_independence",
    "plot_node_probes",
    "probe_nodes",
    "run_patched",
    "skip",
    "swap",
]


def __dir__() -> list[str]:
    return __all__
