"""What a recipe trains where its family is `feedback`: a stock `Trainer`, with random state passing and LoRA."""

import os
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ..models import FeedbackConfig, FeedbackForCausalLM
from ..retrofitting import retrofit
from .data import TrainingData
from .new_backbone import check_vocabulary, new_backbone_config
from .sections import FeedbackSection
from .state_passing import RandomStatePassing, find_feedback_model


# beside an adapter in a checkpoint: the vectors that the memory starts from, which are no part of it
VECTORS_FILE, VECTORS_NAME = "feedback_embedding.safetensors", "feedback_embedding"


def check_feedback_model(section: FeedbackSection) -> None:
    """Refuses a section `model` of a feedback model that no config accepts, before any data is loaded for it.

    Raises:
        ValueError: Names the field.
    """
    if section.pretrained is None:
        backbone_config = new_backbone_config(section.backbone or {})
    else:
        backbone_config = AutoConfig.from_pretrained(section.pretrained)
        if _is_feedback(backbone_config):
            backbone_config = backbone_config.backbone_config
    FeedbackConfig(backbone_config=backbone_config, **section.feedback)


def build_feedback_model(section: FeedbackSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the feedback model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, or a field is refused by the config.
    """
    if section.pretrained is None:
        backbone_config = new_backbone_config(section.backbone or {}, tokenizer)
        model = FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone_config, **section.feedback))
    else:
        # in single precision whatever the stored type: small updates vanish in 16-bit weights
        options: dict[str, Any] = {"dtype": torch.float32}
        if _is_feedback(AutoConfig.from_pretrained(section.pretrained)):
            model = AutoModelForCausalLM.from_pretrained(section.pretrained, **options, **section.feedback)
        else:
            base = AutoModelForCausalLM.from_pretrained(section.pretrained, **options)
            model = retrofit(base, "feedback", **section.feedback)
    check_vocabulary(model, tokenizer)
    return model


def feedback_trainer(
    model: PreTrainedModel, section: FeedbackSection, args: TrainingArguments, data: TrainingData
) -> Trainer:
    """The trainer of a recipe's feedback model; with `lora_rank`, its weights are frozen and get an adapter.

    Raises:
        ValueError: An adapter is to be trained on weights that are split over processes.
    """
    trained: Any = model
    callbacks: list[TrainerCallback] = [RandomStatePassing()]
    if section.lora_rank:
        trained = add_lora(model, section)
        callbacks.append(_MemoryVectors())
        _load_vectors(trained, args)
    trainer = Trainer(
        model=trained,
        args=args,
        train_dataset=cast(Any, data.train_dataset),
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
        callbacks=callbacks,
    )
    if section.lora_rank and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"model.lora_rank={section.lora_rank} needs whole weights in every process, to merge the adapter into "
            "them: launch with training/accelerate/ddp.yaml"
        )
    return trainer


def add_lora(model: PreTrainedModel, section: FeedbackSection) -> PeftModel:
    """Wraps `model` by PEFT with the adapter that `section` describes; the memory's first vectors train with it."""
    vectors = find_feedback_model(model).feedback_embedding
    trains_vectors = vectors is not None and vectors.requires_grad
    config = LoraConfig(
        r=section.lora_rank,
        lora_alpha=cast(int, section.lora_rank if section.lora_alpha is None else section.lora_alpha),
        target_modules=section.lora_target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )
    wrapped = cast(PeftModel, get_peft_model(model, config))
    if trains_vectors:
        vectors.requires_grad_(True)
    return wrapped


def merge_lora(trainer: Trainer) -> None:
    """Puts the adapter of a trained model, where it has one, into its weights."""
    if isinstance(trainer.model, PeftModel):
        trainer.model = trainer.model.merge_and_unload()


class _MemoryVectors(TrainerCallback):
    """Writes the vectors that the memory starts from beside the adapter, since PEFT knows modules only."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        vectors = find_feedback_model(model).feedback_embedding
        if vectors is None or not args.should_save:
            return
        folder = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        temporary = folder / f"{VECTORS_FILE}.tmp"
        save_file({VECTORS_NAME: vectors.detach().cpu().contiguous()}, temporary)
        os.replace(temporary, folder / VECTORS_FILE)


def _load_vectors(model: torch.nn.Module, args: TrainingArguments) -> None:
    """Restores the vectors that the checkpoint to resume from has, since the trainer restores the adapter only."""
    resume: Any = args.resume_from_checkpoint
    folder = get_last_checkpoint(str(args.output_dir)) if resume is True else resume
    vectors = find_feedback_model(model).feedback_embedding
    if folder and vectors is not None:
        with torch.no_grad():
            vectors.copy_(load_file(Path(folder, VECTORS_FILE))[VECTORS_NAME])


def _is_feedback(config: Any) -> bool:
    return config.model_type == FeedbackConfig.model_type
