"""`hf-loop push`: upload a model folder to the Hub."""

from glob import escape
from pathlib import Path
from typing import Annotated

import typer

from ..paths import no_such


def push(
    folder: Annotated[Path, typer.Argument(help="A model folder that has its card (see `hf-loop card`).")],
    repo_id: Annotated[str, typer.Argument(help="The repository, NAME or OWNER/NAME; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload with hf-loop",
) -> None:
    """Upload a model folder to the Hub: weights, configuration, tokenizer, code and card, and nothing else in it."""
    if not folder.is_dir():
        raise ValueError(no_such("folder", folder))
    for name, reason in (("config.json", "it is not a model folder"), ("README.md", "write it with `hf-loop card`")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; {reason}")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no weights (*.safetensors)")

    from huggingface_hub import HfApi

    from .. import register
    from ..loading import check_model_folder
    from ..published_files import check_published, published_files

    register()
    check_published(folder)
    check_model_folder(folder)
    api = HfApi()
    repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
    api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message=message,
        allow_patterns=[escape(name) for name in published_files(folder)],
    )
    print(repo)
