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
from .modularity import measure_modularity
from .modularity_plots import plot_modularity
from .modularity_results import ModularityResults
from .modularity_training import MaskTraining, train_masks
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
    "MaskTraining",
    "ModularityResults",
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
    "measure_modularity",
    "node_table",
    "overthinking",
    "patch",
    "path_independence",
    "plot_modularity",
    "plot_node_probes",
    "probe_nodes",
    "run_patched",
    "skip",
    "swap",
    "train_masks",
]


def __dir__() -> list[str]:
    return __all__
