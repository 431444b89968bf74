"""What a recipe trains where its family is `feedback`: a stock `Trainer`, with random state passing and LoRA."""

from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ..models import FeedbackConfig, FeedbackForCausalLM
from ..text_parts import decoder_config
from .data import TrainingData
from .family_model import build_family_model
from .new_backbone import new_backbone_config
from .sections import FeedbackSection
from .state_passing import RandomStatePassing, find_feedback_model


def check_feedback_model(section: FeedbackSection) -> None:
    """Refuses a section `model` of a feedback model that no config accepts, before any data is loaded for it.

    Raises:
        ValueError: Names the field.
    """
    if section.pretrained is None:
        backbone_config = new_backbone_config(section.backbone or {})
    else:
        backbone_config = decoder_config(section.pretrained)
        if _is_feedback(backbone_config):
            backbone_config = backbone_config.backbone_config
    FeedbackConfig(backbone_config=backbone_config, **section.feedback)


def build_feedback_model(section: FeedbackSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the feedback model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, a field is refused by the config, or the
            tensors of a pretrained model are not those of its configuration.
    """
    return build_family_model(FeedbackForCausalLM, section, section.feedback, tokenizer)


def feedback_trainer(
    model: PreTrainedModel, section: FeedbackSection, args: TrainingArguments, data: TrainingData
) -> Trainer:
    """The trainer of a recipe's feedback model; with `lora_rank`, its weights are frozen and get an adapter.

    Raises:
        ValueError: An adapter is to be trained on weights that are split over processes.
    """
    trained: Any = add_lora(model, section) if section.lora_rank else model
    trainer = Trainer(
        model=trained,
        args=args,
        train_dataset=cast(Any, data.train_dataset),
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
        callbacks=[RandomStatePassing()],
    )
    if section.lora_rank and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"model.lora_rank={section.lora_rank} needs whole weights in every process, to merge the adapter into "
            "them: launch with training/accelerate/ddp.yaml"
        )
    return trainer


def add_lora(model: PreTrainedModel, section: FeedbackSection) -> PeftModel:
    """Wraps `model` by PEFT with the adapter that `section` describes; the memory's first vectors train with it."""
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
    """Puts the adapter of a trained model, where it has one, into its weights."""
    if isinstance(trainer.model, PeftModel):
        trainer.model = trainer.model.merge_and_unload()


def _is_feedback(config: Any) -> bool:
    return config.model_type == FeedbackConfig.model_type
