"""`total_flos` counts every parameter as often as it was called, with our trainers and the stock one."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.looped_variants import tiny_looped
from ..models.sleep_variants import make_sleep
from .test_trainer import make_trainer
from .tiny import tiny_model
from .tiny_puzzles import CELLS, puzzle_model, train


STOCK = {
    "looped": (tiny_looped, "num_loops", 1, 16),
    "hierarchical": (tiny_hierarchical, "num_loops", 1, 4),
    "sleep": (make_sleep, "num_sleep_passes", 1, 8),
    "feedback": (make_feedback, "feedback_length", 0, 4),
}


def total_flos_of_stock_trainer(folder, model) -> float:
    rows = Dataset.from_dict({"input_ids": [list(range(3, 16))] * 8, "labels": [list(range(3, 16))] * 8})
    args = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    return trainer.state.total_flos


@pytest.mark.parametrize("family", STOCK)
def test_the_stock_trainer(family, tmp_path):
    make, name, less, more = STOCK[family]
    counts = {}
    for value in (less, more):
        model = make(**{name: value})
        counts[value] = total_flos_of_stock_trainer(tmp_path, model)
        assert counts[value] == 8 * model.floating_point_ops({"input_ids": torch.ones((1, 13), dtype=torch.long)})
    assert counts[more] > 1.3 * counts[less]


def test_the_stock_trainer_of_a_composed_model(tmp_path):
    counts = [
        total_flos_of_stock_trainer(tmp_path, make_composed("sleep", "looped", inner_fields={"num_loops": num_loops}))
        for num_loops in (1, 4)
    ]
    assert counts[1] > 1.5 * counts[0]


@pytest.mark.parametrize("has_adapter", [False, True])
def test_every_step_counts_at_the_depth_that_was_drawn(has_adapter, tmp_path):
    model = tiny_model(injection="add")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(
        tmp_path,
        get_peft_model(model, lora) if has_adapter else model,
        gradient_accumulation_steps=2,
        num_backprop_loops=2,
    )
    trainer.train()
    inputs = {"input_ids": torch.ones((4, 12), dtype=torch.long), "num_backprop_loops": 2}
    depths = [trainer.depth_at(step).num_loops for step in range(6)]
    assert len(set(depths)) > 2
    expected = sum(2 * model.floating_point_ops({**inputs, "num_loops": num_loops}) for num_loops in depths)
    assert trainer.state.total_flos == expected


@pytest.mark.parametrize("preset", ["trm", "hrm"])
def test_deep_supervision_counts_a_segment_a_step(preset, tmp_path):
    counts = {}
    for num_loops in (1, 6):
        model = puzzle_model(preset, num_loops=num_loops)
        trainer = train(tmp_path, model, max_steps=3)
        ids = torch.ones((8, CELLS), dtype=torch.long)
        counts[num_loops] = trainer.state.total_flos
        assert counts[num_loops] == 3 * model.floating_point_ops({"input_ids": ids, "labels": ids})
    # earlier cycles have no gradient
    assert counts[6] > 2 * counts[1]
