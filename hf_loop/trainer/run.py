"""Run a recipe: from one YAML file to a trained model in a folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..files import write_text
from ..loading import check_finite, check_resumable
from .data import load_training_data
from .family_model import build_model, check_block_size, check_model
from .family_trainer import make_trainer, merge_lora
from .recipe import Recipe


RECIPE_COPY = "recipe.yaml"


@dataclass
class RunResult:
    """What a run came to.

    Args:
        output_dir (`str`): the folder with the model, the tokenizer and a copy of the recipe.
        num_parameters (`int`): parameters of the model, without those of an adapter.
        train_loss (`float`): mean training loss.
        eval_loss (`float`, *optional*): loss on the held-back rows, of a looped model at its `config.num_loops`; none
            without evaluation.
        eval_metrics (`dict`): all that evaluation came to.
    """

    output_dir: str
    num_parameters: int
    train_loss: float
    eval_loss: float | None
    eval_metrics: dict[str, float] = field(default_factory=dict)


def run_recipe(recipe: Recipe) -> RunResult:
    """Train the model of a recipe, evaluate it, and save it with its tokenizer and a copy of the recipe.

    Every rank of a distributed launch calls this.

    Args:
        recipe (`Recipe`): the recipe.

    Raises:
        ValueError: the output folder is not empty and the run does not resume, it resumes where there is no
            checkpoint, a section describes something that cannot be built, or training made weights that are no finite
            numbers, of which no final model is saved.
    """
    # of whichever class
    args: Any = recipe.training
    section = recipe.model
    resume = args.resume_from_checkpoint or False
    check_output_dir(recipe.output_dir, resuming=bool(resume))
    check_model(section)
    check_block_size(section, recipe.data)
    # no rank may write into the folder before all have looked into it
    PartialState().wait_for_everyone()
    set_seed(args.seed)
    with args.main_process_first(desc="loading data"):
        data = load_training_data(recipe.data, default_tokenizer=section.pretrained, seed=args.seed)
    # a puzzle model is made for rows of one length
    sizes = {"num_cells": len(next(iter(data.train_dataset))["input_ids"])} if section.record.causal is None else {}
    model = build_model(section, data.tokenizer, **sizes)
    num_parameters = model.num_parameters()
    trainer = make_trainer(model, recipe, data)
    if resume:
        # where there is none, the trainer says so
        if checkpoint is not None and Path(checkpoint).is_dir():
            check_resumable(trainer.model, checkpoint)
    train_loss = trainer.train(resume_from_checkpoint=resume).training_loss
    check_finite(model, "the trained model")
    metrics = trainer.evaluate() if data.eval_dataset is not None else {}
    # `Trainer` turns the cache off for training; whoever loads the model wants it
    model.config.use_cache = True
    merge_lora(trainer)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        _write_recipe(recipe, Path(recipe.output_dir))
    return RunResult(recipe.output_dir, num_parameters, train_loss, metrics.get("eval_loss"), metrics)


def check_output_dir(output_dir: str, resuming: bool) -> None:
    """Refuse to train into a folder that holds something else.

    Args:
        output_dir (`str`): the folder.
        resuming (`bool`): whether the run goes on from a checkpoint in it.

    Raises:
        ValueError: the folder is not empty and the run does not resume; or it resumes and there is no such folder.
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
