"""Files as they come: hidden ones, compressed ones, tables, other encodings, large ones, and saved datasets."""

import gzip
import json
import re

import pytest
from datasets import Dataset, DatasetDict
from datasets.exceptions import DatasetNotFoundError

from hf_loop.text_files import PIECE_SIZE
from hf_loop.trainer.data import load_training_data
from hf_loop.trainer.recipe import DataSection
from hf_loop.trainer.text_sources import find_files, load_rows


TEXT = "héllo\nwörld\n" * 30


def read_text(streaming=False, **fields):
    """The text of all rows of training, without the end-of-text tokens."""
    section = DataSection(**{"tokenizer": "bytes", "block_size": 2, "streaming": streaming} | fields)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    rows = [row["input_ids"] for row, _ in zip(data.train_dataset, range(len(TEXT.encode()) // 2))]
    return data.tokenizer.decode(sum(rows, []), skip_special_tokens=True)


def test_hidden_files_and_folders_are_no_text(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.txt", "inner/b.txt"):
        (tmp_path / name).write_text(TEXT)
    for folder in (".ipynb_checkpoints", ".git", ".cache/huggingface", "inner/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a-checkpoint.txt").write_text("hidden")
    for name in (".gitattributes", ".DS_Store", "._a.txt", ".hidden.txt", "inner/.env", "dataset_infos.json"):
        (tmp_path / name).write_text("hidden")
    (tmp_path / "folder.txt").mkdir()
    for pattern in (f"{tmp_path}", f"{tmp_path}/**/*.txt"):
        assert [path.name for path in find_files([pattern])] == ["a.txt", "b.txt"]
    # a file that is named is meant
    assert [path.name for path in find_files([f"{tmp_path}/.hidden.txt"])] == [".hidden.txt"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "jsonl", "jsonl.gz", "csv", "csv.gz"])
def test_every_kind_of_file_in_every_encoding(tmp_path, suffix, encoding, streaming):
    kind, _, compression = suffix.partition(".")
    written = {
        "txt": TEXT,
        "jsonl": json.dumps({"text": TEXT}, ensure_ascii=False) + "\n",
        "csv": f'id,text\n1,"{TEXT}"\n',
    }[kind].encode(encoding)
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(written) if compression else written)
    assert read_text(streaming, files=[str(tmp_path)]) == TEXT.encode()[: len(TEXT.encode()) // 2 * 2].decode()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "é".encode("latin-1"), "a.txt is not UTF-8 text"),
        ("a.txt", b"\0\1\2" * 9, "a.txt is not UTF-8 text: it holds zero bytes"),
        ("a.txt.gz", b"no gzip", "a.txt.gz cannot be read"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "a.txt.gz holds no text"),
        ("a.jsonl", b"[1, 2", "a.jsonl"),
        ("a.csv", b'"open', "a.csv"),
        ("a.jsonl.zst", b"x", "a.jsonl.zst cannot be read without the package zstandard: pip install zstandard"),
    ],
)
def test_broken_files_are_named(tmp_path, monkeypatch, name, data, message, streaming):
    monkeypatch.setattr("hf_loop.trainer.text_sources.find_spec", lambda name: None)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_text(streaming, files=[f"{tmp_path}/{name}"])
    assert "Traceback" not in str(error.value)


def test_cells_of_a_table_that_read_na_are_text(tmp_path):
    (tmp_path / "a.csv").write_text("text\nNA\nnull\nnan\n")
    assert load_rows(DataSection(files=[f"{tmp_path}/a.csv"]))["text"][:] == ["NA", "null", "nan"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_large_file_is_read_in_pieces_and_is_one_text(tmp_path, streaming):
    text = "0123456789\n" * (PIECE_SIZE // 4)
    (tmp_path / "a.txt").write_text(text)
    rows = load_rows(DataSection(files=[f"{tmp_path}/a.txt"], streaming=streaming))
    pieces = list(rows)
    assert len(pieces) > 2 and max(len(row["text"]) for row in pieces) < 2 * PIECE_SIZE
    assert "".join(row["text"] for row in pieces) == text
    section = DataSection(files=[f"{tmp_path}/a.txt"], tokenizer="bytes", block_size=1000, streaming=streaming)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    tokens = sum((row["input_ids"] for row, _ in zip(data.train_dataset, range(len(text) // 1000))), [])
    assert data.tokenizer.decode(tokens) == text[: len(tokens)]


def test_a_stream_reads_no_more_than_it_needs(tmp_path):
    # what follows cannot be read
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * (4 * PIECE_SIZE) + b"\xff" * PIECE_SIZE)
    section = DataSection(files=[f"{tmp_path}/a.txt"], tokenizer="bytes", block_size=1000, streaming=True)
    data = load_training_data(section, default_tokenizer=None, seed=0)
    assert len(next(iter(data.train_dataset))["input_ids"]) == 1000


def test_a_file_that_was_changed_is_read_anew(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first text", "second text"):
        path.write_text(text)
        assert load_rows(DataSection(files=[str(path)]))["text"][:] == [text]


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_save_to_disk(tmp_path, streaming):
    rows = Dataset.from_dict({"text": [f"text {i}" for i in range(10)]})
    rows.save_to_disk(tmp_path / "rows")
    DatasetDict({"train": rows, "held": rows.select(range(3))}).save_to_disk(tmp_path / "splits")

    def texts(**fields):
        return [row["text"] for row in load_rows(DataSection(streaming=streaming, **fields))]

    assert texts(dataset=f"{tmp_path}/rows") == texts(files=[f"{tmp_path}/rows"]) == rows["text"][:]
    assert texts(dataset=f"{tmp_path}/splits", split="held") == ["text 0", "text 1", "text 2"]
    assert texts(dataset=f"{tmp_path}/splits", split="train[:20%]") == ["text 0", "text 1"]
    with pytest.raises(ValueError, match=r"data.split='test' of .*splits: Unknown split \"test\""):
        texts(dataset=f"{tmp_path}/splits", split="test")
    (tmp_path / "rows" / "state.json").write_text("[")
    with pytest.raises(ValueError, match="data.split='train' of .*rows: "):
        texts(dataset=f"{tmp_path}/rows")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "./nowhere"}, "data.dataset: there is no folder ./nowhere"),
        ({"dataset": "{folder}", "split": "test"}, 'data.dataset: .*: Unknown split "test"'),
        ({"dataset": "{folder}", "dataset_config": "x"}, "data.dataset: .*'x' not found"),
    ],
)
def test_a_dataset_that_is_not_there(tmp_path, fields, message):
    (tmp_path / "a.txt").write_text(TEXT)
    fields["dataset"] = fields["dataset"].format(folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        load_rows(DataSection(**fields))


@pytest.mark.parametrize("error", [DatasetNotFoundError("none of this name"), ConnectionError("no network")])
def test_a_dataset_that_is_not_there_is_answered_with_the_nearest_folder(error, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise error

    (tmp_path / "stories").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hf_loop.trainer.text_sources.load_dataset", refuse)
    message = f"data.dataset: there is no folder storys; did you mean stories?; {error}"
    with pytest.raises(OSError, match=re.escape(message)):
        load_rows(DataSection(dataset="storys"))
