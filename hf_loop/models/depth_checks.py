# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What continuous depth batching works with: models, settings and prompts."""

from typing import Any

import torch

from .backbone import Backbone
from .transformers_seams import attention_function


# fields of a generation configuration -> values that change nothing here
_IGNORED_VALUES: dict[str, tuple[Any, ...]] = {
    "cache_implementation": (None, "dynamic"),
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "num_return_sequences": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "prefill_chunk_size": (None,),
    "return_dict_in_generate": (None, False),
    "stop_strings": (None,),
    "use_cache": (None, True),
}


def check_backbone(backbone: Backbone, model: Any) -> None:
    """Refuse models whose rows cannot stand at different loops and positions.

    Raises:
        ValueError: if the layers are no full attention, need arguments of their own, or differ between loops; or the
            attention function takes no masks.
    """
    name, spec = backbone.config.model_type, backbone.spec
    others = set(backbone.layer_types or ()) - {"full_attention"}
    if others or getattr(backbone.config, "sliding_window", None) is not None:
        found = ", ".join(sorted(others)) or f"sliding_window={backbone.config.sliding_window}"
        raise ValueError(f"`generate_depth_batch` needs layers of full attention, but the {name} backbone has {found}")
    if spec.layer_arguments is not None or spec.layers_take_token_ids or spec.counts_columns:
        raise ValueError(f"`generate_depth_batch` cannot run the layers of {name}, whose arguments depend on all rows")
    if model.loop_lora is not None:
        raise ValueError("`loop_lora_rank` must be 0 for `generate_depth_batch`: a call has rows of several loops")
    if attention_function(backbone.config) not in ("eager", "sdpa"):
        raise ValueError(
            "`generate_depth_batch` needs the attention function 'eager' or 'sdpa', got "
            f"{attention_function(backbone.config)!r}"
        )


def check_settings(generation_config: Any, model_kwargs: dict[str, Any]) -> None:
    """Refuse arguments of `generate` that continuous depth batching has no use for.

    Raises:
        ValueError: if one is given; the message names it.
    """
    mode = generation_config.get_generation_mode().value
    if mode not in ("greedy_search", "sample"):
        raise ValueError(f"`generate_depth_batch` does greedy search and sampling, got settings for {mode}")
    if generation_config.max_new_tokens is None:
        raise ValueError("`max_new_tokens` must be given to `generate_depth_batch`, got None")
    for name, values in _IGNORED_VALUES.items():
        value = getattr(generation_config, name, None)
        if value not in values:
            raise ValueError(f"`generate_depth_batch` cannot work with {name}={value!r}")
    for name, value in model_kwargs.items():
        if value is not None and (name, value) not in (("cache_policy", "own"), ("use_cache", True)):
            raise ValueError(f"`generate_depth_batch` cannot work with {name}={value!r}")


def prompt_tensors(prompts: Any, device: Any) -> list[torch.Tensor]:
    """Return prompts as tensors `[T]`.

    Raises:
        ValueError: if there is none, or one is not a list of tokens.
    """
    tensors = [torch.as_tensor(prompt, device=device) for prompt in prompts]
    for number, prompt in enumerate(tensors):
        if prompt.ndim != 1 or len(prompt) == 0 or prompt.is_floating_point():
            raise ValueError(f"`prompts[{number}]` must be a list of tokens, got {tuple(prompt.shape)} {prompt.dtype}")
    return tensors


__all__ = ["check_backbone", "check_settings", "prompt_tensors"]
