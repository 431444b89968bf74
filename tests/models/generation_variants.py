"""One tiny model of every kind that generates, for what must hold wherever `generate` is called from."""

from collections.abc import Callable
from typing import Any

from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .loop_lora_models import tiny_loop_lora
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .sleep_variants import make_sleep


PROMPT = random_ids(2, 9)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

# models whose cache can be cropped, and which take `num_loops`
LOOPED: dict[str, Callable[[], Any]] = {
    "looped": lambda: tiny_looped(num_prelude_layers=1, num_coda_layers=1, injection="add", state_init="zeros"),
    "looped from noise": lambda: tiny_looped(num_coda_layers=1, injection="concat", state_init="normal"),
    "looped, learned": lambda: tiny_looped(injection="diagonal", state_init="learned", loop_norm="own"),
    "loop LoRA": lambda: tiny_loop_lora(num_prelude_layers=1, num_coda_layers=1),
    "hierarchical": lambda: tiny_hierarchical(),
    "hierarchical, drawn states": lambda: tiny_hierarchical(state_init="random", injection="add"),
    "hierarchical, hrm_text": lambda: tiny_hierarchical("hrm_text", stack_norm="weightless"),
}
# models whose cache is a memory
MEMORY: dict[str, Callable[[], Any]] = {
    "feedback": lambda: make_feedback(random_position_offset=64),
    "feedback, prefix": lambda: make_feedback(feedback_init="prefix"),
    "sleep, hybrid": lambda: make_sleep("qwen3_next"),
    "sleep, inserted layers": lambda: make_sleep(fast_weight_layers=[0, 2]),
}
FAMILIES = LOOPED | MEMORY


def depths(name: str) -> list[dict[str, int]]:
    """Depths of generation: as configured, and others where the model takes one."""
    if name in LOOPED:
        return [{}, {"num_loops": 1}, {"num_loops": 5}]
    return [{}, {"num_sleep_passes": 3}] if name.startswith("sleep") else [{}]
