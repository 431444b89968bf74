"""What goes on inside the loops of a model."""

from .capture import Captured, CapturedCall, capture
from .masks import MaskScores, masked_weights


__all__ = [
    "Captured",
    "CapturedCall",
    "MaskScores",
    "capture",
    "masked_weights",
]


def __dir__() -> list[str]:
    return __all__
