"""Tiny pretrained decoders, with weights large enough that two different computations differ visibly."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..models.tiny_backbones import tiny_backbone


def tiny_decoder(model_type: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A four-layer causal model of `model_type` in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_backbone(model_type, **overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model
