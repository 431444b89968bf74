"""One tiny model of every family, for what all of them must do."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .looped_variants import tiny_looped
from .puzzle_variants import tiny_puzzle_model
from .sleep_variants import make_sleep


CAUSAL: dict[str, Callable[[], Any]] = {
    "looped": tiny_looped,
    "feedback": make_feedback,
    "sleep": make_sleep,
    "hierarchical": tiny_hierarchical,
}
FAMILIES: dict[str, Callable[[], Any]] = {**CAUSAL, "puzzle": tiny_puzzle_model}
# longer than a block of the feedback model and a window of the sleep model
INPUT_IDS = torch.tensor([[1, 4, 2, 5, 3, 1, 2, 4]])


def base_model(model: PreTrainedModel) -> Any:
    """The model without its head."""
    return model.model
