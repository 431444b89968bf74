"""Tiny models that read images too, around the tiny decoders of tests/models."""

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, PreTrainedModel

from .models.tiny_backbones import tiny_backbone


# of every part that has a field of the name
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "embed_dim": 64,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
    "vocab_size": 97,
    "mm_tokens_per_image": 4,
    "num_position_embeddings": 16,
    "projection_dim": 64,
    "codebook_size": 32,
}


def tiny_composite(model_type: str, seed: int = 0, **text: Any) -> PreTrainedModel:
    """A model of `model_type` in evaluation mode, whose weights are large enough that computations differ visibly.

    Args:
        model_type (`str`): that of the whole.
        seed (`int`): of the weights.
        text: fields of the text part.
    """
    config: Any = CONFIG_MAPPING[model_type]()
    _shrink(config)
    part = config.get_text_config(decoder=True)
    name = next(name for name in config.sub_configs if getattr(config, name) is part)
    setattr(config, name, tiny_backbone(part.model_type, **text))
    # the tokens that stand for images, inside the small vocabulary
    special = [key for key in config.to_dict() if key.endswith(("_token_id", "_token_index"))]
    for place, key in enumerate(key for key in special if isinstance(getattr(config, key, None), int)):
        setattr(config, key, 90 - place)
    torch.manual_seed(seed)
    model: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def _shrink(config: Any) -> None:
    for name, size in SIZES.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    for name in config.sub_configs:
        if isinstance(getattr(config, name, None), transformers.PreTrainedConfig):
            _shrink(getattr(config, name))
