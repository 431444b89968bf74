"""From the data section of a recipe to tokenizer and datasets."""

import glob
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..field_values import check_names
from ..gguf_files import locate
from ..tasks import (
    associative_recall,
    coin_flips,
    delayed_shell_game,
    maze,
    passkey,
    passkey_text,
    puzzle_csv,
    rule_110,
    shell_game,
    successor,
    sudoku,
)
from .answer_rows import SEGMENT_MARK, WeightedCollator, pack_answers, repeat_segments
from .sections import TEXT_TASKS, DataSection


TASKS: dict[str, Callable[..., Any]] = {
    "associative_recall": associative_recall,
    "coin_flips": coin_flips,
    "delayed_shell_game": delayed_shell_game,
    "maze": maze,
    "passkey": passkey,
    "passkey_text": passkey_text,
    "puzzle_csv": puzzle_csv,
    "rule_110": rule_110,
    "shell_game": shell_game,
    "successor": successor,
    "sudoku": sudoku,
}
# by suffix, the loader of `datasets` that reads the file; a name without one is text
FILE_KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", "": "text"}
# of a stream, texts that are tokenized together
TEXTS_PER_BATCH = 64


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
            known; the text column is missing; or the text is too short for one block beside the rows held back for
            evaluation.
    """
    if data.task is not None:
        return _task_data(data, default_tokenizer, seed)
    tokenizer = _load_tokenizer(data, default_tokenizer)
    texts = _load_text(data)
    check_text_column(texts, data.text_column)
    if isinstance(texts, IterableDataset):
        return _streamed(data, texts, tokenizer)
    if data.answer_column is None:
        blocks = pack(texts, tokenizer, data.text_column, data.block_size)
    else:
        check_text_column(texts, data.answer_column, "answer_column")
        blocks = pack_answers(texts, tokenizer, data.text_column, data.answer_column, data.block_size)
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


def pack(texts: Dataset, tokenizer: PreTrainedTokenizerBase, text_column: str, block_size: int) -> Dataset:
    """Join texts, each closed by the end-of-text token, and cut them into blocks of `block_size` tokens.

    What is left at the end, less than a block, is dropped.

    Returns:
        `Dataset`: `input_ids` and `labels` of `block_size` tokens a row.

    Raises:
        ValueError: if a row has no text, or the tokenizer has no end-of-text token.
    """
    cut = block_cutter(tokenizer, text_column, block_size)
    return texts.map(cut, batched=True, remove_columns=texts.column_names, desc="Packing text")


def stream_blocks(
    texts: IterableDataset, tokenizer: PreTrainedTokenizerBase, text_column: str, block_size: int
) -> IterableDataset:
    """Make the blocks of [`pack`] while they are read. Every pass over them starts from the first text.

    Raises:
        ValueError: as [`pack`], for the rows when they are read.
    """
    row = List(Value("int32"))
    return IterableDataset.from_generator(
        _generate_blocks,
        features=Features({"input_ids": row, "labels": row}),
        gen_kwargs={"texts": texts, "tokenizer": tokenizer, "text_column": text_column, "block_size": block_size},
    )


def _generate_blocks(texts: IterableDataset, **options: Any) -> Iterator[dict[str, list[int]]]:
    cut = block_cutter(**options)
    for batch in texts.iter(batch_size=TEXTS_PER_BATCH):
        for block in cut(cast(dict[str, list[str]], batch))["input_ids"]:
            yield {"input_ids": block, "labels": block}


def block_cutter(
    tokenizer: PreTrainedTokenizerBase, text_column: str, block_size: int
) -> Callable[[dict[str, list[str]]], dict[str, list[list[int]]]]:
    """Make a function from a batch of texts to blocks, which keeps an incomplete block for the batch that follows.

    Raises:
        ValueError: if the tokenizer has no end-of-text token; on a call, a row has no text.
    """
    end_of_text = tokenizer.eos_token_id
    if end_of_text is None:
        raise ValueError("the tokenizer must have an end-of-text token (eos_token) to join texts with")
    rest: list[int] = []

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        for text in batch[text_column]:
            if not isinstance(text, str):
                raise ValueError(f"data.text_column={text_column!r} must hold text in every row, got {text!r}")
        encoded = tokenizer(batch[text_column], add_special_tokens=False, verbose=False)["input_ids"]
        tokens = rest + [token for text in encoded for token in (*text, end_of_text)]
        num_whole = len(tokens) // block_size * block_size
        rest[:] = tokens[num_whole:]
        blocks = [tokens[start : start + block_size] for start in range(0, num_whole, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    return cut


def check_text_column(texts: Dataset | IterableDataset, text_column: str, key: str = "text_column") -> None:
    """Refuse a dataset without texts in `text_column`, which is the value of `data.<key>`.

    Raises:
        ValueError: if there are no rows, or the column is missing; the message names those that are there.
    """
    first = next(iter(texts), None)
    if first is None:
        raise ValueError("data: there are no rows to read")
    if text_column not in first:
        raise ValueError(f"data.{key} must be one of {', '.join(first)}, got {text_column!r}")


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


def _streamed(data: DataSection, texts: IterableDataset, tokenizer: PreTrainedTokenizerBase) -> TrainingData:
    blocks = stream_blocks(texts, tokenizer, data.text_column, data.block_size)
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


def _load_text(data: DataSection) -> Dataset | IterableDataset:
    if data.dataset is not None:
        return load_dataset(data.dataset, data.dataset_config, split=data.split, streaming=data.streaming)
    files = find_files(data.files or [])
    builders = {FILE_KINDS[path.suffix.lower()]: path for path in files}
    if len(builders) > 1:
        raise ValueError(f"data.files must be of one kind, got {' and '.join(map(str, builders.values()))}")
    (builder,) = builders
    options: dict[str, Any] = {"sample_by": "document"} if builder == "text" else {}
    paths = [str(path) for path in files]
    try:
        return load_dataset(builder, data_files=paths, split="train", streaming=data.streaming, **options)
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"data.files: {', '.join(paths[:3])}: not readable: {error.__cause__ or error}") from error


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Find the files that `data.files` names.

    Args:
        patterns (`Sequence[str]`): files, patterns, or folders; a folder stands for all files in it that end as one of
            the kinds does.

    Raises:
        ValueError: if nothing matches, a file is of an unknown kind, or it is empty.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches: list[Path] = []
        for match in map(Path, sorted(glob.glob(pattern, recursive=True))):
            inside = sorted(path for path in match.rglob("*.*") if path.suffix.lower() in FILE_KINDS)
            matches += inside if match.is_dir() else [match]
        if not matches:
            raise ValueError(f"data.files: no file matches {pattern!r}")
        files += matches
    for path in files:
        if path.suffix.lower() not in FILE_KINDS:
            raise ValueError(f"data.files must end in {', '.join(filter(None, FILE_KINDS))}, got {path}")
        if path.stat().st_size == 0:
            raise ValueError(f"data.files: {path} is empty")
    return files


def _load_tokenizer(data: DataSection, default_tokenizer: str | None) -> PreTrainedTokenizerBase:
    name = data.tokenizer or default_tokenizer
    if name is None:
        raise ValueError("data.tokenizer must be given when the model is not pretrained ('bytes' needs no files)")
    if name == "bytes":
        return byte_tokenizer()
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(**locate(name)))


def _task_data(data: DataSection, default_tokenizer: str | None, seed: int) -> TrainingData:
    if data.task not in TASKS:
        raise ValueError(f"data.task must be one of {', '.join(TASKS)}, got {data.task!r}")
    make_rows = TASKS[data.task]
    # the first two parameters are the numbers of rows, and the run's seed is the task's
    options = [name for name in list(inspect.signature(make_rows).parameters)[2:] if name not in ("seed", "tokenizer")]
    check_names(data.task_options, options, "data.task_options")
    num_rows = data.num_train_rows, max(1, data.num_eval_rows)
    if data.task in TEXT_TASKS:
        tokenizer = _load_tokenizer(data, default_tokenizer)
        splits = make_rows(*num_rows, tokenizer, seed=seed, **data.task_options)
    else:
        splits, tokenizer = make_rows(*num_rows, seed=seed, **data.task_options)
    return TrainingData(
        tokenizer,
        splits["train"],
        splits["test"] if data.num_eval_rows else None,
        collator=DataCollatorForSeq2Seq(tokenizer),
    )
