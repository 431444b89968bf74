"""Running a model for measurement."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig


# of a generation configuration
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@contextmanager
def default_generation(model: Any) -> Generator[None]:
    """Let a model generate without the settings of its own, such as beams, penalties, exits and cache policy, but for
    its special tokens."""
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in SPECIAL_TOKENS})
    try:
        yield
    finally:
        model.generation_config = own


def trained_loops(model: Any) -> float:
    """Return the loops of a model's configuration, at which it was trained.

    Args:
        model (`PreTrainedModel`): the model to be measured over loops.

    Raises:
        ValueError: if it is no causal language model, or has no loops.
    """
    if not model.can_generate():
        raise ValueError(f"model must be a causal language model, got {type(model).__name__}")
    # the configuration tells: any forward that takes keywords would swallow `num_loops`
    if not hasattr(model.config, "num_loops"):
        raise ValueError(f"model must have num_loops in its configuration, got {type(model).__name__} without loops")
    return float(model.config.num_loops)
