"""Two micro-batches of two rows give the step of one batch of four, in every family and with every option."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from hf_loop import LoopTrainer, LoopTrainingArguments, RandomStatePassing
from hf_loop.models import family_of
from hf_loop.trainer import CardTrainer

from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.loop_lora_models import tiny_loop_lora
from ..models.looped_variants import tiny_looped
from ..models.puzzle_variants import tiny_puzzle_model
from ..models.sleep_variants import make_sleep


NUM_STEPS = 3
LENGTHS = (13, 5, 9, 11)
COMMON = {
    "max_steps": NUM_STEPS,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "train_sampling_strategy": "sequential",
    "optim": "sgd",
}


def text_rows(weighted: bool = False) -> Dataset:
    """Rows of different lengths, with labels that are partly left out, differently many in every micro-batch."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(4 * NUM_STEPS):
        length = LENGTHS[number % 4]
        ids = torch.randint(4, 97, (length,), generator=generator)
        labels = ids.masked_fill(torch.rand(length, generator=generator) < 0.3 * (number % 2), -100)
        row: dict[str, Any] = {"input_ids": ids.tolist(), "labels": labels.tolist()}
        if weighted:
            row["loss_weights"] = torch.rand(length, generator=generator).tolist()
        rows.append(row)
    return Dataset.from_list(rows)


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded on the right, as transformers' collators make it."""
    width = max(len(row["input_ids"]) for row in rows)
    values = {"input_ids": 0, "labels": -100, "loss_weights": 0.0}
    batch = {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in values.items()
        if name in rows[0]
    }
    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {**batch, "attention_mask": torch.tensor(mask)}


def distilled(**fields: Any) -> dict[str, Any]:
    student = tiny_looped()
    teacher = LlamaForCausalLM(student.config.backbone_config)
    return {"model": student, "teacher": teacher, "args": {"distillation_weight": 0.7, **fields}}


