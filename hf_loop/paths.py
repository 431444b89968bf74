"""Finds what a name that a user gave stands for: a file, a folder, or a repository on the Hub.

This module imports without torch.
"""

import difflib
import os
from pathlib import Path


# what describes a model, here or on the Hub
DESCRIPTIONS = ("config.json", "all_config.yaml", "adapter_config.json")


def no_such(kind: str, path: str | os.PathLike) -> str:
    """Say that a file or folder does not exist, and which one of a similar name does.

    Args:
        kind (`str`): `"file"` or `"folder"`.
        path (`str` or `os.PathLike`): what does not exist, or is of the other kind.
    """
    if os.path.exists(path):
        return f"{os.fspath(path)} is {'a folder' if os.path.isdir(path) else 'a file'}, give a {kind}"
    nearest = nearest_path(path)
    return f"there is no {kind} {os.fspath(path)}" + (f"; did you mean {nearest}?" if nearest is not None else "")


def check_file(path: Path, option: str) -> None:
    """Refuse the name of a file that does not exist.

    Args:
        path (`Path`): the file.
        option (`str`): the option that named it, for the message.

    Raises:
        ValueError: if there is no such file.
    """
    if not path.exists():
        raise ValueError(f"{option}: {no_such('file', path)}")
    _check_regular(path, option)


def check_new_file(path: Path, option: str) -> None:
    """Refuse the name of a file that could not be written, before the work that would be lost.

    Args:
        path (`Path`): the file.
        option (`str`): the option that named it, for the message.

    Raises:
        ValueError: if its folder does not exist or cannot be written to, or the name is that of a folder or a device.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{option}: {no_such('folder', path.parent)}")
    if path.exists():
        _check_regular(path, option)
    if not os.access(path.resolve().parent, os.W_OK):
        raise ValueError(f"{option}: the folder of {path} cannot be written to")


def _check_regular(path: Path, option: str) -> None:
    if not path.is_file():
        raise ValueError(f"{option}: {path} is {'a folder' if path.is_dir() else 'no regular file'}; give a file")


def name_of(model: str) -> str:
    """Return the name under which the results of a model are kept: its folder's, its file's, or its repository's."""
    path = Path(model)
    if not path.exists():
        return model
    return path.resolve().stem if path.is_file() else path.resolve().name


def nearest_path(path: str | os.PathLike) -> Path | None:
    """Return the path that exists and differs from `path` in one similar name, or `None`."""
    path = Path(path)
    for parent in path.parents:
        if os.path.isdir(parent):
            name, *rest = path.relative_to(parent).parts
            try:
                names = os.listdir(parent)
            except OSError:
                return None
            similar = difflib.get_close_matches(name, names)
            found = (parent.joinpath(other, *rest) for other in similar)
            return next((other for other in found if other.exists()), None)
    return None


def find_model(name: str | os.PathLike) -> Path | None:
    """Return the folder that a model's name stands for, or `None` if that is a repository on the Hub.

    A name that can only be a folder's is refused without asking the Hub. Otherwise the Hub is asked once, unless the
    repository was downloaded before: the loaders of transformers would ask for many files, each several times, and
    then report a fault of the network.

    Args:
        name (`str` or `os.PathLike`): a folder, or a repository on the Hub.

    Raises:
        OSError: if there is neither; the message has the nearest name that exists here.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = os.fspath(name)
    if os.path.isdir(name):
        return Path(name)
    if os.path.exists(name):
        raise OSError(f"{name} is a file; give the folder of a model")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise OSError(no_such("folder", name)) from error
    _check_repository(name)
    return None


def _check_repository(name: str) -> None:
    """Refuse a repository that is neither in the cache nor on the Hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if any(isinstance(try_to_load_from_cache(name, file), str) for file in DESCRIPTIONS):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, DESCRIPTIONS[0]))
        return
    except EntryNotFoundError:
        # a repository without this file
        return
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        missing = "the Hub has no repository of this name that you may read"
    except Exception as error:
        # the HTTP library's own exceptions, which huggingface_hub has changed once already
        missing = f"the Hub cannot be asked for a repository of this name ({error})"
    raise OSError(f"{no_such('folder', name)}; {missing}")
