"""Run a recipe: from one YAML file to a trained model in a folder."""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..files import whole_folder, write_text
from ..loading import check_finite
from .checkpoint_trainer import run_lock
from .checkpoints import describe_changes
from .data import load_training_data
from .family_model import build_model, check_block_size, check_model
from .family_trainer import make_trainer, merge_lora
from .recipe import Recipe
from .tensor_state import CheckpointCallback


logger = logging.get_logger(__name__)

RECIPE_COPY = "recipe.yaml"
# where things are, which may move between a run and the one that resumes it
PLACES = {"pretrained", "files", "dataset", "tokenizer"}
# arguments of training that change neither weights nor losses
FREE_ARGUMENTS = (
    "output_dir",
    "resume_",
    "logging_",
    "save_",
    "report_to",
    "disable_tqdm",
    "push_to_hub",
    "hub_",
    "run_",
)


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


def run_recipe(recipe: Recipe, quiet: bool = False) -> RunResult:
    """Train the model of a recipe, evaluate it, and save it with its tokenizer and a copy of the recipe.

    Every rank of a distributed launch calls this.

    Args:
        recipe (`Recipe`): the recipe.
        quiet (`bool`, *optional*, defaults to `False`): whether to show neither progress nor what is logged.

    Raises:
        ValueError: another process trains into the output folder, it is not empty and the run does not resume, it
            resumes where there is no whole checkpoint or from one of another recipe, a section describes something
            that cannot be built, or training made weights that are no finite numbers, of which no final model is
            saved.
    """
    with run_lock(recipe.output_dir):
        return _run(recipe, quiet)


def _run(recipe: Recipe, quiet: bool) -> RunResult:
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
    trainer.add_callback(RecipeKeeper(recipe))
    if quiet:
        # one of the two is there
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
    train_loss = trainer.train(resume_from_checkpoint=resume).training_loss
    if resume:
        # `Trainer` has the mean of the steps since it resumed
        train_loss = _mean_loss(trainer.state.log_history, train_loss)
    check_finite(model, "the trained model")
    metrics = trainer.evaluate() if data.eval_dataset is not None else {}
    # `Trainer` turns the cache off for training; whoever loads the model wants it
    model.config.use_cache = True
    merge_lora(trainer)
    _save(trainer, recipe)
    return RunResult(recipe.output_dir, num_parameters, train_loss, metrics.get("eval_loss"), metrics)


def _mean_loss(log_history: list[dict[str, float]], default: float) -> float:
    """The mean loss of the steps that were logged, each entry the mean since the last."""
    entries = [(int(entry["step"]), entry["loss"]) for entry in log_history if "loss" in entry]
    if not entries:
        return default
    steps = [0, *(step for step, _ in entries)]
    total = sum(loss * (step - last) for (step, loss), last in zip(entries, steps[:-1], strict=True))
    return total / steps[-1]


def _save(trainer: Trainer, recipe: Recipe) -> None:
    """Save the model with the state of the trainer and the recipe, whole or not at all."""
    if not trainer.args.should_save:
        trainer.save_model()
        return
    with whole_folder(Path(recipe.output_dir)) as folder:
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if trainer.is_world_process_zero():
            _write_recipe(recipe, folder)
        trainer.save_model(str(folder))


class RecipeKeeper(CheckpointCallback):
    """Writes the recipe into every checkpoint, and compares it with that of the checkpoint to resume from.

    Args:
        recipe (`Recipe`): the recipe of the run.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def write(self, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        if args.should_save:
            _write_recipe(self.recipe, folder)

    def check(self, folder: Path) -> None:
        """Refuse a checkpoint of another model or other data, and say which arguments of training have changed.

        Raises:
            ValueError: if a key of `model` or `data` has another value, other than where something lies.
        """
        if not (folder / RECIPE_COPY).is_file():
            return
        # not by `load_recipe`: making arguments of training resets what accelerate keeps of the process
        stored = yaml.safe_load((folder / RECIPE_COPY).read_text(encoding="utf-8"))
        sections = {name: type(getattr(self.recipe, name)) for name in ("model", "data", "training")}
        was, now = (
            {name: _with_defaults(section, source[name]) for name, section in sections.items()}
            for source in (stored, self.recipe.source)
        )
        changes = [
            change
            for name in ("model", "data")
            for change in describe_changes(was[name], now[name], PLACES, f"{name}.")
        ]
        if changes:
            raise ValueError(
                f"the recipe is not the one of {folder}: {'; '.join(changes)}. Give the old values back, or begin a "
                "new run with model.pretrained set to the checkpoint"
            )
        was, now = (
            {name: value for name, value in values["training"].items() if not name.startswith(FREE_ARGUMENTS)}
            for values in (was, now)
        )
        if changes := describe_changes(was, now, prefix="training."):
            logger.warning(f"The run goes on from {folder} with other arguments: {'; '.join(changes)}")


def _with_defaults(section: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a section of a recipe, with the defaults of the keys that it does not have."""
    defaults = {
        key.name: key.default_factory() if key.default_factory is not MISSING else key.default
        for key in fields(section)
    }
    return {**defaults, **values}


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
        raise ValueError(
            f"training.output_dir holds no checkpoint to resume from: {output_dir}; begin the run without --resume"
        )


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    write_text(folder / RECIPE_COPY, yaml.safe_dump(recipe.source, sort_keys=False))
