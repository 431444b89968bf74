"""The decoder of a checkpoint."""

import os
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .loading import load_pretrained


def decoder_config(path: str | os.PathLike, **options: Any) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(path, **options)


def load_decoder(path: str | os.PathLike, **options: Any) -> PreTrainedModel:
    return load_pretrained(AutoModelForCausalLM, path, **options)


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    return model
