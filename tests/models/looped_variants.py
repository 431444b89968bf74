"""Tiny looped models, one of every kind of schedule."""

import torch

from hf_loop import LoopedConfig, LoopedForCausalLM

from .tiny_backbones import tiny_backbone


VARIANTS = {
    "plain": {},
    "prelude and coda": {"num_prelude_layers": 1, "num_coda_layers": 1},
    "add": {"num_prelude_layers": 1, "injection": "add", "state_init": "zeros"},
    "unit add": {"num_prelude_layers": 1, "num_coda_layers": 1, "injection": "unit_add"},
    "concat": {"num_coda_layers": 2, "injection": "concat", "state_init": "normal"},
    "diagonal": {"num_prelude_layers": 1, "num_coda_layers": 1, "injection": "diagonal", "state_init": "learned"},
    "orthogonal": {
        "num_prelude_layers": 1,
        "num_coda_layers": 1,
        "injection": "orthogonal",
        "injection_norm": False,
        "state_init": "sine_normal",
        "state_seed": 42,
    },
    "weightless norm": {
        "num_prelude_layers": 1,
        "injection": "concat",
        "injection_bias": True,
        "loop_norm": "weightless",
        "state_init": "sine_normal",
        "state_std": 0.5,
    },
    "loop norm": {"num_prelude_layers": 2, "loop_norm": "own"},
    "final norm": {"loop_norm": "final"},
    "exit gate": {"loop_norm": "own", "exit_gate": True},
    "damped": {"num_prelude_layers": 1, "num_coda_layers": 1, "loop_update": "damped"},
    "quarter steps": {"num_coda_layers": 1, "loop_update": "damped", "loop_step": 0.25},
    "before the coda": {
        "num_coda_layers": 1,
        "coda_norm": True,
        "state_projection": True,
        "injection": "add",
        "state_init": "normal",
        "state_std": 0.5,
    },
}

# decoders that loop by themselves in transformers, in the schedules that they have there
OWN_LOOPS = {
    "dory": {"model_type": "dory", **VARIANTS["unit add"]},
    # states of several vectors per token
    "inkling2_loop_text": {
        "model_type": "inkling2_loop_text",
        "num_prelude_layers": 2,
        "num_coda_layers": 2,
        "injection": "messages",
    },
}


def tiny_looped(model_type: str = "llama", seed: int = 0, tie_word_embeddings: bool = False, **schedule):
    """A looped model over a four-layer backbone, three loops unless told otherwise, in evaluation mode.

    Its weights are larger than freshly initialised ones, so that two different computations differ visibly.
    """
    backbone_config = tiny_backbone(model_type, tie_word_embeddings=tie_word_embeddings)
    torch.manual_seed(seed)
    model = LoopedForCausalLM(LoopedConfig(backbone_config=backbone_config, **{"num_loops": 3, **schedule})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("model.injection"):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.mul_(2.0)
    return model
