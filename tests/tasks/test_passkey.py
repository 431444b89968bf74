"""PassKey with symbols, read back from its text."""

import time

import pytest

from hf_loop.tasks import passkey


@pytest.mark.parametrize(("block_size", "key_length"), [(32, 4), (12, 2), (7, 1)])
def test_the_key_is_at_the_start_and_asked_for_at_the_end(block_size, key_length):
    splits, tokenizer = passkey(40, 3, 1, 3, block_size=block_size, key_length=key_length, num_symbols=12)
    for row in [*splits["train"], *splits["test"]]:
        words = row["prompt"].split()
        key = words[1 : key_length + 1]
        assert words[0] == words[key_length + 1] == "!"
        assert row["answer"] == " ".join(key)
        assert words[-1] == "?"
        # nothing but the marks tells key and filler apart
        assert all(0 <= int(word) < 12 for word in [*key, *words[key_length + 2 : -1]])
        assert row["input_ids"] == tokenizer(f"{row['prompt']} {row['answer']}")["input_ids"]
        assert len(row["input_ids"]) % block_size == 0
        assert row["labels"][:-key_length] == [-100] * (len(row["input_ids"]) - key_length)
        assert row["labels"][-key_length:] == row["input_ids"][-key_length:]


def test_splits_by_number_of_blocks():
    splits, _ = passkey(8, 5, 2, 8, block_size=16, test_blocks=(4, 256))
    assert set(splits) == {"train", "test", "test_4", "test_256"}
    for name, count in [("test", 8), ("test_4", 4), ("test_256", 256)]:
        assert {len(row) for row in splits[name]["input_ids"]} == {16 * count}
        assert len(set(splits[name]["answer"])) == 5


def test_batches_of_a_group_need_no_padding_and_lengths_grow():
    splits, _ = passkey(640, 4, 2, 8, group_size=16, curriculum=0.5)
    lengths = [len(row) // 32 for row in splits["train"]["input_ids"]]
    assert all(len(set(lengths[start : start + 16])) == 1 for start in range(0, 640, 16))
    assert lengths[:16] == [2] * 16
    assert max(lengths[:160]) <= 5
    assert max(lengths[320:]) == 8


def test_seed_determines_the_rows_and_keys_never_meet():
    train, test = set(), set()
    for seed in range(4):
        splits, again = (passkey(300, 30, key_length=2, num_symbols=40, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(splits["train"]["answer"])
        test.update(splits["test"]["answer"])
    assert len(train) > 600 and len(test) > 60  # more than one seed draws
    assert not train & test


def test_every_symbol_is_drawn_alike():
    splits, _ = passkey(2000, 1, 1, 1, num_symbols=4, key_length=2, block_size=8)
    firsts = [answer.split()[0] for answer in splits["train"]["answer"]]
    # 16 keys, of which those for testing are missing
    assert {0, 1, 2, 3} == {int(first) for first in firsts}


def test_generation_is_fast():
    start = time.perf_counter()
    passkey(32_000, 64, test_blocks=(256,), curriculum=0.5)
    assert time.perf_counter() - start < 20  # one to two seconds, on a machine that does nothing else


@pytest.mark.parametrize("value", [0, 2.5, True, "x"])
@pytest.mark.parametrize("name", ["num_train", "num_test", "min_blocks", "block_size", "key_length", "num_symbols"])
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        passkey(**{"num_train": 4, "num_test": 4, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_blocks": 4, "max_blocks": 3}, "max_blocks must be at least min_blocks=4, got 3"),
        ({"block_size": 11}, "block_size must be at least 12 for keys of 4 symbols, got 11"),
        ({"test_blocks": (2, 0)}, r"test_blocks\[1\] must be an integer of at least 1, got 0"),
        ({"curriculum": 1.5}, "curriculum must be between 0 and 1, got 1.5"),
        ({"num_test": 200, "key_length": 1}, "num_test must be at most"),
        ({"key_length": 20, "block_size": 64}, r"num_symbols \*\* key_length must be at most"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        passkey(**{"num_train": 4, "num_test": 4, **options})
