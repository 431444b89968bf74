"""What a recipe trains where its family is `sleep`: a stock `Trainer`, since the model sleeps by itself."""

from typing import Any, cast

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from ..models import SleepConfig, SleepForCausalLM
from ..text_parts import decoder_config
from .data import TrainingData
from .family_model import build_family_model
from .new_backbone import new_backbone_config
from .sections import SleepSection


def check_sleep_model(section: SleepSection) -> None:
    """Refuses a section `model` of a sleep model that no config accepts, before any data is loaded for it.

    Raises:
        ValueError: Names the field.
    """
    if section.pretrained is None:
        SleepConfig(backbone_config=new_backbone_config(section.backbone or {}), **section.sleep)
        return
    config = decoder_config(section.pretrained)
    if not _is_sleep(config):
        SleepConfig(backbone_config=config, **section.sleep)
        return
    # the layers are there already: what they are cannot be chosen any more
    for name, value in section.sleep.items():
        if name.startswith("fast_weight_") and value != getattr(config, name):
            raise ValueError(
                f"model.sleep.{name} cannot be chosen, got {value!r}: {section.pretrained} is a sleep model already, "
                f"with {getattr(config, name)!r}"
            )
    decoder_config(section.pretrained, **section.sleep)


def build_sleep_model(section: SleepSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the sleep model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, a field is refused by the config, or the
            tensors of a pretrained model are not those of its configuration.
    """
    return build_family_model(SleepForCausalLM, section, section.sleep, tokenizer)


def sleep_trainer(
    model: PreTrainedModel, section: SleepSection, args: TrainingArguments, data: TrainingData
) -> Trainer:
    """The trainer of a recipe's sleep model."""
    return Trainer(
        model=model,
        args=args,
        train_dataset=cast(Any, data.train_dataset),
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
    )


def _is_sleep(config: Any) -> bool:
    return config.model_type == SleepConfig.model_type
