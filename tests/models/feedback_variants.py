"""Tiny feedback models, one of every kind of schedule."""

import torch

from hf_loop import FeedbackConfig, FeedbackForCausalLM

from .tiny_backbones import tiny_backbone


BLOCK_SIZE = 4
VARIANTS = {
    "no segments": {"num_memory_segments": 0},
    "one segment": {},
    "all segments": {"num_memory_segments": None},
    "prefix": {"feedback_init": "prefix"},
    "first residual": {"num_memory_segments": 0, "zero_first_residual": False},
    "recurrent memory tokens": {"feedback_source": "top"},
    "no memory": {"feedback_length": 0},
    "no memory, all segments": {"feedback_length": 0, "num_memory_segments": None},
}
# those in which something of the first block reaches every later one
WITH_MEMORY = [name for name, schedule in VARIANTS.items() if schedule.get("feedback_length") != 0]


def make_feedback(
    model_type: str = "llama",
    seed: int = 0,
    tie_word_embeddings: bool = False,
    attention: str = "sdpa",
    scale: float = 4.0,
    **overrides,
) -> FeedbackForCausalLM:
    """A feedback model over a four-layer backbone, in evaluation mode: blocks of four tokens, one segment and a memory
    of two vectors unless told otherwise.

    Its weights are larger than freshly initialised ones, so that two different computations differ visibly.
    """
    schedule = {"block_size": BLOCK_SIZE, "num_memory_segments": 1, "feedback_length": 2, **overrides}
    backbone_config = tiny_backbone(model_type, tie_word_embeddings=tie_word_embeddings)
    torch.manual_seed(seed)
    config = FeedbackConfig(backbone_config=backbone_config, **schedule)
    model = FeedbackForCausalLM._from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model
