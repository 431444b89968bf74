"""The card of a folder, and that of a model that is pushed with `model.push_to_hub` or by a trainer."""

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from ..analysis.inspection_results import INSPECTION_FILE
from .bench_results import BENCH_FILE
from .card_template import CARD_FILE, CARD_MARKER
from .model_card import ModelCardFacts, family_config, write_model_card
from .puzzle_card import PUZZLE_RESULTS_FILE, write_puzzle_card_again
from .results import RESULTS_FILE, Results


CONFIG_FILE = "config.json"
# what marks a card as generated: by `model.push_to_hub` for a repository without one, by `Trainer.push_to_hub`, by us
STUB_SENTENCE = "This model card has been automatically generated."
TRAINER_SENTENCE = "This model card has been generated automatically according to the information the Trainer had"
GENERATED = (STUB_SENTENCE, TRAINER_SENTENCE, CARD_MARKER)


def write_card_before_push(model: PreTrainedModel, folder: str | Path, repo_id: str) -> None:
    """Write hf_loop's card in place of a generated card (transformers' stub, Trainer's, or our own) or of none.

    A card that a person wrote is left alone. Tags, and what the Trainer states about the training, are carried over.
    The measurements in the folder that the model was loaded from come along only if the weights are still the same,
    byte for byte: after further training they would describe another model.

    Args:
        model (`PreTrainedModel`): the model.
        folder (`str` or `Path`): the folder that it was saved to.
        repo_id (`str`): the repository that the card will stand in.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        # an adapter by itself, whose card PEFT writes
        return
    card = _card_of(folder)
    if card is not None and not _is_generated(card):
        return
    is_puzzle = family_config(folder).kind == "puzzle"
    for name in (PUZZLE_RESULTS_FILE,) if is_puzzle else (RESULTS_FILE, BENCH_FILE, INSPECTION_FILE):
        _take_along(name, model, folder)
    if card is None:
        write_card(folder, repo_id)
        return
    stored = Results.load(folder) if (folder / RESULTS_FILE).is_file() else Results()
    write_card(
        folder,
        repo_id,
        license=stored.license or card.data.license,
        tags=card.data.tags or [],
        training_summary=_training_summary(card.text),
    )


def write_card(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    license: str | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = (),
    training_summary: str | None = None,
) -> Path:
    """Write the card of a folder, whatever family its model is of.

    Args:
        folder (`str` or `Path`): the folder that `save_pretrained` wrote.
        repo_id (`str`, *optional*): the repository that the card will stand in; defaults to the folder's name.
        license (`str`, *optional*): the licence of the weights, by default that of the results in the folder.
        base_model (`str`, *optional*): the checkpoint that the model came from, by default that of the results.
        tags (`Sequence[str]`): tags for the Hub, besides those of the family.
        training_summary (`str`, *optional*): hyperparameters and losses, as markdown.

    Returns:
        `Path`: the card's path.

    Raises:
        ValueError: if the folder holds no model of a family, or its results are damaged.
    """
    folder = Path(folder)
    if family_config(folder).kind == "puzzle":
        return write_puzzle_card_again(
            folder,
            repo_id or folder.resolve().name,
            license=license,
            base_model=base_model,
            tags=tags,
            training_summary=training_summary,
        )
    facts = ModelCardFacts.from_folder(folder, repo_id=repo_id)
    facts.results.license = license or facts.results.license
    facts.results.base_model = base_model or facts.results.base_model
    facts.tags += [tag for tag in tags if tag not in facts.tags]
    facts.training_summary = training_summary
    return write_model_card(folder, facts)


def _card_of(folder: Path) -> Any:
    path = folder / CARD_FILE
    return ModelCard.load(path) if path.is_file() else None


def _is_generated(card: Any) -> bool:
    return any(sentence in card.text for sentence in GENERATED)


def _take_along(name: str, model: PreTrainedModel, folder: Path) -> None:
    """Copy a file of measurements from where the model was loaded, if it has not been trained since."""
    if not model.name_or_path:
        return
    path = Path(model.name_or_path) / name
    if path.is_file() and _same_weights(path.parent, folder):
        shutil.copyfile(path, folder / name)


def _training_summary(text: str) -> str | None:
    """Return the hyperparameters and the table of losses from the Trainer's card."""
    if TRAINER_SENTENCE not in text:
        return None
    summary = text.partition("### Training hyperparameters\n")[2].partition("### Framework versions\n")[0]
    return summary.strip() or None


def _same_weights(folder: Path, other: Path) -> bool:
    """Compare the weights of two folders byte for byte. One folder with itself counts as different."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names or folder.samefile(other) or names != sorted(path.name for path in other.glob("*.safetensors")):
        return False
    return all(filecmp.cmp(folder / name, other / name, shallow=False) for name in names)
