# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Attention by a serving engine: one module without parameters for every cache slot.

The transformers back-ends of vLLM and SGLang run a model's own code, except for its attention function, which they
replace by one with a paged cache. They give a cache entry to every attention module or every layer index, and a shared
layer has several slots. So there is a [`SlotAttention`] for every slot, as in Nanbeige's own code
(https://github.com/vllm-project/vllm/pull/56071), and the attention function of the decoder itself becomes
`attend_in_slot`, which hands queries, keys and values on to the module of the call's slot.

What the engines do, as read in their public source and not run here:

- vLLM since September 2026 (`vllm/model_executor/models/transformers/`, commit f5d9d7b, and
  https://github.com/vllm-project/vllm/pull/54941) looks for modules whose `forward`, by its source text, reads one
  function from `ALL_ATTENTION_FUNCTIONS` and calls it once, whose configuration names the attention function "vllm",
  and whose `layer_idx` is an integer. It wants one for each of `num_hidden_layers`, reads the scaling from it, and the
  window, head sizes and soft-capping from the model's configuration. Earlier releases and SGLang
  (`python/sglang/srt/models/transformers.py`, commit 0465eeb) find the entry by `layer_idx` among the keyword
  `attention_instances`.
- Both apply the head themselves, and know `logit_scale` and `final_logit_softcapping` of the configuration alone.

Whatever else a decoder's attention or head does is refused.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .backbone_parts import decoder_layers
from .engines import Heads, engine_of, no_cache_reason, no_head_reason, read_heads, refusal, windows_of
from .transformers_seams import attention_function, choose_attention_function


# the attention function of a decoder inside a model with slot modules
SLOT_ATTENTION = "hf_loop_slots"


class SlotAttention(nn.Module):
    """The attention of one cache slot. It has no parameters: projections stay in the layer, which all loops share.

    Args:
        config (`RecurrentConfig`): the model's configuration, which names the engine's attention function.
        slot (`int`): the cache slot.
        scaling (`float`): factor of the attention scores.
        heads (`Heads`): numbers and size of heads, from which the engine makes its cache.
        sliding_window (`int`, *optional*): number of tokens that the engine lets this slot see, `None` for all.
    """

    def __init__(
        self, config: PreTrainedConfig, slot: int, scaling: float, heads: Heads, sliding_window: int | None = None
    ):
        super().__init__()
        self.config = config
        self.layer_idx = slot
        self.scaling = scaling
        self.heads = heads
        self.sliding_window = sliding_window
        self.is_causal = True

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs) -> Any:
        """Attend with queries `[1, H, T, D]` to keys and values `[1, K, T, D]` and those in the engine's cache."""
        # engines read these two statements: the name of the table, one call, and `self.scaling`
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(attention_function(self.config), no_engine)
        return attention_interface(self, query, key, value, None, scaling=self.scaling, **kwargs)


class SlotCall:
    """The slot of one layer call, which `attend_in_slot` finds among its keywords.

    Args:
        module (`SlotAttention`): the module of the slot.
    """

    def __init__(self, module: SlotAttention):
        self.module = module
        # whether the layer's attention came to the slot
        self.was_used = False


def attend_in_slot(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: Any = None,
    slot_call: SlotCall | None = None,
    **kwargs,
) -> Any:
    """Hand the attention of a layer call on to the module of its slot.

    Raises:
        ValueError: if the layer was not called by a schedule, attends twice in a call, or its attention depends on
            more than the engine knows.
    """
    if slot_call is None:
        raise ValueError(
            f"{type(module).__name__} did not get the cache slot of its call: its layer hands no keywords on to the "
            "attention function, so that no engine can run it, or was called outside of the model"
        )
    slot = slot_call.module
    engine = attention_function(slot.config)
    reason = _unknown_to_engine(slot, engine, query, key, value, attention_mask, kwargs)
    if slot_call.was_used:
        reason = "a layer attends twice in one call, and the engine has one cache entry for it"
    if reason is not None:
        raise ValueError(refusal(engine, slot.config, reason))
    slot_call.was_used = True
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(scaling, torch.Tensor) or not math.isclose(scaling, slot.scaling):
        query = query * (scaling / slot.scaling)
    # the engine packs tokens, `[T, H D]`, and layers expect `[1, T, H, D]`
    output, _ = slot(query, key, value, **kwargs)
    return output.reshape(1, query.shape[-2], query.shape[1], -1), None


def _unknown_to_engine(
    slot: SlotAttention,
    engine: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> str | None:
    """Return what the attention of a layer call depends on beyond what an engine knows, `None` if nothing."""
    if attention_mask is not None:
        return "its layers make attention masks of their own, which the engine does not read"
    sizes = tuple(states.shape[-1] for states in (query, key, value))
    num_heads, num_key_value_heads, head_dim = slot.heads
    if set(sizes) != {head_dim}:
        return f"the heads of queries, keys and values have the sizes {sizes}, not all `head_dim` {head_dim}"
    # tensor parallelism splits them
    if query.shape[1] == num_heads and (key.ndim != 4 or key.shape[1] != num_key_value_heads):
        return f"its keys have the shape {tuple(key.shape)}, not {num_key_value_heads} `num_key_value_heads`"
    window = kwargs.get("sliding_window")
    if window is not None and window != slot.sliding_window:
        return f"a layer sees {window} tokens, and by its configuration {slot.sliding_window or 'all'}"
    # SGLang's fallback reads no soft-capping of attention scores
    known = getattr(slot.config, "attn_logit_softcapping", None) if engine == "vllm" else None
    if kwargs.get("softcap") != known:
        return f"attention scores are soft-capped at {kwargs.get('softcap')}, which the engine takes for {known}"
    if kwargs.get("is_causal") is False:
        return "its layers attend in both directions"
    tensors = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor) and name != "position_ids"]
    if tensors:
        return f"the attention function of its layers reads {', '.join(tensors)}, which the engine does not"
    return None


