"""Tiny sleep models, one of every kind of schedule."""

import torch

from hf_loop import SleepConfig, SleepForCausalLM

from .tiny_backbones import tiny_backbone


WINDOW = 4
HYBRIDS = ("olmo_hybrid", "qwen3_5_text", "qwen3_next")
VARIANTS = {
    "olmo_hybrid": {"model_type": "olmo_hybrid"},
    "qwen3_5_text": {"model_type": "qwen3_5_text"},
    "qwen3_next": {"model_type": "qwen3_next"},
    "inserted": {"fast_weight_layers": [0, 2]},
    "inserted, sliding attention": {"model_type": "gemma3_text", "fast_weight_layers": [1, 3]},
    "sliding eviction": {"model_type": "qwen3_5_text", "eviction": "sliding"},
    "middle layers": {"model_type": "qwen3_5_text", "sleep_layers": [1, 3]},
    "first layers, kept convolution": {"model_type": "olmo_hybrid", "sleep_layers": [0, 2], "reset_conv": False},
    "sliding eviction, middle layers": {
        "fast_weight_layers": [0, 1, 3],
        "eviction": "sliding",
        "sleep_layers": [1, 3],
    },
    "absolute positions": {"model_type": "qwen3_next", "position_mode": "absolute"},
    "hebbian": {"fast_weight_rule": "hebbian"},
    "delta": {"fast_weight_rule": "delta"},
    "oja": {"fast_weight_rule": "oja"},
}


def make_sleep(
    model_type: str = "llama", seed: int = 0, tie_word_embeddings: bool = False, scale: float = 2.0, **overrides
) -> SleepForCausalLM:
    """A sleep model over a four-layer backbone, in evaluation mode: windows of four tokens and two passes unless told
    otherwise.

    Its weights are larger than freshly initialised ones, and inserted layers are as if trained, so that two different
    computations differ visibly.
    """
    schedule = {"sleep_window": WINDOW, "num_sleep_passes": 2, **overrides}
    backbone_config = tiny_backbone(model_type, tie_word_embeddings=tie_word_embeddings)
    torch.manual_seed(seed)
    model = SleepForCausalLM(SleepConfig(backbone_config=backbone_config, **schedule)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".memory_layers." in name and name.endswith("o_proj.weight"):
                parameter.normal_(std=0.2)
            elif parameter.ndim > 1 and "conv" not in name:
                parameter.mul_(scale)
            elif name.endswith("A_log"):
                # memories that last, or nothing of a window would be left to be seen
                parameter.fill_(-2.0)
    return model
