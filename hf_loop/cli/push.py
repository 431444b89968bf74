"""`hf-loop push`: upload a model folder to the Hub, as a model or as a Space with its page."""

from glob import escape
from pathlib import Path
from typing import Annotated, Any

import typer

from ..paths import no_such


def push(
    folder: Annotated[Path, typer.Argument(help="A model folder that has its card (see `hf-loop card`).")],
    repo_id: Annotated[str, typer.Argument(help="The repository, NAME or OWNER/NAME; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    space: Annotated[
        bool,
        typer.Option(
            "--space", help="Upload a Space instead: the page of `hf-loop demo`, with the model and the code."
        ),
    ] = False,
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
    if space:
        print(_push_space(api, folder, repo_id, private, message))
        return
    repo = api.create_repo(repo_id, private=private or None, exist_ok=True)
    api.upload_folder(
        repo_id=repo.repo_id,
        folder_path=folder,
        commit_message=message,
        allow_patterns=[escape(name) for name in published_files(folder)],
    )
    print(repo)


def _push_space(api: Any, folder: Path, repo_id: str, private: bool, message: str) -> Any:
    """Upload a Space in one commit, and return its address. What an earlier upload had besides is deleted in it."""
    from huggingface_hub import CommitOperationDelete

    from ..demo.space import CODE_FOLDER, MODEL_FOLDER, space_files
    from .demo import build_page

    # a Space that could not open its page is none
    build_page(str(folder))
    operations: list[Any] = [*space_files(folder, repo_id)]
    repo = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    written = {operation.path_in_repo for operation in operations}
    for name in api.list_repo_files(repo.repo_id, repo_type="space"):
        if name.startswith((f"{CODE_FOLDER}/", f"{MODEL_FOLDER}/")) and name not in written:
            operations.append(CommitOperationDelete(name))
    api.create_commit(repo.repo_id, operations, commit_message=message, repo_type="space")
    return repo
