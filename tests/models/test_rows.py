"""In training, a row of a batch gives the loss and the gradient that it gives alone, whatever is beside it."""

import pytest
import torch

from .composed_variants import PAIRS, make_composed
from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .loop_lora_models import tiny_loop_lora
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .sleep_variants import make_sleep


# fractions of a gradient's largest entry; the noise and the positions of another row would change it by far more
TOLERANCE = 2e-3
MODELS = {
    "looped": lambda: tiny_looped(num_prelude_layers=1, num_coda_layers=1),
    "looped, noise": lambda: tiny_looped(num_prelude_layers=1, injection="add", state_init="normal", state_std=1.0),
    "looped, learned state": lambda: tiny_looped(injection="diagonal", state_init="learned"),
    "looped, updates": tiny_loop_lora,
    "looped, experts": lambda: tiny_looped("qwen3_moe", num_loops=2),
    "looped, linear attention": lambda: tiny_looped("qwen3_next", num_loops=2),
    "looped, learned positions": lambda: tiny_looped("opt", num_loops=2),
    "hierarchical": tiny_hierarchical,
    "feedback": make_feedback,
    "feedback, prefix": lambda: make_feedback(feedback_init="prefix"),
    "feedback, top": lambda: make_feedback(feedback_source="top"),
    "feedback, offset": lambda: make_feedback("opt", random_position_offset=99),
    "sleep": make_sleep,
    "sleep, truncated": lambda: make_sleep(num_backprop_windows=1, num_sleep_passes=2),
    "sleep, truncated by two": lambda: make_sleep(num_backprop_windows=2, eviction="sliding"),
    "sleep, labelled windows once": lambda: make_sleep(sleep_over_labels=False),
    "sleep, linear attention": lambda: make_sleep("qwen3_next"),
    **{f"{outer} over {inner}": lambda pair=(outer, inner): make_composed(*pair) for outer, inner in PAIRS},
}
LENGTHS = (13, 4, 9)


OBJECTIVES = {
    "looped": lambda: tiny_looped(num_prelude_layers=1, num_coda_layers=1, exit_gate=True),
    "looped, noise": lambda: tiny_looped(injection="add", state_init="normal", state_std=1.0, exit_gate=True),
}


def gradients(model, rows: list[dict], **options) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss over the labels of batches, and its gradient."""
    model.zero_grad()
    total = 0.0
    for row in rows:
        loss = model(**row, num_items_in_batch=1, use_cache=False, **options).loss
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def padded(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """A batch as `Trainer`'s collators make it: no positions, and padding that is not scored."""
    width = max(map(len, rows))
    batch: dict[str, list[torch.Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        padding = (0, width - len(row)) if side == "right" else (width - len(row), 0)
        # the first token is predicted by none
        labels = torch.cat([torch.tensor([-100]), row[1:]])
        columns = (("input_ids", row, 7), ("attention_mask", torch.ones_like(row), 0), ("labels", labels, -100))
        for name, values, value in columns:
            batch[name].append(torch.nn.functional.pad(values, padding, value=value))
    return {name: torch.stack(values) for name, values in batch.items()}


def without_dropout(model):
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_in_training_is_the_row_alone(name, side):
    assert_same_rows(without_dropout(MODELS[name]()).train(), side)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("objective", ["expected", "gain", "distillation"])
def test_a_row_of_an_exit_objective_is_the_row_alone(objective, name, side):
    assert_same_rows(OBJECTIVES[name]().train(), side, exit_objective=objective)


def assert_same_rows(model, side: str, **options):
    rows = [random_ids(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]
    alone = gradients(model, [{"input_ids": row[None], "labels": row[None]} for row in rows], **options)
    together = gradients(model, [padded(rows, side)], **options)
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    assert together[1].keys() == alone[1].keys()
    for key, gradient in alone[1].items():
        scale = gradient.abs().max().clamp(min=1e-3)
        difference = (together[1][key] - gradient).abs().max() / scale
        assert difference < TOLERANCE, (key, difference)
