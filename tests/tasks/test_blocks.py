"""Lengths, splits and datasets of the tasks that are laid out in blocks."""

import numpy as np
import pytest

from hf_loop.tasks.blocks import draw_codes, is_test, ragged_dataset, row_lengths, stretches


def test_rows_come_in_groups_of_one_length():
    lengths = row_lengths(70, 2, 9, group_size=16, curriculum=0.0, rng=np.random.default_rng(0))
    assert len(lengths) == 70
    assert all(len(set(lengths[start : start + 16])) == 1 for start in range(0, 70, 16))
    assert len(set(lengths)) > 1


def test_lengths_grow_over_the_curriculum_and_stay_mixed():
    lengths = row_lengths(4000, 2, 9, group_size=1, curriculum=0.5, rng=np.random.default_rng(0))
    bounds = 2 + (7 * np.arange(4000) / 2000).astype(int)
    assert (lengths[:2000] <= bounds[:2000]).all()
    # the bound is reached in every stretch of it, and so is the shortest length
    for bound in range(2, 9):
        assert set(lengths[:2000][bounds[:2000] == bound]) == set(range(2, bound + 1))
    counts = np.bincount(lengths[2000:])[2:]
    assert counts.min() > 2000 / 8 * 0.7 and len(counts) == 8


def test_the_share_of_test_codes():
    assert 0.12 < is_test(np.arange(100_000)).mean() < 0.13
    # neighbours that differ in a low digit fall on both sides
    assert 0.11 < is_test(np.arange(0, 6_400_000, 64)).mean() < 0.14


@pytest.mark.parametrize("high", [500, 10**15])
def test_codes_of_the_splits_are_disjoint(high):
    train, test = (draw_codes(split, 40, 100, high, np.random.default_rng(3)) for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(set(test)) == len(test) == 40
    for codes in (train, test):
        assert codes.min() >= 100 and codes.max() < high


def test_too_few_codes_are_counted():
    available = int(is_test(np.arange(200)).sum())
    assert len(draw_codes("test", available, 0, 200, np.random.default_rng(0))) == available
    with pytest.raises(ValueError, match=f"num_test must be at most {available}, .*got {available + 1}"):
        draw_codes("test", available + 1, 0, 200, np.random.default_rng(0))
    # training keys repeat
    assert len(draw_codes("train", 5000, 0, 200, np.random.default_rng(0))) == 5000


def test_stretches():
    assert stretches(np.array([2, 2, 5, 2])) == [(0, 2), (2, 3), (3, 4)]


def test_ragged_datasets_hold_what_they_are_given():
    parts = [np.arange(6, dtype=np.int32).reshape(2, 3), np.array([[7, 8]], dtype=np.int32)]
    rows = ragged_dataset({"a": parts, "b": [part * 2 for part in parts]})
    assert rows["a"][:] == [[0, 1, 2], [3, 4, 5], [7, 8]]
    assert rows["b"][:] == [[0, 2, 4], [6, 8, 10], [14, 16]]
