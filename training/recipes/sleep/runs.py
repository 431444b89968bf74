"""What the experiments of this folder share: runs that are made once, training, and the answers of a model."""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from hf_loop.tasks.tokenizer import IGNORE_INDEX


# tokens of a batch in evaluation
EVAL_TOKENS = 2**14


def finish_runs(path: Path, runs: Iterable[dict[str, Any]], make: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make every run that has no line in `path` yet, and append its line.

    Args:
        path (`Path`): the file of finished runs, one JSON object a line.
        runs (`Iterable[dict[str, Any]]`): the options of each run.
        make (`Callable`): makes a run of these options and returns its results.
    """
    for run in runs:
        if any(run.items() <= result.items() for result in read_results(path)):
            continue
        result = {**run, **make(run)}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def small_llama(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> LlamaConfig:
    """Configure a Llama of width 64 for the tokenizer's vocabulary."""
    fields: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, **sizes}
    return LlamaConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False, max_position_embeddings=1024, **fields,
    )  # fmt: skip


def train(
    model: PreTrainedModel, rows: Dataset, folder: Path, seed: int, steps: int, batch_size: int, learning_rate: float
) -> dict[str, Any]:
    """Train on `steps` batches of `rows` in their order with the stock `Trainer`.

    The rate is constant after 50 steps of warm-up and falls to zero over the last third.

    Returns:
        `dict`: `seconds` of processor time, and `losses`, the mean loss of every 50 steps.
    """
    arguments = TrainingArguments(
        output_dir=str(folder / "unused"), seed=seed, max_steps=steps, learning_rate=learning_rate, weight_decay=0.0,
        warmup_steps=min(50, steps // 4), lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps // 3, "decay_type": "linear"}, max_grad_norm=1.0,
        per_device_train_batch_size=batch_size, train_sampling_strategy="sequential", use_cpu=True,
        save_strategy="no", logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    # the loss is the only column that training needs beside the tokens
    trainer = Trainer(model=model, args=arguments, train_dataset=rows.select_columns(["input_ids", "labels"]))
    start = time.process_time()
    trainer.train()
    losses = [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": round(time.process_time() - start, 1), "losses": losses}


@torch.no_grad()
def answers(model: PreTrainedModel, rows: Dataset) -> np.ndarray:
    """Return the most probable token at every label of rows of one length, `[rows, labels]`."""
    model.eval()
    input_ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    predicted = []
    size = max(1, EVAL_TOKENS // input_ids.shape[1])
    for ids, row_labels in zip(input_ids.split(size), labels.split(size)):
        best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        predicted.append(best[row_labels[:, 1:] != IGNORE_INDEX].view(len(ids), -1))
    return torch.cat(predicted).numpy()


def spread(values: list[float]) -> str:
    """Format the mean of some shares, with the lowest and the highest where they differ."""
    mean = sum(values) / len(values)
    return f"{mean:.3f}" if min(values) == max(values) else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"
