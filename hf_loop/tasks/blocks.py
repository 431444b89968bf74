"""What the tasks that are laid out in blocks of tokens share: lengths, the split of rows, and datasets made fast."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .counts import whole_number


# one row in so many is a test row
TEST_SHARE = 8
MANY_CODES = 1_000_000


def row_lengths(
    num_rows: int, min_blocks: int, max_blocks: int, group_size: int, curriculum: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the number of blocks of each training row.

    Rows come in groups of one length, so that a batch of `group_size` rows, or of a divisor of it, needs no padding.
    A group's length is uniform between `min_blocks` and a bound that grows evenly from `min_blocks` to `max_blocks`
    over the first `curriculum` of the rows.

    Returns:
        `np.ndarray`: `[num_rows]`, integers.
    """
    bounds = growing_bounds(-(-num_rows // group_size), min_blocks, max_blocks, curriculum)
    return np.repeat(rng.integers(min_blocks, bounds + 1), group_size)[:num_rows]


def growing_bounds(num_groups: int, low: int, high: int, curriculum: float) -> np.ndarray:
    """A bound for each group of rows, which grows evenly from `low` to `high` over the first `curriculum` of them.

    Returns:
        `np.ndarray`: `[num_groups]`, integers.
    """
    progress = np.arange(num_groups) / num_groups
    share = np.minimum(progress / curriculum, 1.0) if curriculum > 0 else np.ones(num_groups)
    return low + ((high - low) * share).astype(np.int64)


def is_test(codes: np.ndarray) -> np.ndarray:
    """Tell which codes belong to the test split: a function of the code alone, the same for every seed.

    Args:
        codes (`np.ndarray`): non-negative integers, whatever identifies a row.

    Returns:
        `np.ndarray`: booleans; about one in `TEST_SHARE` is true.
    """
    # the finalizer of splitmix64: neighbouring codes do not land together
    mixed = codes.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(TEST_SHARE) == 0


def draw_codes(split: str, num_rows: int, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the numbers that identify the rows of a split, from `low` up to, not including, `high`.

    Those for testing are distinct, and never drawn for another split.

    Args:
        split (`str`): `"train"` or `"test"`.
        num_rows (`int`): how many to draw.
        low (`int`): the lowest number.
        high (`int`): the end of the range.
        rng (`np.random.Generator`): source of the draw.

    Raises:
        ValueError: if there are not so many numbers for the split.
    """
    wants_test = split == "test"
    # of few numbers all that can be had are counted; among many there are enough for sure
    if high - low <= max(MANY_CODES, 4 * TEST_SHARE * num_rows):
        pool = low + np.flatnonzero(is_test(np.arange(low, high)) == wants_test)
        if len(pool) < (num_rows if wants_test else 1):
            raise ValueError(f"num_{split} must be at most {len(pool)}, all the keys there are for it, got {num_rows}")
        return rng.choice(pool, num_rows, replace=not wants_test)
    codes = np.empty(0, dtype=np.int64)
    while len(codes) < num_rows:
        drawn = rng.integers(low, high, size=2 * num_rows * (TEST_SHARE if wants_test else 1))
        codes = np.concatenate([codes, drawn[is_test(drawn) == wants_test]])
        if wants_test:
            codes = codes[np.sort(np.unique(codes, return_index=True)[1])]
    return codes[:num_rows]


def draw_split(split: str, num_rows: int, draw: Callable[[int], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Draw rows of one length until enough of them belong to a split. The tokens of a row decide its split.

    Args:
        split (`str`): `"train"` or `"test"`.
        num_rows (`int`): how many to draw.
        draw (`Callable`): draws so many rows: columns `[rows, ...]`, `input_ids` `[rows, tokens]` among them.
    """
    parts: list[dict[str, np.ndarray]] = []
    missing = num_rows
    while missing > 0:
        # one row in eight is for testing, and seven are for training
        rows = draw(num_rows * 2 if split == "train" else num_rows * 8)
        # a row as one number, by a polynomial in its tokens that wraps around
        powers = np.cumprod(np.full(rows["input_ids"].shape[1], 0x9E3779B97F4A7C15, dtype=np.uint64))
        chosen = is_test((rows["input_ids"].astype(np.uint64) * powers).sum(1, dtype=np.uint64)) == (split == "test")
        parts.append({name: part[chosen][:missing] for name, part in rows.items()})
        missing -= len(parts[-1]["input_ids"])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stretches(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of equal numbers begin and end: rows of one length are made together."""
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return list(zip(edges[:-1], edges[1:]))


def ragged_dataset(columns: Mapping[str, list[np.ndarray]]) -> Dataset:
    """Make a dataset of rows of several lengths, without a Python object per token.

    Args:
        columns (`Mapping[str, list[np.ndarray]]`): for each column its parts, `[rows, length]` each; equal numbers of
            rows in all columns.
    """
    arrays = {name: pa.concat_arrays([_list_array(part) for part in parts]) for name, parts in columns.items()}
    return Dataset(pa.table(arrays))


def check_integers(values: Mapping[str, object], low: int) -> None:
    """Refuse values that are no integers or lie below `low`.

    Args:
        values (`Mapping[str, object]`): the values by the names of their arguments.
        low (`int`): the lowest value allowed.

    Raises:
        ValueError: names the argument and its value.
    """
    for name, value in values.items():
        number = whole_number(value)
        if number is None or number < low:
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")


def check_share(name: str, value: float) -> None:
    """Refuse a value outside 0 to 1.

    Raises:
        ValueError: names the argument and its value.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")


def _list_array(part: np.ndarray) -> pa.ListArray:
    num_rows, length = part.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * length
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(part).reshape(-1)))
