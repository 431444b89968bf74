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
        path (`str` or `os.PathLike`): what does not exist.
    """
    nearest = nearest_path(path)
    return f"there is no {kind} {os.fspath(path)}" + (f"; did you mean {nearest}?" if nearest is not None else "")


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
