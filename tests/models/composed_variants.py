"""Tiny models over time whose passes are those of a model over depth."""

from typing import Any

import torch

from hf_loop import (
    FeedbackConfig,
    FeedbackForCausalLM,
    HierarchicalConfig,
    LoopedConfig,
    SleepConfig,
    SleepForCausalLM,
)

from .tiny_backbones import tiny_backbone


# longer inputs than this cross the border of a block or a window
BLOCK = 4
INNER: dict[str, dict[str, Any]] = {
    "looped": {"num_prelude_layers": 1, "num_coda_layers": 1, "injection": "add", "num_loops": 2},
    "hierarchical": {"num_loops": 2, "low_cycles": 2, "injection": "add"},
}
OUTER: dict[str, dict[str, Any]] = {
    "feedback": {"block_size": BLOCK, "num_memory_segments": 1, "feedback_length": 2},
    "sleep": {"sleep_window": BLOCK, "num_sleep_passes": 2, "fast_weight_layers": [1, 2]},
}
PAIRS = [(outer, inner) for outer in OUTER for inner in INNER]


def inner_config(inner: str, model_type: str = "llama", **overrides) -> Any:
    """The configuration of a model over depth, of a four-layer decoder."""
    config_class: Any = LoopedConfig if inner == "looped" else HierarchicalConfig
    return config_class(backbone_config=tiny_backbone(model_type), **{**INNER[inner], **overrides})


def make_composed(outer: str, inner: str, model_type: str = "llama", inner_fields: Any = None, **overrides) -> Any:
    """A model over time over one over depth, in evaluation mode, with weights that tell computations apart."""
    config_class: Any = FeedbackConfig if outer == "feedback" else SleepConfig
    model_class: Any = FeedbackForCausalLM if outer == "feedback" else SleepForCausalLM
    backbone_config = inner_config(inner, model_type, **(inner_fields or {}))
    torch.manual_seed(0)
    model = model_class(config_class(backbone_config=backbone_config, **{**OUTER[outer], **overrides})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".memory_layers." in name and name.endswith("o_proj.weight"):
                parameter.normal_(std=0.2)
            elif parameter.ndim > 1 and "conv" not in name:
                parameter.mul_(2.0)
            elif name.endswith("A_log"):
                parameter.fill_(-2.0)
    return model
