"""From the data section of a recipe to tokenizer and datasets."""

import glob
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..tasks import coin_flips, shell_game
from .recipe import DataSection, check_keys


TASKS = {"coin_flips": coin_flips, "shell_game": shell_game}


@dataclass
class TrainingData:
    """What a training run reads.

    Attributes:
        tokenizer: The tokenizer, saved beside the model.
        train_dataset: Rows with `input_ids` and `labels`.
        eval_dataset: The same, held back; `None` without evaluation.
        collator: Turns rows into a batch; `None` for rows of equal length.
    """

    tokenizer: PreTrainedTokenizerBase
    train_dataset: Dataset
    eval_dataset: Dataset | None
    collator: Callable[[list[Any]], dict[str, Any]] | None


def load_training_data(data: DataSection, default_tokenizer: str | None, seed: int) -> TrainingData:
    """Loads what `data` describes.

    Args:
        data: The section `data` of a recipe.
        default_tokenizer: Folder or Hub name of the tokenizer where `data.tokenizer` is `None`.
        seed: Seed of generated rows.

    Raises:
        ValueError: No file matches, no tokenizer is known, the text column is missing, or the text is too short for
            one block beside the rows held back for evaluation.
    """
    if data.task is not None:
        return _task_data(data, seed)
    name = data.tokenizer or default_tokenizer
    if name is None:
        raise ValueError("data.tokenizer must be given when the model is not pretrained ('bytes' needs no files)")
    tokenizer = (
        byte_tokenizer() if name == "bytes" else cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name))
    )
    blocks = pack(_load_text(data), tokenizer, data.text_column, data.block_size)
    num_train_rows = len(blocks) - data.num_eval_rows
    if num_train_rows < 1:
        raise ValueError(
            f"data.block_size={data.block_size} leaves {len(blocks)} rows of text, "
            f"too few beside data.num_eval_rows={data.num_eval_rows}"
        )
    eval_dataset = blocks.select(range(num_train_rows, len(blocks))) if data.num_eval_rows else None
    return TrainingData(tokenizer, blocks.select(range(num_train_rows)), eval_dataset, collator=None)


def pack(texts: Dataset, tokenizer: PreTrainedTokenizerBase, text_column: str, block_size: int) -> Dataset:
    """Joins texts, each closed by the end-of-text token, and cuts them into blocks of `block_size` tokens.

    Texts are joined within a batch of 1000; the incomplete block at a batch's end is dropped.

    Returns:
        A dataset with `input_ids` and `labels` of `block_size` tokens a row.

    Raises:
        ValueError: `text_column` is missing, or the tokenizer has no end-of-text token.
    """
    if text_column not in texts.column_names:
        raise ValueError(f"data.text_column must be one of {', '.join(texts.column_names)}, got {text_column!r}")
    end_of_text = tokenizer.eos_token_id
    if end_of_text is None:
        raise ValueError("the tokenizer must have an end-of-text token (eos_token) to join texts with")

    def pack_batch(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch[text_column], add_special_tokens=False, verbose=False)["input_ids"]
        tokens = [token for text in encoded for token in (*text, end_of_text)]
        blocks = [tokens[i : i + block_size] for i in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    return texts.map(pack_batch, batched=True, remove_columns=texts.column_names, desc="Packing text")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte of UTF-8, and an end-of-text token; it reads any text and needs no files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _load_text(data: DataSection) -> Dataset:
    if data.dataset is not None:
        return load_dataset(data.dataset, data.dataset_config, split=data.split)
    files = []
    for pattern in data.files or []:
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise ValueError(f"data.files: no file matches {pattern!r}")
        files += matches
    return load_dataset("text", data_files=files, split="train", sample_by="document")


def _task_data(data: DataSection, seed: int) -> TrainingData:
    if data.task not in TASKS:
        raise ValueError(f"data.task must be one of {', '.join(TASKS)}, got {data.task!r}")
    make_rows = TASKS[data.task]
    # the first two parameters are the numbers of rows, and the run's seed is the task's
    options = [name for name in list(inspect.signature(make_rows).parameters)[2:] if name != "seed"]
    check_keys("data.task_options", data.task_options, options)
    splits, tokenizer = make_rows(data.num_train_rows, max(1, data.num_eval_rows), seed=seed, **data.task_options)
    return TrainingData(
        tokenizer,
        splits["train"],
        splits["test"] if data.num_eval_rows else None,
        collator=DataCollatorForSeq2Seq(tokenizer),
    )
