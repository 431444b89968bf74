"""Packs texts into rows of one length: tokenized, joined, and cut."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from ..models.puzzle_loss import IGNORE_INDEX


# rows that are tokenized together
ROWS_PER_BATCH = 32
BLOCK_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})

# a part of a row and whether it is learned: its text, or `None` for the end-of-text token
Segment = tuple[str | None, bool]
SegmentReader = Callable[[Mapping[str, Any]], Iterable[Segment]]


def pack(texts: Dataset, read_row: SegmentReader, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Dataset:
    """Join the segments of all rows, and cut them into blocks of `block_size` tokens.

    What is left at the end, less than a block, is dropped, and so are blocks in which nothing is learned.

    Args:
        texts (`Dataset`): the rows.
        read_row (`Callable`): from a row to its segments (see `text_columns.py`).
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        block_size (`int`): tokens of a block.

    Returns:
        `Dataset`: `input_ids` and `labels` of `block_size` tokens a row, `-100` where nothing is learned.

    Raises:
        ValueError: if a row is not of the form that `read_row` reads, or the end-of-text token is missing.
    """
    return texts.map(
        block_cutter(read_row, tokenizer, block_size),
        batched=True,
        batch_size=ROWS_PER_BATCH,
        remove_columns=texts.column_names,
        features=BLOCK_FEATURES,
        desc="Packing text",
    )


def stream_blocks(
    texts: IterableDataset, read_row: SegmentReader, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> IterableDataset:
    """Make the blocks of [`pack`] while they are read. Every pass over them starts from the first text.

    Raises:
        ValueError: as [`pack`], for the rows when they are read.
    """
    options = {"texts": texts, "read_row": read_row, "tokenizer": tokenizer, "block_size": block_size}
    return IterableDataset.from_generator(_generate_blocks, features=BLOCK_FEATURES, gen_kwargs=options)


def _generate_blocks(texts: IterableDataset, **options: Any) -> Iterator[dict[str, list[int]]]:
    cut = block_cutter(**options)
    for batch in texts.iter(batch_size=ROWS_PER_BATCH):
        blocks = cut(batch)
        for input_ids, labels in zip(blocks["input_ids"], blocks["labels"]):
            yield {"input_ids": input_ids, "labels": labels}


def block_cutter(
    read_row: SegmentReader, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> Callable[[Any], dict[str, list[list[int]]]]:
    """Make a function from a batch of rows to blocks, which keeps an incomplete block for the batch that follows.

    Raises:
        ValueError: as [`pack`].
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer must have an end-of-text token (eos_token) to join texts with")
    rest: dict[str, list[int]] = {"input_ids": [], "labels": []}

    def cut(batch: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        num_rows = len(next(iter(batch.values())))
        rows = ({name: column[i] for name, column in batch.items()} for i in range(num_rows))
        segments = [segment for row in rows for segment in read_row(row) if segment[0] != ""]
        texts = [text for text, _ in segments if text is not None]
        encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
        tokens, labels = rest["input_ids"], rest["labels"]
        for text, is_learned in segments:
            ids = [tokenizer.eos_token_id] if text is None else next(encoded)
            tokens += ids
            labels += ids if is_learned else [IGNORE_INDEX] * len(ids)
        num_whole = len(tokens) // block_size * block_size
        blocks = [(tokens[i : i + block_size], labels[i : i + block_size]) for i in range(0, num_whole, block_size)]
        rest.update(input_ids=tokens[num_whole:], labels=labels[num_whole:])
        # the first token of a row is never predicted. Over a row without labels, the mean loss would be 0 / 0
        learned = [block for block in blocks if any(label != IGNORE_INDEX for label in block[1][1:])]
        return {"input_ids": [block[0] for block in learned], "labels": [block[1] for block in learned]}

    return cut