LOOPED: dict[str, Any] = {
    "sampled depth": lambda: {"model": tiny_looped()},
    "curriculum, truncated": lambda: {
        "model": tiny_looped(),
        "args": {"loop_curriculum": 0.9, "num_backprop_loops": 1},
    },
    "noise": lambda: {"model": tiny_looped(injection="add", state_init="normal")},
    "updates per loop": lambda: {"model": tiny_loop_lora()},
    "experts": lambda: {"model": tiny_looped("mixtral")},
    "loss weights": lambda: {"model": tiny_looped(), "train_dataset": text_rows(weighted=True)},
    "distillation": distilled,
    "distillation of smoothed labels": lambda: distilled(label_smoothing_factor=0.1),
    "label smoothing": lambda: {"model": tiny_looped(), "args": {"label_smoothing_factor": 0.1}},
    "expected exits": lambda: {"model": tiny_looped(exit_gate=True), "args": {"exit_objective": "expected"}},
    "expected exits, loss weights, truncated": lambda: {
        "model": tiny_looped(num_coda_layers=1, exit_gate=True),
        "train_dataset": text_rows(weighted=True),
        "args": {"exit_objective": "expected", "num_backprop_loops": 1},
    },
    "gate on the gain": lambda: {"model": tiny_looped(exit_gate=True), "args": {"exit_objective": "gain"}},
    "distillation of depths": lambda: {"model": tiny_looped(), "args": {"exit_objective": "distillation"}},
    "checkpointing": lambda: {"model": tiny_looped(), "args": {"activation_checkpointing": True}},
    "muon": lambda: {"model": tiny_looped(), "args": {"use_muon": True, "optim": "adamw_torch"}},
    "hierarchical": lambda: {"model": tiny_hierarchical()},
    "adapter": lambda: {
        "model": get_peft_model(tiny_looped(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    },
}
OTHERS: dict[str, Any] = {
    "feedback": lambda: {"model": make_feedback()},
    "feedback, passed states": lambda: {
        "model": make_feedback(random_state_passing=0.7, random_position_offset=50),
        "callbacks": [RandomStatePassing()],
    },
    "feedback over loops": lambda: {"model": make_composed("feedback", "looped")},
    "sleep": lambda: {"model": make_sleep(num_backprop_windows=1)},
    "sleep, labelled windows once": lambda: {"model": make_sleep(sleep_over_labels=False)},
    "sleep, loss weights": lambda: {"model": make_sleep(), "train_dataset": text_rows(weighted=True)},
    "label smoothing": lambda: {"model": make_sleep(), "args": {"label_smoothing_factor": 0.1}},
}


def run(folder, trainer_class, arguments, parts, batch_size: int, **options: Any) -> tuple[list[float], Any]:
    parts = parts()
    fields = {**COMMON, **parts.pop("args", {}), **options}
    args = arguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=4 // batch_size,
        remove_unused_columns=False,
        **fields,
    )
    trainer = trainer_class(args=args, **{"train_dataset": text_rows(), "data_collator": pad, **parts})
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.model


def assert_same_steps(folder, trainer_class, arguments, parts, **options):
    whole, model = run(folder, trainer_class, arguments, parts, 4, **options)
    halves, other = run(folder, trainer_class, arguments, parts, 2, **options)
    assert halves == pytest.approx(whole, rel=1e-3)
    for (name, weight), expected in zip(other.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(weight, expected[1], rtol=2e-3, atol=2e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("name", LOOPED)
def test_models_with_loops(name, tmp_path):
    assert_same_steps(tmp_path, LoopTrainer, LoopTrainingArguments, LOOPED[name], mean_loops=2)


@pytest.mark.parametrize("trainer_class", [Trainer, CardTrainer])
@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name, trainer_class, tmp_path):
    assert_same_steps(tmp_path, trainer_class, TrainingArguments, OTHERS[name])


LABELS = {
    "single_label_classification": (3, lambda number, length: number % 3),
    "regression": (1, lambda number, length: number / 7),
    "multi_label_classification": (3, lambda number, length: [number % 2, 1.0, 0.5]),
    "tokens": (3, lambda number, length: [(number + place) % 4 - 1 for place in range(length)]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("make", [tiny_looped, make_feedback, make_sleep, tiny_hierarchical])
def test_classifiers(make, kind, tmp_path):
    num_labels, label = LABELS[kind]
    rows = []
    for number, row in enumerate(text_rows()):
        rows.append({"input_ids": row["input_ids"], "labels": label(number, len(row["input_ids"]))})
    head = "AutoModelForTokenClassification" if kind == "tokens" else "AutoModelForSequenceClassification"

    def collate(batch):
        if kind == "tokens":
            padded = pad(batch)
            return {**padded, "labels": padded["labels"].masked_fill(padded["labels"] < 0, -100)}
        labels = torch.tensor([row["labels"] for row in batch])
        return {**pad([{"input_ids": row["input_ids"]} for row in batch]), "labels": labels}

    def parts():
        config = make().config
        config.num_labels, config.pad_token_id = num_labels, 0
        config.problem_type = None if kind == "tokens" else kind
        config.classifier_dropout = 0.0
        torch.manual_seed(0)
        model = family_of(config).classes[head](config)
        return {"model": model, "train_dataset": rows, "data_collator": collate}

    assert_same_steps(tmp_path, Trainer, TrainingArguments, parts)


@pytest.mark.parametrize("halting", ["binary", "q_learning"])
def test_puzzles_with_the_stock_trainer(halting, tmp_path):
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(1, 6, (4 * NUM_STEPS, 9), generator=generator)
    labels = cells.masked_fill(torch.rand(cells.shape, generator=generator) < 0.4, -100)
    rows = [{"input_ids": row.tolist(), "labels": label.tolist()} for row, label in zip(cells, labels)]
    preset = "hrm" if halting == "q_learning" else "trm"

    def parts():
        return {"model": tiny_puzzle_model(preset), "train_dataset": rows, "data_collator": None}

    assert_same_steps(tmp_path, Trainer, TrainingArguments, parts)
