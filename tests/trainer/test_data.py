"""Tokenizers and packed text."""

import json
from functools import partial
from itertools import islice

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_loop.trainer.data import byte_tokenizer, load_training_data
from hf_loop.trainer.packing import ROWS_PER_BATCH, pack, stream_blocks
from hf_loop.trainer.recipe import DataSection
from hf_loop.trainer.text_columns import read_text_row


READ_TEXT = partial(read_text_row, column="text")


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


def joined_tokens(texts, tokenizer):
    return [token for text in texts for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)]


def test_packing_joins_texts_and_drops_the_rest():
    tokenizer = byte_tokenizer()
    texts = ["abcdefg", "", "hijklmnop", "qr"]
    blocks = pack(Dataset.from_dict({"body": texts}), partial(read_text_row, column="body"), tokenizer, block_size=4)
    tokens = joined_tokens(texts, tokenizer)
    assert [token for block in blocks["input_ids"] for token in block] == tokens[: len(tokens) // 4 * 4]
    assert blocks["labels"] == blocks["input_ids"]
    assert blocks.column_names == ["input_ids", "labels"]


@settings(max_examples=10, deadline=None)
@given(num_texts=st.integers(1, 3 * ROWS_PER_BATCH), block_size=st.integers(2, 40))
def test_streamed_blocks_are_the_packed_ones(num_texts, block_size):
    tokenizer = byte_tokenizer()
    texts = Dataset.from_dict({"text": [f"{i} " * (i % 7) for i in range(num_texts)]})
    expected = list(pack(texts, READ_TEXT, tokenizer, block_size))
    streamed = stream_blocks(texts.to_iterable_dataset(), READ_TEXT, tokenizer, block_size)
    for _ in range(2):  # nothing of a pass is left for the next
        assert list(streamed) == expected


def test_no_token_is_lost_between_batches_of_texts():
    tokenizer = byte_tokenizer()
    texts = [f"text {i}" for i in range(2500)]
    blocks = pack(Dataset.from_dict({"text": texts}), READ_TEXT, tokenizer, block_size=33)
    tokens = joined_tokens(texts, tokenizer)
    assert [token for block in blocks["input_ids"] for token in block] == tokens[: len(tokens) // 33 * 33]


TEXTS = ["first " * 20, "second " * 20, "third " * 20]


def write_texts(folder, suffix, column="text"):
    """`TEXTS` in files of one kind, in two of them; the pattern that names them."""
    parts = (TEXTS[:2], TEXTS[2:])
    for name, texts in zip("ab", parts, strict=True):
        path = folder / f"{name}{suffix}"
        rows = Dataset.from_dict({"id": list(range(len(texts))), column: texts})
        if suffix in (".parquet", ".csv"):
            (rows.to_parquet if suffix == ".parquet" else rows.to_csv)(path)
        elif suffix == ".txt":
            path.write_text("".join(texts))
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(list(rows)))
    return f"{folder}/*{suffix}"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_kinds_of_files(tmp_path, suffix, streaming):
    column = "text" if suffix == ".txt" else "body"
    pattern = write_texts(tmp_path, suffix, column)
    fields = {"tokenizer": "bytes", "block_size": 16, "text_column": column, "streaming": streaming}
    data = load_training_data(DataSection(files=[pattern], **fields), default_tokenizer=None, seed=0)
    texts = ["".join(TEXTS[:2]), TEXTS[2]] if suffix == ".txt" else TEXTS
    tokens = joined_tokens(texts, data.tokenizer)
    blocks = [row["input_ids"] for row in islice(data.train_dataset, len(tokens) // 16)]
    assert [token for block in blocks for token in block] == tokens[: len(tokens) // 16 * 16]
    # a folder stands for the files in it, and one file for itself
    for files in ([str(tmp_path)], [f"{tmp_path}/a{suffix}", f"{tmp_path}/b{suffix}"]):
        again = load_training_data(DataSection(files=files, **fields), default_tokenizer=None, seed=0)
        assert [row["input_ids"] for row in islice(again.train_dataset, len(blocks))] == blocks


def test_datasets_in_a_local_folder(tmp_path):
    write_texts(tmp_path, ".jsonl", "body")
    fields = {"dataset": str(tmp_path), "tokenizer": "bytes", "block_size": 16, "text_column": "body"}
    whole, streamed = (
        load_training_data(DataSection(streaming=streaming, **fields), default_tokenizer=None, seed=0)
        for streaming in (False, True)
    )
    rows = [row["input_ids"] for row in islice(streamed.train_dataset, len(whole.train_dataset))]
    assert rows == whole.train_dataset["input_ids"][:]


def test_a_stream_begins_anew_and_never_shows_the_rows_held_back(tmp_path):
    pattern = write_texts(tmp_path, ".jsonl")
    fields = {"files": [pattern], "tokenizer": "bytes", "block_size": 16}
    whole = load_training_data(DataSection(**fields), default_tokenizer=None, seed=0).train_dataset["input_ids"][:]
    section = DataSection(streaming=True, num_eval_rows=3, **fields)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    assert data.eval_dataset["input_ids"][:] == whole[:3]
    rows = [row["input_ids"] for row in islice(data.train_dataset, 3 * len(whole))]
    assert rows == (whole[3:] * 4)[: len(rows)]


def test_local_files_and_held_back_rows(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b").write_text("b" * 40)
    section = DataSection(files=[f"{tmp_path}/*"], tokenizer="bytes", block_size=16, num_eval_rows=2)
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


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"files": ["nowhere/*.txt"]}, r"data.files: no file matches 'nowhere/\*.txt'"),
        ({"files": ["{folder}/a.txt", "{folder}/none"]}, "data.files: no file matches '.*/none'"),
        ({"files": ["{folder}/none"]}, "data.files: no file matches '.*/none'"),
        ({"files": ["{folder}"]}, r"data.files must be of one kind, got .*a\.txt and .*b\.jsonl and "),
        ({"files": ["{folder}/c.pdf"]}, r"data.files: .*c\.pdf is of no known kind: names must end in .txt, .jsonl"),
        ({"files": ["{folder}/e"]}, "data.files: no file matches '.*/e': names must end in .txt, .jsonl"),
        ({"files": ["{folder}/d/empty.jsonl"]}, r"data.files: .*empty\.jsonl is empty"),
        ({"files": ["{folder}/none.parquet"]}, "none.parquet: not readable: .* no data|there are no rows to read"),
        ({"files": ["{folder}/b.jsonl"]}, "data.text_column must be one of id, body, null, got 'text'"),
        ({"files": ["{folder}/b.jsonl"], "text_column": "id"}, "the column 'id' must hold text in every row, got 0"),
        ({"files": ["{folder}/b.jsonl"], "text_column": "null"}, "the column 'null' must hold text .* got None"),
        ({"tokenizer": None}, "data.tokenizer must be given"),
        ({"text_column": "body"}, "data.text_column must be one of text, got 'body'"),
        ({"block_size": 512}, "data.block_size=512 leaves 0 rows"),
        ({"num_eval_rows": 100}, "too few beside data.num_eval_rows=100"),
    ],
)
def test_bad_text(tmp_path, fields, message, streaming):
    (tmp_path / "a.txt").write_text("a" * 40)
    (tmp_path / "b.jsonl").write_text(json.dumps({"id": 0, "body": "b" * 40, "null": None}))
    (tmp_path / "c.pdf").write_text("c")
    (tmp_path / "e").mkdir()
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "empty.jsonl").write_text("")
    fields = {"files": ["{folder}/a.txt"], "tokenizer": "bytes", "block_size": 8, "streaming": streaming} | fields
    fields["files"] = [name.format(folder=tmp_path) for name in fields["files"]]
    if fields["files"] == [str(tmp_path)]:
        (tmp_path / "d" / "empty.jsonl").unlink()
    with pytest.raises(ValueError, match=message):
        load_training_data(DataSection(**fields), default_tokenizer=None, seed=0)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_broken_files(tmp_path, suffix, streaming):
    (tmp_path / f"broken{suffix}").write_text('{"text": "a"')
    section = DataSection(files=[str(tmp_path)], tokenizer="bytes", block_size=8, streaming=streaming)
    with pytest.raises(ValueError) as error:
        load_training_data(section, default_tokenizer=None, seed=0)
    assert f"data.files: {tmp_path}/broken{suffix}: not readable: " in str(error.value)


def test_bad_tasks():
    with pytest.raises(ValueError, match="data.task must be one of .*, shell_game, .*got 'chess'"):
        load_training_data(DataSection(task="chess"), default_tokenizer=None, seed=0)
    section = DataSection(task="shell_game", task_options={"num_swap": 4})
    with pytest.raises(ValueError, match="unknown key 'num_swap' in data.task_options; did you mean 'num_swaps'?"):
        load_training_data(section, default_tokenizer=None, seed=0)
