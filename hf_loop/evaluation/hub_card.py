"""The card of a model that is pushed with `model.push_to_hub` or by a trainer."""

import filecmp
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from .model_card import CARD_FILE, CARD_MARKER, ModelCardFacts, write_model_card
from .puzzle_card import PUZZLE_RESULTS_FILE, write_puzzle_card_again
from .results import RESULTS_FILE


CONFIG_FILE = "config.json"
# what marks a card as generated: by `model.push_to_hub` for a repository without one, by `Trainer.push_to_hub`, by us
STUB_SENTENCE = "This model card has been automatically generated."
TRAINER_SENTENCE = "This model card has been generated automatically according to the information the Trainer had"
GENERATED = (STUB_SENTENCE, TRAINER_SENTENCE, CARD_MARKER)


def write_card_before_push(model: PreTrainedModel, folder: str | Path, repo_id: str) -> None:
    """Write hf_loop's card in place of a generated card (transformers' stub, Trainer's, or our own) or of none.

    A card that a person wrote is left alone. Tags, and what the Trainer states about the training, are carried over.
    `results.json` of the folder that the model was loaded from comes along only if the weights are still the same,
    byte for byte: after further training it would describe another model.

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
    _take_along(RESULTS_FILE, model, folder)
    facts = ModelCardFacts.from_folder(folder, repo_id=repo_id)
    if card is not None:
        facts.tags += [tag for tag in card.data.tags or [] if tag not in facts.tags]
        facts.results.license = facts.results.license or card.data.license
        facts.training_summary = _training_summary(card.text)
    write_model_card(folder, facts)


def write_puzzle_card_before_push(model: PreTrainedModel, folder: str | Path, repo_id: str) -> None:
    """Do as [`write_card_before_push`] for a puzzle model, whose measurements are in `puzzle_results.json`.

    Without measurements, transformers' own card stays.

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
    _take_along(PUZZLE_RESULTS_FILE, model, folder)
    if (folder / PUZZLE_RESULTS_FILE).is_file():
        write_puzzle_card_again(folder, repo_id)


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
