"""Every touch of what transformers' `Trainer` does not promise to keep, each a named function."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import copy
from typing import Any

import transformers.trainer
from huggingface_hub import CommitOperationAdd


@contextmanager
def uploads_of(list_files: Callable[[str, str | None], list[CommitOperationAdd]]) -> Generator[None]:
    """Let `Trainer` upload a list of files inside the `with` block, and not its whole output folder.

    Args:
        list_files (`Callable`): from a folder, and where it goes in the repository, to the files to upload. A
            checkpoint, which `hub_strategy` may ask for, has a place of its own there; the model has `None`.
    """
    module: Any = transformers.trainer
    make_api = module.hf_api

    def make_listing_api() -> Any:
        api: Any = copy(make_api())

        def upload_folder(
            folder_path: str, path_in_repo: str | None = None, ignore_patterns: Any = None, **options: Any
        ) -> Any:
            return api.create_commit(operations=list_files(folder_path, path_in_repo), **options)

        api.upload_folder = upload_folder
        return api

    module.hf_api = make_listing_api
    try:
        yield
    finally:
        module.hf_api = make_api
