"""Runs a recipe: from one YAML file to a trained model in a folder."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..layer_ranges import plan_layers
from ..models import LoopedConfig, LoopedForCausalLM
from ..retrofitting import retrofit
from ..retrofitting.layer_selection import select_layers
from .arguments import LoopTrainingArguments
from .data import load_training_data
from .recipe import ModelSection, Recipe, check_keys
from .trainer import LoopTrainer


RECIPE_COPY = "recipe.yaml"
DEFAULT_NUM_LOOPS = 4


@dataclass
class RunResult:
    """What a run came to.

    Attributes:
        output_dir: The folder with the model, the tokenizer and a copy of the recipe.
        num_parameters: Parameters of the model.
        train_loss: Mean training loss.
        eval_loss: Loss on the held-back rows at the model's `config.num_loops`; `None` without evaluation.
    """

    output_dir: str
    num_parameters: int
    train_loss: float
    eval_loss: float | None


def run_recipe(recipe: Recipe) -> RunResult:
    """Trains the model of `recipe`, evaluates it, and saves it with its tokenizer and a copy of the recipe.

    Every rank of a distributed launch calls this.

    Raises:
        ValueError: The output folder is not empty and the run does not resume, it resumes where there is no
            checkpoint, or a section describes something that cannot be built.
    """
    args = recipe.training
    resume = args.resume_from_checkpoint or False
    check_output_dir(recipe.output_dir, resuming=bool(resume))
    check_model(recipe.model)
    # no rank may write into the folder before all have looked into it
    PartialState().wait_for_everyone()
    set_seed(args.seed)
    with args.main_process_first(desc="loading data"):
        data = load_training_data(recipe.data, default_tokenizer=recipe.model.pretrained, seed=args.seed)
    model = build_model(recipe.model, data.tokenizer)
    num_parameters = model.num_parameters()
    trainer = LoopTrainer(
        model=model,
        args=args,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
        teacher=load_teacher(str(recipe.model.pretrained), args) if args.distillation_weight > 0 else None,
    )
    train_loss = trainer.train(resume_from_checkpoint=resume).training_loss
    eval_loss = trainer.evaluate()["eval_loss"] if data.eval_dataset is not None else None
    # `Trainer` turns the cache off for training; whoever loads the model wants it
    model.config.use_cache = True
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        _write_recipe(recipe, Path(recipe.output_dir))
    return RunResult(recipe.output_dir, num_parameters, train_loss, eval_loss)


def build_model(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, or a field is refused by the config.
    """
    if section.pretrained is not None:
        # in single precision whatever the stored type: small updates vanish in 16-bit weights
        model = AutoModelForCausalLM.from_pretrained(section.pretrained, dtype=torch.float32)
        if not _is_looped(model.config):
            model = retrofit(model, **_layout(section))
        elif section.num_loops is not None:
            model.config.num_loops = section.num_loops
    else:
        from_tokenizer = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        backbone_config = _backbone_config({**from_tokenizer, **(section.backbone or {})})
        model = LoopedForCausalLM(LoopedConfig(backbone_config=backbone_config, **_layout(section)))
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"the vocabulary of the model must hold the tokenizer's {len(tokenizer)} tokens, "
            f"got vocab_size={model.config.vocab_size}"
        )
    return model


def load_teacher(pretrained: str, args: LoopTrainingArguments) -> PreTrainedModel:
    """Loads the model that the student was before its layers were looped.

    Its weights do not train, so they take the type that the training computes in.
    """
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype)


def check_model(section: ModelSection) -> None:
    """Refuses a section `model` that no config accepts, before any data is loaded for it.

    Raises:
        ValueError: Names the field.
    """
    layout = _layout(section)
    if section.pretrained is not None:
        backbone_config = AutoConfig.from_pretrained(section.pretrained)
        if _is_looped(backbone_config):
            _refuse_layout(section)
            return
        core_layers, fold = layout.pop("core_layers", None), layout.pop("fold", None)
        num_prelude_layers, num_coda_layers = section.num_prelude_layers, section.num_coda_layers
        plan = plan_layers(backbone_config.num_hidden_layers, num_prelude_layers, core_layers, num_coda_layers)
        num_folds = layout["num_loops"] if fold is not None else 1
        if len(plan.core) % num_folds:
            raise ValueError(f"model.fold: {len(plan.core)} core layers cannot be shared by {num_folds} loops")
        kept_core = plan.core[: len(plan.core) // num_folds]
        backbone_config = select_layers(backbone_config, [*plan.prelude, *kept_core, *plan.coda])
        layout |= {"num_prelude_layers": len(plan.prelude), "num_coda_layers": len(plan.coda)}
    else:
        backbone_config = _backbone_config(section.backbone or {})
    LoopedConfig(backbone_config=backbone_config, **layout)


def _is_looped(config: PreTrainedConfig) -> bool:
    return hasattr(config, "num_loops")


def _refuse_layout(section: ModelSection) -> None:
    for item in fields(ModelSection):
        value = getattr(section, item.name)
        if item.name not in ("backbone", "pretrained", "num_loops") and value != item.default:
            raise ValueError(
                f"model.{item.name} cannot be chosen, got {value!r}: {section.pretrained} is a looped model already"
            )


def _layout(section: ModelSection) -> dict[str, Any]:
    others = ("backbone", "pretrained")
    given = {name: value for name, value in vars(section).items() if name not in others and value is not None}
    return {"num_loops": DEFAULT_NUM_LOOPS, **given}


def _backbone_config(backbone: dict[str, Any]) -> PreTrainedConfig:
    model_type = backbone["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model.backbone.model_type must be a model type of transformers, got {model_type!r}")
    config_class = CONFIG_MAPPING[model_type]
    # configs keep unknown fields as plain attributes, so that a misspelt one would silently mean the default
    known = [item.name for item in fields(config_class)] + [*config_class.attribute_map, "model_type"]
    check_keys("model.backbone", backbone, known)
    return config_class(**{key: backbone[key] for key in backbone if key != "model_type"})


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
    # written beside and renamed: a reader never sees half a file
    temporary = folder / f"{RECIPE_COPY}.tmp"
    temporary.write_text(yaml.safe_dump(recipe.source, sort_keys=False), encoding="utf-8")
    os.replace(temporary, folder / RECIPE_COPY)
