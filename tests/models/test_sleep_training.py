"""The stock Trainer on a sleep model."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from .model_tester import random_ids
from .sleep_variants import WINDOW, make_sleep


ROWS = [{"input_ids": row, "labels": row} for row in random_ids(4, 3 * WINDOW + 2)]


def trained(tmp_path, **options):
    """The loss of every step, and the model."""
    model = make_sleep("qwen3_next", num_backprop_windows=2)
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **{"per_device_train_batch_size": 4, **options},
    )
    trainer = Trainer(model, args, train_dataset=ROWS)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    ],
    ids=str,
)
def test_checkpointing_and_accumulation_train_the_same(options, tmp_path):
    losses, model = trained(tmp_path / "plain")
    others, other_model = trained(tmp_path / "other", **options)
    assert losses == pytest.approx(others, abs=1e-3)
    assert losses[-1] < losses[0]
    for name, parameter in other_model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), atol=2e-3, rtol=0)


def test_evaluation_returns_no_caches(tmp_path):
    args = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none")
    predictions = Trainer(make_sleep(), args).predict(ROWS).predictions
    assert predictions.shape == (4, 3 * WINDOW + 2, 97)
