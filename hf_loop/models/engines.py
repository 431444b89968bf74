# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What serving engines with their own attention know of a model, and which models they therefore cannot run.

vLLM and SGLang read heads, windows and soft-capping from the model's configuration, and apply the head of the language
model themselves. See `slot_attention.py` for the sources.
"""

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from .transformers_seams import attention_function


# attention functions of engines -> the engines
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
# layer types that engines have a cache for
ENGINE_LAYER_TYPES = ("full_attention", "sliding_attention")


class Heads(NamedTuple):
    """The heads of every layer, as engines read them from the model's configuration."""

    num_heads: int
    num_key_value_heads: int
    head_dim: int


def refusal(engine: str, config: PreTrainedConfig, reason: str) -> str:
    """Return the message that an engine cannot run a model."""
    kind = config.model_type
    decoder = getattr(config, "decoder_config", config).model_type
    return f"{ENGINES[engine]} (`attn_implementation={engine!r}`) cannot run a {kind} model of {decoder}: {reason}"


def engine_of(config: PreTrainedConfig) -> str | None:
    """Return the engine's attention function that a configuration names, `None` if it is none of an engine."""
    name = attention_function(config)
    return name if name in ENGINES else None


def check_no_engine(config: PreTrainedConfig) -> None:
    """Refuse a decoder that got the attention function of an engine after its model was made.

    Raises:
        ValueError: if it did.
    """
    engine = engine_of(config)
    if engine is not None:
        raise ValueError(
            f"the attention function {engine!r} of {ENGINES[engine]} must be in the configuration that a model is "
            "made of, and cannot be set later"
        )


def read_heads(decoder_config: Any) -> Heads | None:
    """Read the heads of all layers, `None` if they differ between layers."""
    try:
        num_heads = decoder_config.num_attention_heads
        num_key_value_heads = getattr(decoder_config, "num_key_value_heads", None) or num_heads
        head_dim = getattr(decoder_config, "head_dim", None) or decoder_config.hidden_size // num_heads
    except RuntimeError:  # transformers' configurations with fields per layer refuse to be read as one
        return None
    return Heads(num_heads, num_key_value_heads, head_dim)


def windows_of(engine: str, config: Any, layer_types: list[str] | None, slot: int) -> tuple[int | None, int | None]:
    """Return how many tokens the layer of a slot sees, and how many an engine lets it see; `None` for all."""
    # some configurations say 0 for none
    window = getattr(config, "sliding_window", None) or None
    is_sliding = layer_types is not None and layer_types[slot] == "sliding_attention"
    own = window if is_sliding or layer_types is None else None
    # vLLM takes the window for that of all layers, unless their types differ (`is_interleaved`); SGLang goes by types
    for_all = engine == "vllm" and len(set(layer_types or ())) < 2
    return own, window if is_sliding or for_all else None


def no_cache_reason(backbone: Any, layer_types: list[str] | None) -> str | None:
    """Return why an engine has no cache for the layers of a decoder, `None` if it has."""
    others = sorted(set(layer_types or ()) - set(ENGINE_LAYER_TYPES))
    if others:
        return f"it has no cache for layers of the types {', '.join(others)}"
    if not backbone._supports_attention_backend:
        return "its layers have attention of their own, instead of that of `attn_implementation`"
    if any(getattr(module, "is_causal", True) is False for module in backbone.modules()):
        return "its layers attend in both directions"
    return None


def no_head_reason(config: Any, decoder_config: Any, spec: Any) -> str | None:
    """Return why an engine's own head would compute other logits, `None` if it would not."""
    if spec.head_scale:
        return "the engine's head has no scale per token"
    # not on the device on which the model is made, which may be none
    logits = torch.linspace(-60, 60, 7, device="cpu", dtype=torch.float32)
    expected, known = spec.finish_logits(decoder_config, logits), logits
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        known = torch.tanh(known / cap) * cap
    known = known * getattr(config, "logit_scale", 1.0)
    same_states = torch.equal(spec.enter_head(decoder_config, logits), logits)
    if not same_states or not torch.allclose(expected, known, rtol=1e-6):
        return "the engine's head knows `logit_scale` and `final_logit_softcapping` alone, and this head does more"
    return None


__all__ = [
    "ENGINES",
    "Heads",
    "check_no_engine",
    "engine_of",
    "no_cache_reason",
    "no_head_reason",
    "read_heads",
    "refusal",
    "windows_of",
]
