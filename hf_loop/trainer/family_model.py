"""The model of a recipe whose family takes a backbone, new or pretrained, and fields of its own configuration."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..loading import load_pretrained
from ..retrofitting import retrofit
from ..text_parts import decoder_config, load_decoder
from .new_backbone import check_vocabulary, new_backbone_config
from .sections import FeedbackSection, SleepSection


def build_family_model(
    model_class: Any,
    section: FeedbackSection | SleepSection,
    fields: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    """Builds a model with fresh weights, from a pretrained decoder, or from a model of the family, which goes on.

    Args:
        model_class: The family's causal language model.
        section: The section `model` of a recipe.
        fields: Fields of the family's configuration.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, a field is refused by the config, or the
            tensors of a pretrained model are not those of its configuration.
    """
    config_class = model_class.config_class
    if section.pretrained is None:
        backbone_config = new_backbone_config(section.backbone or {}, tokenizer)
        model = model_class(config_class(backbone_config=backbone_config, **fields))
    else:
        # in single precision whatever the stored type: small updates vanish in 16-bit weights
        options: dict[str, Any] = {"dtype": torch.float32}
        if decoder_config(section.pretrained).model_type == config_class.model_type:
            model = load_pretrained(AutoModelForCausalLM, section.pretrained, **options, **fields)
        else:
            base: Any = load_decoder(section.pretrained, **options)
            family: Any = section.family
            model = retrofit(base, family, **fields)
    check_vocabulary(model, tokenizer)
    return model
