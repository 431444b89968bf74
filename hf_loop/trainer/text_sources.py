"""From `data.files` and `data.dataset` of a recipe to rows: local files of any kind, folders, and the Hub."""

import glob
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    ReadInstruction,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..paths import no_such
from ..text_files import text_encoding, text_pieces
from .sections import DataSection
from .text_columns import DEFAULT_COLUMN, LAST_PIECE


# by suffix, the loader of `datasets` that reads the file; a name without one is text, which is read here
FILE_KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", "": "text"}
COMPRESSIONS = (".gz", ".bz2", ".zst")
# characters of a row of a text file: a batch of rows must be tokenized before the first step of a stream
ROW_SIZE = 1 << 15
# what `save_to_disk` writes beside the rows, and files that describe a dataset on the Hub
SAVED_FILES = ("state.json", "dataset_dict.json")
DESCRIPTIONS = (*SAVED_FILES, "dataset_info.json", "dataset_infos.json")


def load_rows(data: DataSection) -> Dataset | IterableDataset:
    """Load the rows that the section `data` of a recipe names.

    Raises:
        ValueError: if no file matches, one is empty, damaged, of an unknown kind or of another kind than the rest, or
            there is no such dataset or split.
    """
    source = data.dataset
    if source is None:
        files = data.files or []
        if len(files) != 1 or not _is_saved(files[0]):
            return _load_files(find_files(files), data.streaming)
        (source,) = files
    if _is_saved(source):
        rows = _saved_rows(source, data.split)
        return rows.to_iterable_dataset() if data.streaming else rows
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"data.dataset: {no_such('folder', source)}")
    try:
        return load_dataset(source, data.dataset_config, split=data.split, streaming=data.streaming)
    except (DatasetNotFoundError, ConnectionError) as error:
        # the Hub has no such dataset, or cannot be asked
        raise OSError(f"data.dataset: {no_such('folder', source)}; {error}") from error
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"data.dataset: {source}: {error.__cause__ or error}") from error


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Find the files that `data.files` names.

    Args:
        patterns (`Sequence[str]`): files, patterns, or folders. A folder stands for all files in it that end as one of
            the kinds does; hidden files and folders, whose names begin with a dot, are left out.

    Raises:
        ValueError: if nothing matches, a file is of an unknown kind, or it is empty.
    """
    files: list[Path] = []
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        found = [file for match in matches for file in (_files_inside(match) if match.is_dir() else [match])]
        if not found:
            raise ValueError(f"data.files: no file matches {pattern!r}{_suffixes() if matches else ''}")
        files += found
    for path in files:
        if _kind(path) is None:
            raise ValueError(f"data.files: {path} is of no known kind{_suffixes()}")
        if path.stat().st_size == 0:
            raise ValueError(f"data.files: {path} is empty")
    return files


def _files_inside(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*.*")
        if path.is_file()
        and _kind(path) is not None
        and path.name not in DESCRIPTIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _kind(path: Path) -> str | None:
    """Return the kind of a file by its suffix, without that of a compression; `None` if it is not known."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path
    return FILE_KINDS.get(name.suffix.lower())


def _suffixes() -> str:
    kinds = ", ".join(filter(None, FILE_KINDS))
    return f": names must end in {kinds}, and may then end in {', '.join(COMPRESSIONS)}"


def _load_files(files: Sequence[Path], streaming: bool) -> Dataset | IterableDataset:
    kinds = {_kind(path): path for path in files}
    if len(kinds) > 1:
        raise ValueError(f"data.files must be of one kind, got {' and '.join(map(str, kinds.values()))}")
    (kind,) = kinds
    paths = tuple(map(str, files))
    maker: Any = IterableDataset if streaming else Dataset
    try:
        if kind == "text":
            # a file that was changed is read anew, not taken from the cache
            changed = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)
            return maker.from_generator(_generate_pieces, gen_kwargs={"paths": paths, "changed": changed})
        options = _options(kind, files)
        if streaming:
            return maker.from_generator(_generate_rows, gen_kwargs={"kind": kind, "paths": paths, "options": options})
        return load_dataset(str(kind), data_files=list(paths), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        raise _unreadable(paths, error) from error


def _unreadable(paths: Sequence[str], error: Exception) -> ValueError:
    reason = str(error.__cause__ or error)
    # some errors name the file themselves
    place = "" if reason.startswith(tuple(paths)) else f"{', '.join(paths[:3])}: not readable: "
    return ValueError(f"data.files: {place}{reason}")


def _options(kind: str | None, files: Sequence[Path]) -> dict[str, Any]:
    for path in files:
        if path.suffix.lower() == ".zst" and find_spec("zstandard") is None:
            raise ValueError(f"{path} cannot be read without the package zstandard: pip install zstandard")
    if kind == "parquet":
        return {}
    encodings = {text_encoding(path): path for path in files}
    if len(encodings) > 1:
        raise ValueError(f"{files[0]} and {list(encodings.values())[-1]} must be of one encoding")
    # a cell of a table that reads NA or null is a text, too
    return {"encoding": next(iter(encodings))} | ({"keep_default_na": False} if kind == "csv" else {})


def _generate_rows(kind: str, paths: tuple[str, ...], options: dict[str, Any]) -> Iterator[Any]:
    for path in paths:
        try:
            yield from load_dataset(kind, data_files=[path], split="train", streaming=True, **options)
        except (DatasetGenerationError, ValueError) as error:
            raise _unreadable([path], error) from error


def _generate_pieces(paths: tuple[str, ...], changed: Any) -> Iterator[dict[str, Any]]:
    """Read every text file in pieces, so that no file is ever one long string."""
    for path in paths:
        last = None
        for piece in text_pieces(path, ROW_SIZE):
            if last is not None:
                yield {DEFAULT_COLUMN: last, LAST_PIECE: False}
            last = piece
        if last is None:
            raise ValueError(f"{path} holds no text")
        yield {DEFAULT_COLUMN: last, LAST_PIECE: True}


def _is_saved(source: str) -> bool:
    return any((Path(source) / name).is_file() for name in SAVED_FILES)


def _saved_rows(folder: str, split: str) -> Dataset:
    """Read a split, or a part of one such as `train[:10%]`, of what `save_to_disk` wrote."""
    try:
        saved = load_from_disk(folder)
        splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
        parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    except (ValueError, AssertionError, OSError) as error:
        raise ValueError(f"data.split={split!r} of {folder}: {error}") from error
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])
