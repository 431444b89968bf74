"""A tiny model of every family with one way to make it, for what must hold in all of them."""

from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .loop_lora_models import tiny_loop_lora
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .puzzle_variants import puzzles, tiny_puzzle_model
from .sleep_variants import make_sleep


# each takes the model type of a backbone, except the puzzle model, which has its own
CAUSAL_FAMILIES = {
    "looped": tiny_looped,
    "looped with per-loop LoRA": tiny_loop_lora,
    "feedback": make_feedback,
    "sleep": make_sleep,
    "hierarchical": tiny_hierarchical,
}
FAMILIES = {**CAUSAL_FAMILIES, "puzzle": tiny_puzzle_model}


def inputs_of(family: str) -> dict:
    """What a model of the family reads: several blocks or windows of tokens, or cells."""
    input_ids = puzzles() if family == "puzzle" else random_ids(2, 11)
    return {"input_ids": input_ids}
