"""The tiny model, data and arguments that the trainer's tests share."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig

from hf_loop import LoopedConfig, LoopedForCausalLM, LoopTrainingArguments


VOCAB_SIZE = 32


def tiny_model(seed: int = 0, **config: Any) -> LoopedForCausalLM:
    """A looped Llama of width 32 with two layers."""
    torch.manual_seed(seed)
    backbone_config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LoopedForCausalLM(LoopedConfig(backbone_config=backbone_config, **{"num_loops": 3, **config}))


def tiny_dataset(num_rows: int = 48, length: int = 12, seed: int = 0) -> Dataset:
    """Rows that count up from a random token; a third of the labels is ignored, differently many in every row."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, VOCAB_SIZE, (num_rows, 1), generator=generator)
    input_ids = 3 + (start + torch.arange(length)) % (VOCAB_SIZE - 3)
    ignored = torch.rand(num_rows, length, generator=generator) < 1 / 3
    return Dataset.from_dict(
        {"input_ids": input_ids.tolist(), "labels": input_ids.masked_fill(ignored, -100).tolist()}
    ).with_format("torch")


def tiny_arguments(output_dir: Path, **fields: Any) -> LoopTrainingArguments:
    """Six steps on the CPU, every loss logged."""
    defaults: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return LoopTrainingArguments(output_dir=str(output_dir), **{**defaults, **fields})


def logged(trainer: Any, name: str) -> list[float]:
    """Every logged value of `name`, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
