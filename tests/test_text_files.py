"""Text files as they come: encodings, compression, size."""

import gzip

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from hf_loop.text_files import PIECE_SIZE, read_tokens, text_encoding, text_pieces
from hf_loop.trainer.data import byte_tokenizer


TEXT = "héllo\nwörld\n" * 3


def write_zst(path, data):
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_the_text_is_the_same_in_every_encoding_and_compression(tmp_path, encoding, suffix):
    path, data = tmp_path / f"a.{suffix}", TEXT.replace("\n", "\r\n").encode(encoding)
    {"txt": type(path).write_bytes, "txt.gz": lambda p, d: p.write_bytes(gzip.compress(d)), "txt.zst": write_zst}[
        suffix
    ](path, data)
    assert text_encoding(path) == encoding
    assert "".join(text_pieces(path)) == TEXT


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from("ab \né"), max_size=40), size=st.integers(1, 9))
def test_pieces_are_the_text_and_end_where_a_line_does(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_text(text)
    pieces = list(text_pieces(path, size))
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") or "\n" not in piece for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("latin.txt", "é".encode("latin-1"), "latin.txt is not UTF-8 text: unexpected end of data 0xe9"),
        ("no_mark.txt", "hello".encode("utf-16-le"), "no_mark.txt is not UTF-8 text: it holds zero bytes"),
        ("odd.txt", "héllo".encode("utf-16")[:-1], "odd.txt is not UTF-16-LE text: truncated data"),
        (
            "cut.txt.gz",
            gzip.compress(b"hello" * 99, mtime=0)[:-12],
            "cut.txt.gz cannot be read: Truncated compressed stream",
        ),
        ("plain.txt.gz", b"hello", "plain.txt.gz cannot be read: "),
        ("empty.txt", b"", "empty.txt holds no text"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_tokens(tmp_path / name, byte_tokenizer())


def test_no_more_is_read_than_needed(tmp_path):
    path = tmp_path / "a.txt"
    # what follows the first pieces cannot even be read
    path.write_bytes(b"0123456789\n" * (PIECE_SIZE // 5) + b"\xff" * PIECE_SIZE)
    tokenizer = byte_tokenizer()
    tokens = read_tokens(path, tokenizer, 2048)
    assert tokens.shape == (1, 2048)
    assert tokenizer.decode(tokens[0]) == ("0123456789\n" * 200)[:2048]
    with pytest.raises(ValueError, match="a.txt is not UTF-8 text"):
        read_tokens(path, tokenizer)


def test_special_tokens_stand_around_the_whole_text(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    path = tmp_path / "a.txt"
    path.write_text("0123456789\n" * (PIECE_SIZE // 5))
    assert read_tokens(path, tokenizer).tolist() == [tokenizer(path.read_text())["input_ids"]]
    assert read_tokens(path, tokenizer, 5).tolist() == [tokenizer("0123")["input_ids"][:5]]
