"""A new backbone out of the section `model` of a recipe."""

from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .sections import check_keys


def new_backbone_config(
    backbone: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedConfig:
    """The config of a new backbone.

    Args:
        backbone: `model_type` and fields of its config.
        tokenizer: Gives the vocabulary size and the special token ids where `backbone` does not.

    Raises:
        ValueError: Transformers has no such model type, or its config no such field.
    """
    if tokenizer is not None:
        from_tokenizer: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        backbone = from_tokenizer | backbone
    model_type = backbone["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model.backbone.model_type must be a model type of transformers, got {model_type!r}")
    config_class = CONFIG_MAPPING[model_type]
    # configs keep unknown fields as plain attributes, so that a misspelt one would silently mean the default
    known = [item.name for item in fields(config_class)] + [*config_class.attribute_map, "model_type"]
    check_keys("model.backbone", backbone, known)
    return config_class(**{key: backbone[key] for key in backbone if key != "model_type"})


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a model with fewer tokens than its tokenizer.

    Raises:
        ValueError: Names both numbers.
    """
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"the vocabulary of the model must hold the tokenizer's {len(tokenizer)} tokens, "
            f"got vocab_size={model.config.vocab_size}"
        )
