"""Runs a recipe: from one YAML file to a trained model in a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..files import write_text
from ..loading import check_resumable
from ..models import family_of
from ..text_parts import decoder_config
from .data import load_training_data
from .feedback_run import build_feedback_model, check_feedback_model, feedback_trainer, merge_lora
from .hierarchical_run import build_hierarchical_model, check_hierarchical_model, hierarchical_trainer
from .looped_run import build_model, check_model, looped_trainer
from .recipe import Recipe
from .sleep_run import build_sleep_model, check_sleep_model, sleep_trainer


RECIPE_COPY = "recipe.yaml"
# by model.family: what refuses a section `model`, what builds the model, and what trains it
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "looped": (check_model, build_model, looped_trainer),
    "feedback": (check_feedback_model, build_feedback_model, feedback_trainer),
    "sleep": (check_sleep_model, build_sleep_model, sleep_trainer),
    "hierarchical": (check_hierarchical_model, build_hierarchical_model, hierarchical_trainer),
}


@dataclass
class RunResult:
    """What a run came to.

    Attributes:
        output_dir: The folder with the model, the tokenizer and a copy of the recipe.
        num_parameters: Parameters of the model, without those of an adapter.
        train_loss: Mean training loss.
        eval_loss: Loss on the held-back rows, of a looped model at its `config.num_loops`; `None` without evaluation.
        eval_metrics: All that evaluation came to.
    """

    output_dir: str
    num_parameters: int
    train_loss: float
    eval_loss: float | None
    eval_metrics: dict[str, float] = field(default_factory=dict)


def run_recipe(recipe: Recipe) -> RunResult:
    """Trains the model of `recipe`, evaluates it, and saves it with its tokenizer and a copy of the recipe.

    Every rank of a distributed launch calls this.

    Raises:
        ValueError: The output folder is not empty and the run does not resume, it resumes where there is no
            checkpoint, or a section describes something that cannot be built.
    """
    # of whichever family
    args: Any = recipe.training
    section: Any = recipe.model
    check, build, make_trainer = FAMILIES[section.family]
    resume = args.resume_from_checkpoint or False
    check_output_dir(recipe.output_dir, resuming=bool(resume))
    check_pretrained(section)
    check(section)
    # no rank may write into the folder before all have looked into it
    PartialState().wait_for_everyone()
    set_seed(args.seed)
    with args.main_process_first(desc="loading data"):
        data = load_training_data(recipe.data, default_tokenizer=section.pretrained, seed=args.seed)
    # a puzzle model is made for rows of one length
    sizes = {"num_cells": len(next(iter(data.train_dataset))["input_ids"])} if section.family == "hierarchical" else {}
    model = build(section, data.tokenizer, **sizes)
    num_parameters = model.num_parameters()
    trainer = make_trainer(model, section, args, data)
    if resume:
        checkpoint = get_last_checkpoint(recipe.output_dir) if resume is True else resume
        # where there is none, the trainer says so
        if checkpoint is not None and Path(checkpoint).is_dir():
            check_resumable(trainer.model, checkpoint)
    train_loss = trainer.train(resume_from_checkpoint=resume).training_loss
    metrics = trainer.evaluate() if data.eval_dataset is not None else {}
    # `Trainer` turns the cache off for training; whoever loads the model wants it
    model.config.use_cache = True
    merge_lora(trainer)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        _write_recipe(recipe, Path(recipe.output_dir))
    return RunResult(recipe.output_dir, num_parameters, train_loss, metrics.get("eval_loss"), metrics)


def check_pretrained(section: Any) -> None:
    """Refuses to make a model of one family out of one of another, before its weights are read.

    Raises:
        ValueError: Names both families.
    """
    # a puzzle model is asked for by the family that it belongs to
    if section.pretrained is None or section.family == "hierarchical":
        return
    family = family_of(decoder_config(section.pretrained))
    if family is not None and family.name != section.family:
        raise ValueError(
            f"model.pretrained must be a plain model or one of model.family={section.family}, got "
            f"{section.pretrained}, a {family.name} model"
        )


def check_output_dir(output_dir: str, resuming: bool) -> None:
    """Refuses to train into a folder that holds something else.

    Raises:
        ValueError: The folder is not empty and the run does not resume; or it resumes and there is no such folder.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"training.output_dir must be a folder, got the file {output_dir}")
    holds_files = folder.is_dir() and any(folder.iterdir())
    if holds_files and not resuming:
        raise ValueError(
            f"training.output_dir is not empty: {output_dir}; choose another folder, or resume from its last "
            "checkpoint with --resume"
        )
    if resuming and not holds_files:
        raise ValueError(f"training.output_dir holds no checkpoint to resume from: {output_dir}")


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    write_text(folder / RECIPE_COPY, yaml.safe_dump(recipe.source, sort_keys=False))
