"""Callbacks of `Trainer` that keep tensors from step to step, and so from one run to the one that resumes it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import atomic_path, read_safetensors
from .checkpoints import read_state


class CheckpointCallback(TrainerCallback):
    """A callback that keeps something in checkpoints; [`CheckpointTrainer`] calls its methods.

    Attributes:
        checkpoint (`str` or `Path`): the folder of the checkpoint that training resumes from.
        in_checkpoint_trainer (`bool`): whether a `CheckpointTrainer` is training, and not the stock `Trainer`.
    """

    checkpoint: str | Path | None = None
    in_checkpoint_trainer = False

    def write(self, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        """Write what is kept into a checkpoint that is not yet in its place; every process does."""

    def fault_of(self, folder: Path, args: TrainingArguments) -> str | None:
        """Say what this callback lacks in a checkpoint, to go on from it; `None` if nothing."""

    def check(self, folder: Path) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            ValueError: if the run cannot go on from it.
        """

    def abandon(self, model: Any) -> None:
        """Forget the run under way, which ended with an error."""


class TensorStateCallback(CheckpointCallback, ExportableState, ABC):
    """A callback whose tensors are written beside every checkpoint and found again when a run resumes.

    The state of the trainer, which is part of the checkpoint, keeps what proves that a file belongs to it: a file of
    another run or another step is never taken for it. Subclasses say what the tensors are (`tensors_to_save`), what
    the state keeps (`proof`) and whether a file is the one (`belongs`).

    Args:
        checkpoint (`str` or `Path`, *optional*): the folder of the checkpoint that training resumes from. Only needed
            where that is neither `args.resume_from_checkpoint` nor in `args.output_dir`, since a callback is not told.
    """

    # the file beside the checkpoint, and what it holds, in words
    file_name: str
    description: str

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.checkpoint = checkpoint

    @abstractmethod
    def tensors_to_save(self) -> dict[str, torch.Tensor] | None:
        """The tensors by name; `None` where there is nothing to write."""

    def file_facts(self, step: int) -> dict[str, str]:
        """What the file of a checkpoint says about itself."""
        return {}

    @abstractmethod
    def proof(self) -> dict[str, Any]:
        """What the state of the trainer keeps; `None` under every name where there are no tensors."""

    @abstractmethod
    def belongs(
        self, tensors: dict[str, torch.Tensor], facts: dict[str, str], proof: dict[str, Any], step: int
    ) -> bool:
        """Whether a file is that of the checkpoint of a step.

        Args:
            tensors (`dict[str, torch.Tensor]`): what it holds.
            facts (`dict[str, str]`): what it says about itself.
            proof (`dict[str, Any]`): what the checkpoint's state says.
            step (`int`): the optimizer step.
        """

    def arguments(self) -> dict[str, Any]:
        """The arguments that the state of the trainer names."""
        return {}

    def state(self) -> dict[str, Any]:
        """For the state of the trainer, in the form that transformers gives to callbacks."""
        return {"args": self.arguments(), "attributes": self.proof()}

    def saved_proof(self, state: TrainerState) -> dict[str, Any]:
        """The proof in the checkpoint that a run resumes from; empty in a new run, or if it had no such tensors."""
        saved = _callback_states(state).get(type(self).__name__) or {}
        proof = saved.get("attributes", {}) if state.global_step > 0 else {}
        return proof if any(proof.values()) else {}

    def read_saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, torch.Tensor]:
        """The tensors of the checkpoint that a run resumes from.

        Raises:
            ValueError: if they are in none of the folders where they can be; or if a file is damaged.
        """
        proof = self.saved_proof(state)
        folders = (self.checkpoint, args.resume_from_checkpoint, checkpoint_folder(args, state))
        paths = [Path(str(folder), self.file_name) for folder in folders if folder]
        for path in paths:
            if path.is_file():
                tensors, facts = read_safetensors(path)
                if self.belongs(tensors, facts, proof, state.global_step):
                    return tensors
        name = type(self).__name__
        raise ValueError(
            f"none of the folders {', '.join(str(path.parent) for path in paths)} holds the {self.description} of the "
            f"checkpoint of step {state.global_step}; name the checkpoint's folder with {name}(checkpoint=...)"
        )

    def enter(self, state: TrainerState) -> None:
        """Put this callback's entry into the state of a run that begins.

        `Trainer` updates the entry when it saves, and raises a `KeyError` where there is none, which is so in a run
        that resumes from a checkpoint without this callback.
        """
        _callback_states(state)[type(self).__name__] = self.state()

    def fault_of(self, folder: Path, args: TrainingArguments) -> str | None:
        state = read_state(folder)
        proof = self.saved_proof(state)
        if not proof:
            return None
        if not (folder / self.file_name).is_file():
            return f"it has no {self.file_name}"
        belongs = self.belongs(*read_safetensors(folder / self.file_name), proof, state.global_step)
        return None if belongs else f"{self.file_name} is of another run or step"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # the stock `Trainer` has no earlier moment
        folder = checkpoint_folder(args, state)
        if not self.in_checkpoint_trainer and folder.is_dir():
            self.write(folder, args, state)

    def write(self, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        tensors = self.tensors_to_save()
        if tensors is None or not args.should_save:
            return
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_path(folder / self.file_name) as temporary:
            save_file(tensors, temporary, self.file_facts(state.global_step))


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where `Trainer` writes the checkpoint of the step that it is at."""
    return Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def _callback_states(state: TrainerState) -> dict[str, Any]:
    # annotated as the list it is built from
    return cast(dict[str, Any], state.stateful_callbacks)
