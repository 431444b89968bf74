"""Tiny looped models whose loops differ from each other."""

import torch

from hf_loop import LoopedForCausalLM

from .looped_variants import tiny_looped


def tiny_loop_lora(model_type: str = "llama", **schedule) -> LoopedForCausalLM:
    """[`tiny_looped`] with a trained update for every loop, of norms and biases too unless told otherwise."""
    schedule = {"loop_lora_rank": 4, "loop_lora_vectors": True, **schedule}
    return with_random_updates(tiny_looped(model_type, **schedule))


def with_random_updates(model: LoopedForCausalLM, seed: int = 1) -> LoopedForCausalLM:
    """Stands for training, after which no update is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.loop_lora.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
