"""The tiny puzzle model, data and arguments that the tests of deep supervision share."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_loop import DeepSupervisionArguments, DeepSupervisionTrainer, HierarchicalForPuzzle, HierarchicalPuzzleConfig


VOCAB_SIZE, CELLS = 6, 5


def puzzle_model(preset: str = "trm", seed: int = 3, **fields: Any) -> HierarchicalForPuzzle:
    """A model of width 16 that halts at most after three segments, some rows of it earlier."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_loops": 2,
        "low_cycles": 2,
        "num_puzzle_tokens": 1,
        "max_segments": 3,
    }
    model = HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset(preset, **{**sizes, **fields}))
    if hasattr(model, "halt_head"):
        torch.nn.init.normal_(model.halt_head.weight, std=1.0)
        torch.nn.init.zeros_(model.halt_head.bias)
    return model


def puzzle_rows(num_rows: int = 96, seed: int = 0) -> Dataset:
    """Random cells; a cell's answer is the sum of all cells, modulo the vocabulary; some rows leave a cell out."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(1, VOCAB_SIZE, (num_rows, CELLS), generator=generator)
    labels = (cells + cells.sum(1, keepdim=True)) % VOCAB_SIZE
    labels[::3, 0] = -100
    return Dataset.from_dict({"input_ids": cells.tolist(), "labels": labels.tolist(), "blanks": [0] * num_rows})


def puzzle_trainer(folder: Path, model: Any = None, **arguments: Any) -> DeepSupervisionTrainer:
    """Nine steps of eight rows, in order, every loss logged."""
    fields = {"per_device_train_batch_size": 8, "max_steps": 9, "learning_rate": 1e-2, "logging_steps": 1, **arguments}
    fields.setdefault("save_strategy", "no")
    args = DeepSupervisionArguments(
        output_dir=str(folder),
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
        **fields,
    )
    rows = puzzle_rows()
    model = puzzle_model() if model is None else model
    return DeepSupervisionTrainer(model, args, train_dataset=rows, eval_dataset=rows.select(range(10)))


def train(folder: Path, model: Any = None, resume: Any = None, **arguments: Any) -> DeepSupervisionTrainer:
    """The trainer of `puzzle_trainer`, after training."""
    trainer = puzzle_trainer(folder, model, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer: Any, name: str = "loss") -> list[float]:
    """Every logged value of `name`, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
