"""What goes on inside the loops of a model."""

from .masks import MaskScores, masked_weights


__all__ = [
    "MaskScores",
    "masked_weights",
]


def __dir__() -> list[str]:
    return __all__
