"""The trainer of a recipe, by what its family has: loops, puzzles in segments, or neither."""

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, Trainer, default_data_collator

from ..files import fault_named
from ..text_parts import load_decoder
from .card_trainer import CardTrainer
from .data import TrainingData
from .deep_supervision import DeepSupervisionTrainer
from .recipe import Recipe
from .state_passing import RandomStatePassing, find_feedback_model
from .trainer import LoopTrainer


def make_trainer(model: PreTrainedModel, recipe: Recipe, data: TrainingData) -> Trainer:
    """The trainer of a recipe's model; with `lora_rank`, its weights are frozen and get an adapter.

    Args:
        model (`PreTrainedModel`): the model.
        recipe (`Recipe`): the recipe.
        data (`TrainingData`): what its section `data` came to.

    Raises:
        ValueError: an adapter is to be trained on weights that are split over processes.
    """
    record, args = recipe.model.record, cast(Any, recipe.training)
    parts: dict[str, Any] = {
        "model": add_lora(model, recipe) if recipe.model.lora_rank else model,
        "args": args,
        "train_dataset": data.train_dataset,
        "eval_dataset": data.eval_dataset,
        # Trainer's own choice would ask the tokenizer for a padding token, which rows of one length do not need
        "data_collator": data.collator or default_data_collator,
        "processing_class": data.tokenizer,
    }
    trainer_class: type[CardTrainer] = CardTrainer
    if record.causal is None:
        trainer_class = DeepSupervisionTrainer
    elif record.loops:
        trainer_class = LoopTrainer
        parts["teacher"] = load_teacher(recipe) if args.distillation_weight > 0 else None
    elif "random_state_passing" in record.own_fields:
        parts["callbacks"] = [RandomStatePassing()]
    # accelerate and transformers read some arguments here only
    with fault_named("training"):
        trainer = trainer_class(**parts)
    if recipe.model.lora_rank and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"model.lora_rank={recipe.model.lora_rank} needs whole weights in every process, to merge the adapter "
            "into them: launch with training/accelerate/ddp.yaml"
        )
    return trainer


def load_teacher(recipe: Recipe) -> PreTrainedModel:
    """Load the model that the student was before its layers were looped.

    Its weights do not train, so they take the type that the training computes in.

    Args:
        recipe (`Recipe`): the recipe.
    """
    args = recipe.training
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return load_decoder(str(recipe.model.pretrained), dtype=dtype)


def add_lora(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Wrap a feedback model by PEFT with the adapter of a recipe; the memory's first vectors train with it.

    Args:
        model (`PreTrainedModel`): the feedback model.
        recipe (`Recipe`): the recipe.
    """
    section = recipe.model
    embedding = find_feedback_model(model).feedback_embedding
    trains_embedding = embedding is not None and embedding.weight.requires_grad
    config = LoraConfig(
        r=section.lora_rank,
        lora_alpha=cast(int, section.lora_rank if section.lora_alpha is None else section.lora_alpha),
        target_modules=section.lora_target_modules or "all-linear",
        modules_to_save=["feedback_embedding"] if trains_embedding else None,
        task_type="CAUSAL_LM",
    )
    return cast(PeftModel, get_peft_model(model, config))


def merge_lora(trainer: Trainer) -> None:
    """Put the adapter of a trained model, where it has one, into its weights.

    Args:
        trainer (`Trainer`): the trainer, whose model is replaced.
    """
    if isinstance(trainer.model, PeftModel):
        trainer.model = trainer.model.merge_and_unload()
