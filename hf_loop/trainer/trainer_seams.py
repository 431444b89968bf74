"""Every touch of what transformers' `Trainer` does not promise to keep, each a named function."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import copy
from functools import partial
from glob import escape
from typing import Any

import transformers.trainer
from transformers.trainer import TRAINING_ARGS_NAME


@contextmanager
def uploads_only(files: Callable[[str], list[str]]) -> Generator[None]:
    """Let `Trainer` upload a list of files of its output folder inside the `with` block, and not the whole folder.

    A checkpoint, which `hub_strategy` may ask for, goes whole, but without the arguments of the run and its recipe:
    they name paths of this machine.

    Args:
        files (`Callable`): from a folder to the files to upload.
    """
    module: Any = transformers.trainer
    make_api = module.hf_api

    def upload(upload_folder: Callable[..., Any], folder_path: str, **options: Any) -> Any:
        if options.get("path_in_repo"):
            options["ignore_patterns"] = [*options.get("ignore_patterns", []), TRAINING_ARGS_NAME, "recipe.yaml"]
        else:
            options["allow_patterns"] = [escape(name) for name in files(folder_path)]
        return upload_folder(folder_path=folder_path, **options)

    def make_limited_api() -> Any:
        api: Any = copy(make_api())
        api.upload_folder = partial(upload, api.upload_folder)
        return api

    module.hf_api = make_limited_api
    try:
        yield
    finally:
        module.hf_api = make_api
