"""What goes on inside the loops of a model."""

from .capture import Captured, CapturedCall, capture
from .interventions import Intervention
from .lens import FittedLens, LensReading, fit_lens, logit_lens, loop_answers
from .masks import MaskScores, masked_weights
from .patching import EffectTable, ablate, effect_table, freeze, patch, run_patched, skip, swap


__all__ = [
    "Captured",
    "CapturedCall",
    "EffectTable",
    "FittedLens",
    "Intervention",
    "LensReading",
    "MaskScores",
    "ablate",
    "capture",
    "effect_table",
    "fit_lens",
    "freeze",
    "logit_lens",
    "loop_answers",
    "masked_weights",
    "patch",
    "run_patched",
    "skip",
    "swap",
]


def __dir__() -> list[str]:
    return __all__
