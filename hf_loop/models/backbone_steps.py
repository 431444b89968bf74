# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What decoders do around their layers: the functions that the entries of `backbone_specs.py` name."""

import math
from typing import Any

import torch
from torch import nn


# `enter`: compute the first layer's input from token embeddings and positions


def enter_unchanged(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return embeddings


def scale_embeddings(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return embeddings * model.embedding_multiplier


def scale_by_config(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return embeddings * model.embedding_scale


def enter_hrm(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.enter(embeddings)


def norm_embeddings(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.norm(embeddings)


def layernorm_embeddings(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.word_embeddings_layernorm(embeddings)


def dropout_module(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.embed_dropout(embeddings)


def neox_dropout_module(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.emb_dropout(embeddings)


def gpt_dropout_module(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.drop(embeddings)


def dropout_rate(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(embeddings, p=model.embedding_dropout, training=model.training)


def add_gpt_positions(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return model.drop(embeddings + model.wpe(position_ids).to(embeddings.device))


def add_ctrl_positions(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    table = model.pos_encoding.to(device=embeddings.device, dtype=embeddings.dtype)
    return model.dropout(embeddings * math.sqrt(model.d_model_size) + table[position_ids])


def add_opt_positions(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    # without `position_ids` the module would compute them from the mask
    positions = model.decoder.embed_positions(None, 0, position_ids=position_ids)
    return embeddings + positions.to(embeddings.device)


def add_biogpt_positions(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    states = embeddings + model.embed_positions(None, 0, position_ids=position_ids)
    return nn.functional.dropout(states, p=model.dropout, training=model.training)


def add_xglm_positions(model: Any, embeddings: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    states = embeddings + model.embed_positions(position_ids, 0).to(embeddings.device)
    return nn.functional.dropout(states, p=float(model.dropout), training=model.training)


# `enter_head` and `finish_logits`: what the causal head does before and after its linear map


def unchanged(config: Any, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def divide_by_logits_scaling(config: Any, tensor: torch.Tensor) -> torch.Tensor:
    return tensor / config.logits_scaling


def multiply_by_logits_scaling(config: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits * config.logits_scaling


def multiply_by_head_multiplier(config: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits * config.lm_head_multiplier


def scale_logits(config: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits * config.logit_scale


def softcap_logits(config: Any, logits: torch.Tensor) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


def softcap_in_float32(config: Any, logits: torch.Tensor) -> torch.Tensor:
    return softcap_logits(config, logits.float())


# `layer_arguments`: further arguments of the layers


def _padding_mask(hidden_states: torch.Tensor, attention_mask: Any, num_past: int) -> torch.Tensor:
    if attention_mask is None:
        shape = (hidden_states.shape[0], num_past + hidden_states.shape[1])
        return torch.ones(shape, dtype=torch.long, device=hidden_states.device)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        raise ValueError("`attention_mask` must be a padding mask of shape [batch, tokens]: ALiBi is computed from it")
    return attention_mask.to(hidden_states.device)


def bloom_alibi(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    padding = _padding_mask(hidden_states, attention_mask, num_past)
    return {"alibi": model.build_alibi_tensor(padding, model.num_heads, dtype=hidden_states.dtype)}


def mpt_alibi(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    max_length = model.config.max_seq_len
    alibi = model.build_mpt_alibi_tensor(model.num_heads, max_length, device=hidden_states.device)
    return {"position_bias": alibi, "attention_mask": None if masks is None else masks.to(torch.bool)}


def falcon_alibi(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    if not model.use_alibi:
        return {"alibi": None}
    # imported on use: importing a decoder takes long
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    padding = _padding_mask(hidden_states, attention_mask, num_past)
    alibi = build_alibi_tensor(padding, model.num_heads, dtype=hidden_states.dtype)
    alibi = alibi.reshape(len(padding), -1, *alibi.shape[1:])
    if masks is None:
        return {"alibi": alibi}
    # the decoder adds the scaled bias to its mask and gives layers both
    hidden = ~masks if masks.dtype == torch.bool else masks < -1
    scaled = alibi / math.sqrt(model.config.hidden_size // model.num_heads)
    return {
        "alibi": alibi,
        "attention_mask": torch.masked_fill(scaled, hidden, torch.finfo(hidden_states.dtype).min),
    }


def both_masks(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    # every layer has both attention and a state
    return {"attention_mask": masks["full_attention"], "mamba_attention_mask": masks["linear_attention"]}


def masks_and_first_states(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    # shared attention layers also read the first layer's input
    return {
        "attention_mask": masks["linear_attention"],
        "causal_mask": masks["full_attention"],
        "original_hidden_states": hidden_states,
    }


def masks_of_hybrids(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    # the attention of a layer is full or sliding, and all have convolutions
    by_type = {"hybrid": masks.get("full_attention"), "hybrid_sliding": masks.get("sliding_attention")}
    return {"attention_mask": by_type, "conv_mask": masks["linear_attention"]}


def own_keys(
    model: Any, hidden_states: torch.Tensor, attention_mask: Any, masks: Any, num_past: int
) -> dict[str, Any]:
    if getattr(model.config, "num_kv_shared_layers", 0):
        raise ValueError("`num_kv_shared_layers` must be 0: a layer would share the keys of another loop")
    if getattr(model.config, "hidden_size_per_layer_input", 0):
        raise ValueError(
            "`hidden_size_per_layer_input` must be 0: layers that embed tokens themselves are not supported"
        )
    return {"shared_kv_states": {}}


# `rotate`: compute cosines and sines of positions, by layer type or by layer


def rotate_sliding_layers(model: Any, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    rotary = model.rotary_emb(hidden_states, position_ids)
    layer_types = dict.fromkeys(model.config.layer_types)
    return {kind: rotary if kind == "sliding_attention" else None for kind in layer_types}


def rotate_attention_layers(model: Any, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> dict[str, Any]:
    rotary_emb = model.rotary_emb
    return {
        kind: rotary_emb(hidden_states, position_ids, kind) if kind in rotary_emb.layer_types else None
        for kind in dict.fromkeys(model.config.layer_types)
    }


def rotate_by_base(model: Any, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> list[Any]:
    # one rotary embedding for every base; layers with base 0 have no positions
    rotary = {
        rotary_emb.config.rope_parameters["rope_theta"]: rotary_emb(hidden_states, position_ids)
        for rotary_emb in model.rotary_embs
    }
    return [rotary[base] if base else None for base in model.config.layer_rope_theta]


def rotate_if_asked(model: Any, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> Any:
    return model.rotary_emb(hidden_states, position_ids) if model.config.use_mem_rope else None