def no_engine(module: Any, *args, **kwargs) -> Any:
    """Stand for the engine's attention function where no engine has registered one."""
    raise ValueError(f"the attention function {attention_function(module.config)!r} is that of an engine, not here")


def make_slot_attention(config: Any, backbone: Any, spec: Any) -> nn.ModuleDict | None:
    """Make the modules of all slots if the configuration names an engine, and lead the decoder's attention there.

    Args:
        config (`RecurrentConfig`): the model's configuration.
        backbone (`PreTrainedModel`): the decoder.
        spec (`BackboneSpec`): its description.

    Raises:
        ValueError: if the engine has no cache for a layer, or cannot compute the decoder's logits.
    """
    engine = engine_of(config)
    if engine is None:
        return None
    decoder_config = config.decoder_config
    layer_types = getattr(config, "layer_types", None)
    heads = read_heads(decoder_config)
    reason = no_cache_reason(backbone, layer_types) or no_head_reason(config, decoder_config, spec)
    if reason is not None or heads is None:
        raise ValueError(refusal(engine, config, reason or "the heads of its layers differ"))
    layers = decoder_layers(backbone, spec)
    # a dict, because vLLM takes a list of as many modules as slots for the decoder's layers
    slots = nn.ModuleDict()
    for call in sorted(config.calls(), key=lambda call: call.slot):
        window, known = windows_of(engine, config, layer_types, call.slot)
        if window != known:
            reason = f"a layer sees {window or 'all'} tokens, and the engine lets it see {known or 'all'}"
            raise ValueError(refusal(engine, config, reason))
        scaling = _read_scaling(layers[call.layer], heads.head_dim)
        slots[str(call.slot)] = SlotAttention(config, call.slot, scaling, heads, window)
    choose_attention_function(decoder_config, SLOT_ATTENTION)
    return slots


def _read_scaling(layer: nn.Module, head_dim: int) -> float:
    """Return the scaling of a layer's attention, as far as it is an attribute; `attend_in_slot` corrects the rest."""
    for module in layer.modules():
        scaling = getattr(module, "scaling", None)
        if hasattr(module, "layer_idx") and isinstance(scaling, float) and scaling > 0:
            return scaling
    return head_dim**-0.5


AttentionInterface.register(SLOT_ATTENTION, attend_in_slot)

__all__ = ["SLOT_ATTENTION", "SlotAttention", "SlotCall", "make_slot_attention"]
