"""Associative recall, played again with a dictionary."""

import numpy as np
import pytest

from hf_loop.tasks import associative_recall, recall_accuracy


def play(words, block_size):
    """What the last block should answer, from the words of a row: answers, distances and whether overwritten."""
    blocks = [words[start : start + block_size] for start in range(0, len(words), block_size)]
    memory, writes = {}, {}
    for index, block in enumerate(blocks[:-1]):
        pairs = [word for word in block if word[0] in "kv"]
        keys, values = pairs[::2], pairs[1::2]
        assert len(set(keys)) == len(keys)
        for key, value in zip(keys, values, strict=True):
            assert memory.get(key) != value  # an update changes something
            memory[key] = value
            writes.setdefault(key, []).append(index)
    questions = blocks[-1][blocks[-1].index("?") + 1 :]
    keys, values = questions[::2], questions[1::2]
    assert len(set(keys)) == len(keys)
    assert values == [memory[key] for key in keys]
    last = len(blocks) - 1
    return values, [last - writes[key][-1] for key in keys], [len(writes[key]) > 1 for key in keys], blocks


@pytest.mark.parametrize("update_share", [0.0, 0.5, 1.0])
def test_answers_agree_with_an_independent_memory(update_share):
    splits, tokenizer = associative_recall(60, 20, 2, 5, update_share=update_share, block_size=16, seed=1)
    some_updated = False
    for row in [*splits["train"], *splits["test"]]:
        words = tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert words[0] == "<bos>" and len(words) % 16 == 0
        values, distances, updated, blocks = play(words, 16)
        assert (row["distances"], row["updated"]) == (distances, updated)
        assert tokenizer.convert_ids_to_tokens([label for label in row["labels"] if label != -100]) == values
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"]))
        for block in blocks[:-1]:
            assert sum(word.startswith("k") for word in block) == 4
        some_updated |= any(updated)
    assert some_updated == (update_share > 0)


def test_how_many_pairs_are_updates():
    splits, tokenizer = associative_recall(10, 10, 6, 6, update_share=0.25, seed=2)
    for row in splits["test"]:
        words = tokenizer.convert_ids_to_tokens(row["input_ids"])
        keys = [word for word in words[: 5 * 32] if word.startswith("k")]
        assert (len(keys), len(set(keys))) == (20, 4 + 4 * 3)


def test_lengths_groups_and_splits():
    splits, _ = associative_recall(320, 7, 2, 8, block_size=16, group_size=8, curriculum=0.5, test_blocks=(12,))
    lengths = [len(row) // 16 for row in splits["train"]["input_ids"]]
    assert all(len(set(lengths[start : start + 8])) == 1 for start in range(0, 320, 8))
    assert (lengths[0], max(lengths[:80]) <= 5, max(lengths[160:])) == (2, True, 8)
    assert {len(row) // 16 for row in splits["test"]["input_ids"]} == {8}
    assert {len(row) // 16 for row in splits["test_12"]["input_ids"]} == {12}


def test_seed_determines_the_rows_and_splits_are_disjoint():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    options = {"block_size": 3, "pairs_per_block": 1, "num_queries": 1, "num_keys": 8, "num_values": 8}
    for seed in range(4):
        splits, again = (associative_recall(80, 8, 2, 2, **options, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(map(tuple, splits["train"]["input_ids"]))
        test.update(map(tuple, splits["test"]["input_ids"]))
    assert len(train) > 40 and len(test) > 4
    assert not train & test


def test_accuracy_by_distance_and_update():
    splits, _ = associative_recall(4, 50, 4, 4, seed=5)
    rows = splits["test"]
    labels = np.array([[label for label in row if label != -100] for row in rows["labels"]])
    distances, updated = np.array(rows["distances"]), np.array(rows["updated"])
    # a model that knows the last block and what was never overwritten
    known = (distances == 1) | ~updated
    table = recall_accuracy(np.where(known, labels, labels + 1), rows)
    assert sum(entry["num_questions"] for entry in table) == labels.size
    # the first block overwrites nothing
    assert [(entry["distance"], entry["updated"]) for entry in table] == [
        (1, False), (1, True), (2, False), (2, True), (3, False)
    ]  # fmt: skip
    assert [entry["accuracy"] for entry in table] == [1.0, 1.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"predictions must have the shape \(50, 4\)"):
        recall_accuracy(labels[:, 1:], rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_blocks": 1}, "min_blocks must be an integer of at least 2, got 1"),
        ({"min_blocks": 5}, "max_blocks must be at least min_blocks=5, got 4"),
        ({"block_size": 8}, "block_size must be at least 9 for pairs_per_block=4 and num_queries=4, got 8"),
        ({"num_queries": 5}, "num_queries must be at most pairs_per_block=4, .*got 5"),
        ({"num_keys": 7}, "num_keys must be at least 8, the keys of a row of 4 blocks, got 7"),
        ({"test_blocks": (64,)}, "num_keys must be at least 128, the keys of a row of 64 blocks, got 64"),
        ({"update_share": 2}, "update_share must be between 0 and 1, got 2"),
        ({"num_values": 1}, "num_values must be an integer of at least 2, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        associative_recall(4, 4, **options)
