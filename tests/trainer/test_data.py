"""Tokenizers and packed text."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_loop.trainer.data import byte_tokenizer, load_training_data, pack
from hf_loop.trainer.recipe import DataSection


@given(text=st.text())
def test_bytes_round_trip(text):
    tokenizer = byte_tokenizer()
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_byte_tokenizer_survives_saving(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("naïve")["input_ids"] == byte_tokenizer()("naïve")["input_ids"]
    assert len(loaded) == 257
    assert loaded.eos_token_id == 0


def test_packing_joins_texts_and_drops_the_rest():
    tokenizer = byte_tokenizer()
    texts = ["abcdefg", "", "hijklmnop", "qr"]
    blocks = pack(Dataset.from_dict({"body": texts}), tokenizer, "body", block_size=4)
    tokens = [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]
    assert [token for block in blocks["input_ids"] for token in block] == tokens[: len(tokens) // 4 * 4]
    assert blocks["labels"] == blocks["input_ids"]
    assert blocks.column_names == ["input_ids", "labels"]


def test_local_files_and_held_back_rows(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.txt").write_text("b" * 40)
    section = DataSection(files=[f"{tmp_path}/*.txt"], tokenizer="bytes", block_size=16, num_eval_rows=2)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    assert (len(data.train_dataset), len(data.eval_dataset)) == (3, 2)
    assert data.tokenizer.decode(data.train_dataset[0]["input_ids"]) == "a" * 16
    assert data.tokenizer.decode(data.eval_dataset[1]["input_ids"]) == "b" * 16


@pytest.mark.parametrize("task", ["shell_game", "coin_flips"])
def test_tasks(task):
    section = DataSection(task=task, num_train_rows=20, num_eval_rows=6)
    data = load_training_data(section, default_tokenizer=None, seed=3)
    assert (len(data.train_dataset), len(data.eval_dataset)) == (20, 6)
    again = load_training_data(section, default_tokenizer=None, seed=3)
    assert again.train_dataset[:] == data.train_dataset[:]
    other = load_training_data(section, default_tokenizer=None, seed=4)
    assert other.train_dataset[:] != data.train_dataset[:]


def test_rows_of_different_length_are_padded_for_input_and_labels():
    section = DataSection(task="shell_game", task_options={"num_swaps": 4, "curriculum": 1.0}, num_train_rows=16)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    rows = [{name: data.train_dataset[i][name] for name in ("input_ids", "labels")} for i in (0, 15)]
    batch = data.collator(rows)
    short, whole = len(rows[0]["input_ids"]), len(rows[1]["input_ids"])
    assert short < whole
    assert batch["input_ids"].shape == batch["labels"].shape == (2, whole)
    assert batch["attention_mask"].sum(1).tolist() == [short, whole]
    assert (batch["labels"][0][batch["attention_mask"][0] == 0] == -100).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": ["nowhere/*.txt"]}, r"data.files: no file matches 'nowhere/\*.txt'"),
        ({"tokenizer": None}, "data.tokenizer must be given"),
        ({"text_column": "body"}, "data.text_column must be one of text, got 'body'"),
        ({"block_size": 512}, "data.block_size=512 leaves 0 rows"),
        ({"num_eval_rows": 100}, "too few beside data.num_eval_rows=100"),
    ],
)
def test_bad_text(tmp_path, fields, message):
    (tmp_path / "a.txt").write_text("a" * 40)
    values = {"files": [str(tmp_path / "a.txt")], "tokenizer": "bytes", "block_size": 8, **fields}
    with pytest.raises(ValueError, match=message):
        load_training_data(DataSection(**values), default_tokenizer=None, seed=0)


def test_bad_tasks():
    with pytest.raises(ValueError, match="data.task must be one of coin_flips, shell_game, got 'chess'"):
        load_training_data(DataSection(task="chess"), default_tokenizer=None, seed=0)
    section = DataSection(task="shell_game", task_options={"num_swap": 4})
    with pytest.raises(ValueError, match="unknown key 'num_swap' in data.task_options; did you mean 'num_swaps'?"):
        load_training_data(section, default_tokenizer=None, seed=0)
