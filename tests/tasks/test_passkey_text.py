"""PassKey as text, read back with a tokenizer of bytes."""

import pytest

from hf_loop.tasks import passkey_text
from hf_loop.trainer.data import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def test_text_of_a_row(tokenizer):
    splits = passkey_text(3, 2, tokenizer, 100, 150, key_digits=3)
    for row in [*splits["train"], *splits["test"]]:
        text, key = tokenizer.decode(row["input_ids"]), row["answer"]
        assert text.startswith("There is an important info hidden inside a lot of irrelevant text. Find it")
        assert f"The pass key is {key}. Remember it. {key} is the pass key. The grass is green." in text
        assert text.endswith(f" What is the pass key? The pass key is {key}")
        assert len(key) == 3 and text.count(key) == 3
        answer = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(answer) == f" {key}"
        assert row["labels"][-len(answer) :] == answer


def test_filler_is_counted_in_tokens(tokenizer):
    splits = passkey_text(60, 2, tokenizer, 30, 90, group_size=4, test_filler=(1000,), curriculum=0.5)
    bare = len(tokenizer(passkey_text(1, 1, tokenizer, 1, 1)["test"]["answer"][0])["input_ids"])
    without_filler = len(passkey_text(1, 1, tokenizer, 1, 1)["test"]["input_ids"][0]) - 1
    assert bare == 5
    lengths = [len(row) - without_filler for row in splits["train"]["input_ids"]]
    assert all(len(set(lengths[start : start + 4])) == 1 for start in range(0, 60, 4))
    assert lengths[:4] == [30] * 4
    assert 75 < max(lengths) <= 90
    assert {len(row) - without_filler for row in splits["test"]["input_ids"]} == {90}
    assert {len(row) - without_filler for row in splits["test_1000"]["input_ids"]} == {1000}


def test_the_first_token_of_a_tokenizer_that_has_one(tokenizer):
    marked = byte_tokenizer()
    marked.bos_token = "<|endoftext|>"
    (row,), (plain,) = (passkey_text(1, 1, each, 50, 50)["train"]["input_ids"] for each in (marked, tokenizer))
    assert row == [marked.bos_token_id, *plain]


def test_seed_determines_the_rows_and_keys_never_meet(tokenizer):
    train, test = set(), set()
    for seed in range(3):
        splits, again = (passkey_text(50, 20, tokenizer, 5, 9, key_digits=4, seed=seed) for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(splits["train"]["answer"])
        test.update(splits["test"]["answer"])
    assert len(train) > 130 and len(test) > 50
    assert not train & test


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_filler": 0}, "min_filler must be an integer of at least 1, got 0"),
        ({"min_filler": 10, "max_filler": 9}, "max_filler must be at least min_filler=10, got 9"),
        ({"key_digits": 19}, "key_digits must be at most 18, got 19"),
        ({"key_digits": 1}, "num_test must be at most"),
        ({"curriculum": -0.1}, "curriculum must be between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        passkey_text(**{"num_train": 4, "num_test": 9, "tokenizer": tokenizer, **options})
