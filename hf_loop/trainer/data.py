"""From the data section of a recipe to tokenizer and datasets."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .. import tasks
from ..field_values import check_names
from ..files import fault_named
from ..tasks.thoughts import with_thoughts
from ..tokenizing import load_tokenizer
from .answer_rows import SEGMENT_MARK, WeightedCollator, repeat_segments
from .packing import pack, stream_blocks
from .sections import TEXT_TASKS, DataSection
from .text_columns import choose_reader
from .text_sources import load_rows


# the generators of `hf_loop.tasks`, by name
TASKS: dict[str, Callable[..., Any]] = {
    name: generator
    for name, generator in ((name, getattr(tasks, name)) for name in tasks.__all__)
    if "num_train" in inspect.signature(generator).parameters
}


@dataclass
class TrainingData:
    """What a training run reads.

    Attributes:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer, saved beside the model.
        train_dataset (`Dataset` or `IterableDataset`): rows with `input_ids` and `labels`; endless when streaming.
        eval_dataset (`Dataset`, *optional*): the same, held back; `None` without evaluation.
        collator (`Callable`, *optional*): turns rows into a batch; `None` for rows of equal length.
    """

    tokenizer: PreTrainedTokenizerBase
    train_dataset: Dataset | IterableDataset
    eval_dataset: Dataset | None
    collator: Callable[[list[Any]], dict[str, Any]] | None


def load_training_data(data: DataSection, default_tokenizer: str | None, seed: int) -> TrainingData:
    """Load what `data` describes.

    Args:
        data (`DataSection`): the section `data` of a recipe.
        default_tokenizer (`str`, *optional*): folder or Hub name of the tokenizer where `data.tokenizer` is `None`.
        seed (`int`): seed of generated rows.

    Raises:
        ValueError: if no file matches, or one is empty, not readable or of another kind than the rest; no tokenizer is
            known; a column is missing, or a chat template; or the text is too short for one block beside the rows
            held back for evaluation.
    """
    if data.task is not None:
        return _task_data(data, default_tokenizer, seed)
    tokenizer = _load_tokenizer(data, default_tokenizer)
    texts = load_rows(data)
    first = next(iter(texts), None)
    if first is None:
        raise ValueError("data: there are no rows to read")
    read_row = choose_reader(first, data.text_column, data.answer_column, tokenizer)
    if isinstance(texts, IterableDataset):
        return _streamed(data, stream_blocks(texts, read_row, tokenizer, data.block_size), tokenizer)
    blocks = pack(texts, read_row, tokenizer, data.block_size)
    num_train_rows = len(blocks) - data.num_eval_rows
    if num_train_rows < 1:
        raise ValueError(
            f"data.block_size={data.block_size} leaves {len(blocks)} rows of text, "
            f"too few beside data.num_eval_rows={data.num_eval_rows}"
        )
    eval_dataset = blocks.select(range(num_train_rows, len(blocks))) if data.num_eval_rows else None
    train_dataset = blocks.select(range(num_train_rows))
    if not data.repeated_segment:
        return TrainingData(tokenizer, train_dataset, eval_dataset, collator=None)
    mark = tokenizer(SEGMENT_MARK, add_special_tokens=False)["input_ids"]
    train_dataset = repeat_segments(train_dataset, mark, data.repeated_segment, data.repeated_segment_weight, seed)
    return TrainingData(tokenizer, train_dataset, eval_dataset, WeightedCollator(tokenizer))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per byte of UTF-8 and an end-of-text token; it reads any text, without files."""
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


def _streamed(data: DataSection, blocks: IterableDataset, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    head = list(blocks.take(data.num_eval_rows + 1))
    if len(head) <= data.num_eval_rows:
        raise ValueError(
            f"data.block_size={data.block_size} leaves {len(head)} rows of text, "
            f"too few beside data.num_eval_rows={data.num_eval_rows}"
        )
    # endless, so that the place to resume from is a number of rows whether or not the text has begun anew since;
    # the rows held back are left out of every pass
    train_dataset = blocks.skip(data.num_eval_rows).repeat(None)
    eval_dataset = Dataset.from_list(head[:-1]) if data.num_eval_rows else None
    return TrainingData(tokenizer, train_dataset, eval_dataset, collator=None)


def _load_tokenizer(data: DataSection, default_tokenizer: str | None) -> PreTrainedTokenizerBase:
    name = data.tokenizer or default_tokenizer
    if name is None:
        raise ValueError("data.tokenizer must be given when the model is not pretrained ('bytes' needs no files)")
    if name == "bytes":
        return byte_tokenizer()
    return load_tokenizer(name)


def _task_data(data: DataSection, default_tokenizer: str | None, seed: int) -> TrainingData:
    tokenizer = _load_tokenizer(data, default_tokenizer) if data.task in TEXT_TASKS else None
    num_rows = data.num_train_rows, max(1, data.num_eval_rows)
    splits, tokenizer = make_task_rows(str(data.task), *num_rows, seed, data.task_options, tokenizer)
    if data.thoughts:
        with fault_named("data.thoughts"):
            for split in ("train", "test"):
                splits[split] = with_thoughts(splits[split], tokenizer)
    return TrainingData(
        tokenizer,
        splits["train"],
        splits["test"] if data.num_eval_rows else None,
        collator=DataCollatorForSeq2Seq(tokenizer),
    )


def make_task_rows(
    task: str,
    num_train: int,
    num_test: int,
    seed: int,
    task_options: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    """Make the rows of a task.

    Args:
        task (`str`): its name.
        num_train (`int`): rows for training.
        num_test (`int`): rows for testing.
        seed (`int`): seed of the rows.
        task_options (`dict`): options of the task.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the tokenizer of a task of text.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerBase]`: the splits, and the tokenizer.

    Raises:
        ValueError: if there is no such task or option, or an option does not fit.
    """
    if task not in TASKS:
        raise ValueError(f"data.task must be one of {', '.join(TASKS)}, got {task!r}")
    make_rows = TASKS[task]
    # the first two parameters are the numbers of rows, and the run's seed is the task's
    options = [name for name in list(inspect.signature(make_rows).parameters)[2:] if name not in ("seed", "tokenizer")]
    check_names(task_options, options, "data.task_options")
    with fault_named("data.task_options"):
        if tokenizer is not None:
            return make_rows(num_train, num_test, tokenizer, seed=seed, **task_options), tokenizer
        return make_rows(num_train, num_test, seed=seed, **task_options)
