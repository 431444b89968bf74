"""Reads text files in pieces: compressed or not, in any encoding of Unicode, and no further than is needed."""

import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
import torch
from transformers import PreTrainedTokenizerBase

from .files import BYTE_ORDER_MARKS, fault_named


# characters that are tokenized at once: a fast tokenizer needs far more time and memory for one very long string
PIECE_SIZE = 1 << 18


def text_encoding(path: str | os.PathLike) -> str:
    """Return the encoding of a text file by its byte-order mark, UTF-8 where it has none.

    Args:
        path (`str` or `os.PathLike`): the file; compressed where it is named so (`.gz`, `.bz2`, `.zst`).

    Raises:
        ValueError: if the file is compressed and damaged.
        OSError: if there is no such file.
    """
    with _open(path) as file:
        head = _read(file, 4, path)
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")


def text_pieces(path: str | os.PathLike, size: int = PIECE_SIZE) -> Iterator[str]:
    """Read a text file in pieces of about `size` characters, which end where a line does.

    A text without line breaks is cut anywhere. The byte-order mark is no part of the text.

    Args:
        path (`str` or `os.PathLike`): the file, see [`text_encoding`].
        size (`int`, *optional*): characters that are read at once.

    Raises:
        ValueError: if the file is no text in UTF-8, and in no other encoding that its byte-order mark names, or it is
            compressed and damaged.
        OSError: if there is no such file.
    """
    encoding = text_encoding(path)
    with _open(path) as raw, io.TextIOWrapper(raw, encoding=encoding) as file:
        for piece in _pieces(lambda: _read(file, size, path)):
            if "\0" in piece:
                name = encoding.removesuffix("-sig").upper()
                raise ValueError(f"{path} is not {name} text: it holds zero bytes; save it as UTF-8")
            yield piece


def split_text(text: str) -> list[str]:
    """Split a text into the pieces that [`text_pieces`] reads of a file."""
    if len(text) <= PIECE_SIZE:
        return [text]
    file = io.StringIO(text, newline="")
    return list(_pieces(lambda: file.read(PIECE_SIZE)))


def _pieces(read: Callable[[], str]) -> Iterator[str]:
    rest = ""
    while piece := read():
        text = rest + piece
        end = text.rfind("\n") + 1 or len(text)
        yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def read_tokens(
    path: str | os.PathLike, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
) -> torch.Tensor:
    """Tokenize a text file, or only its beginning, from which alone is then read.

    The text is tokenized in pieces (see [`text_pieces`]), so the tokens around a cut may be others than those of the
    whole text.

    Args:
        path (`str` or `os.PathLike`): the file.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer; the special tokens that it puts around a text are put
            around the whole.
        max_tokens (`int`, *optional*): the most tokens to return; `None` for all.

    Returns:
        `torch.Tensor` of shape `[1, T]`: the tokens.

    Raises:
        ValueError: if the file is empty, or as [`text_pieces`].
        OSError: if there is no such file.
    """
    tokens: list[int] = []
    after: list[int] = []
    for piece in text_pieces(path):
        # `verbose` would warn that the text is longer than the context
        with fault_named(f"the tokenizer of {tokenizer.name_or_path}"):
            encoded = tokenizer(piece, return_special_tokens_mask=True, verbose=False)
            first, last = _inner_range(encoded["special_tokens_mask"])
            ids = encoded["input_ids"]
        tokens += ids[:last] if not tokens else ids[first:last]
        after = ids[last:]
        if max_tokens is not None and len(tokens) >= max_tokens:
            break
    if not tokens:
        raise ValueError(f"{path} holds no text")
    return torch.tensor([(tokens + after)[:max_tokens]])


def _inner_range(special: list[int]) -> tuple[int, int]:
    """Return where the tokens of a text begin and end between those that the tokenizer puts around it."""
    if 0 not in special:
        return 0, len(special)
    return special.index(0), len(special) - special[::-1].index(0)


def _open(path: str | os.PathLike) -> Any:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, not a text file")
    # reads every compression without further packages
    return pyarrow.input_stream(os.fspath(path), compression="detect")


def _read(file: Any, size: int, path: str | os.PathLike) -> Any:
    try:
        return file.read(size)
    except UnicodeDecodeError as error:
        name = error.encoding.removesuffix("-sig").upper()
        raise ValueError(f"{path} is not {name} text: {error.reason} {error.object[error.start]:#x}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


__all__ = ["read_tokens", "split_text", "text_encoding", "text_pieces"]
