# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The tables of architectures, each described by a [`BackboneSpec`].

An architecture that is in no table has the default entry, which `backbone_check.py` compares with the base model.
"""

import dataclasses

from transformers import PreTrainedConfig

from .backbone_parts import BackboneSpec
from .backbone_steps import (
    add_biogpt_positions,
    add_ctrl_positions,
    add_gpt_positions,
    add_opt_positions,
    add_xglm_positions,
    bloom_alibi,
    both_masks,
    divide_by_logits_scaling,
    dropout_module,
    dropout_rate,
    enter_hrm,
    falcon_alibi,
    gpt_dropout_module,
    layernorm_embeddings,
    masks_and_first_states,
    masks_of_hybrids,
    mpt_alibi,
    multiply_by_head_multiplier,
    multiply_by_logits_scaling,
    neox_dropout_module,
    norm_embeddings,
    own_keys,
    rotate_attention_layers,
    rotate_by_base,
    rotate_if_asked,
    rotate_sliding_layers,
    scale_by_config,
    scale_embeddings,
    scale_logits,
    softcap_in_float32,
    softcap_logits,
)
from .block_states import read_blocks, run_on_blocks
from .modeling_hrm import HrmBackboneModel
from .modeling_huginn import HuginnBackboneModel
from .modeling_ifm_moe import IfmMoeBackboneModel
from .modeling_parcae import ParcaeBackboneModel, scale_and_softcap
from .transformers_seams import GPTJ_ROTARY


LIKE_LLAMA = BackboneSpec()
_LIKE_GPT2 = BackboneSpec(
    embed_tokens="wte",
    layers="h",
    norm="ln_f",
    rotary=None,
    enter=add_gpt_positions,
    adds_positions=True,
    has_position_table=True,
    layer_entry="ln_1",
)
_LIKE_GPTJ = BackboneSpec(
    embed_tokens="wte",
    layers="h",
    norm="ln_f",
    rotary=GPTJ_ROTARY,
    enter=gpt_dropout_module,
    has_position_table=True,
    head_bias=True,
    layer_entry="ln_1",
)
_LIKE_GRANITE = BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling)
_LIKE_GRANITE_SWA = BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling, rotate=rotate_by_base)
_WITH_FAST_WEIGHTS = BackboneSpec(keeps_fast_weights=True)
_PER_LAYER_TYPE = BackboneSpec(rotary_per_layer_type=True)

# tests/models/test_backbone.py compares every entry with the base model, bit for bit
SUPPORTED_BACKBONES: dict[str, BackboneSpec] = {
    "apertus": BackboneSpec(layer_entry="attention_layernorm"),
    "arcee": LIKE_LLAMA,
    "bamba": BackboneSpec(norm="final_layernorm"),
    "biogpt": BackboneSpec(
        norm="layer_norm",
        rotary=None,
        enter=add_biogpt_positions,
        adds_positions=True,
        has_position_table=True,
        layer_entry="self_attn_layer_norm",
    ),
    "bitnet": LIKE_LLAMA,
    "bloom": BackboneSpec(
        embed_tokens="word_embeddings",
        layers="h",
        norm="ln_f",
        rotary=None,
        enter=layernorm_embeddings,
        layer_arguments=bloom_alibi,
        counts_columns=True,
    ),
    "codegen": _LIKE_GPTJ,
    "cohere": BackboneSpec(finish_logits=scale_logits),
    "cohere2": BackboneSpec(finish_logits=scale_logits),
    "cohere2_moe": BackboneSpec(finish_logits=scale_logits),
    "ctrl": BackboneSpec(
        embed_tokens="w",
        layers="h",
        norm="layernorm",
        rotary=None,
        enter=add_ctrl_positions,
        adds_positions=True,
        has_position_table=True,
        head_bias=True,
        layer_entry="layernorm1",
    ),
    "deepseek_v3": LIKE_LLAMA,
    "doge": BackboneSpec(needs_masks=True, counts_columns=True),
    "ernie4_5": LIKE_LLAMA,
    "exaone4": BackboneSpec(layer_entry="self_attn"),
    "falcon": BackboneSpec(
        embed_tokens="word_embeddings",
        layers="h",
        norm="ln_f",
        layer_arguments=falcon_alibi,
        needs_masks=True,
        has_variants=True,
    ),
    "falcon_h1": BackboneSpec(
        norm="final_layernorm",
        enter=scale_embeddings,
        finish_logits=multiply_by_head_multiplier,
        layer_arguments=both_masks,
    ),
    "gemma": LIKE_LLAMA,
    "gemma2": BackboneSpec(finish_logits=softcap_logits),
    "gemma3_text": BackboneSpec(finish_logits=softcap_logits, rotary_per_layer_type=True),
    "gemma4_text": BackboneSpec(
        rotary_per_layer_type=True, finish_logits=softcap_logits, layer_arguments=own_keys, has_variants=True
    ),
    "gemma4_unified_text": BackboneSpec(
        rotary_per_layer_type=True, finish_logits=softcap_logits, layer_arguments=own_keys, has_variants=True
    ),
    "glm": LIKE_LLAMA,
    "glm4": LIKE_LLAMA,
    "gpt-sw3": _LIKE_GPT2,
    "gpt2": _LIKE_GPT2,
    "gpt_bigcode": _LIKE_GPT2,
    "gpt_neo": dataclasses.replace(_LIKE_GPT2, counts_columns=True),
    "gpt_neox": BackboneSpec(
        embed_tokens="embed_in",
        norm="final_layer_norm",
        enter=neox_dropout_module,
    ),
    "gpt_neox_japanese": BackboneSpec(embed_tokens="embed_in", norm="final_layer_norm"),
    "gpt_oss": LIKE_LLAMA,
    "gptj": _LIKE_GPTJ,
    "granite": BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling),
    "granite_swa": _LIKE_GRANITE_SWA,
    "granitemoe": _LIKE_GRANITE,
    "granitemoe_swa": _LIKE_GRANITE_SWA,
    "granitemoehybrid": _LIKE_GRANITE,
    "granitemoeshared": _LIKE_GRANITE,
    "helium": LIKE_LLAMA,
    "huginn_backbone": BackboneSpec(enter=scale_embeddings, model_class=HuginnBackboneModel),
    "hunyuan_v1_dense": LIKE_LLAMA,
    "hyperclovax": BackboneSpec(enter=scale_embeddings, finish_logits=multiply_by_logits_scaling),
    "ifm_moe_backbone": BackboneSpec(model_class=IfmMoeBackboneModel),
    "jamba": BackboneSpec(norm="final_layernorm", rotary=None, continues_by_token=True),
    "kimi_linear": BackboneSpec(rotary=None, keeps_fast_weights=True),
    "laguna": _PER_LAYER_TYPE,
    "lara_mini": BackboneSpec(rotate=rotate_sliding_layers),
    "lfm2": BackboneSpec(norm="embedding_norm"),
    "lfm2_moe": BackboneSpec(norm="embedding_norm", rotary="pos_emb"),
    "lfm3": BackboneSpec(norm="embedding_norm", rotate=rotate_attention_layers),
    "llama": LIKE_LLAMA,
    "mellum": _PER_LAYER_TYPE,
    "mimo_v2_flash": _PER_LAYER_TYPE,
    "minicpm3": BackboneSpec(enter_head=divide_by_logits_scaling),
    "ministral": LIKE_LLAMA,
    "mistral": LIKE_LLAMA,
    "mixtral": LIKE_LLAMA,
    "mpt": BackboneSpec(
        embed_tokens="wte",
        layers="blocks",
        norm="norm_f",
        rotary=None,
        layer_arguments=mpt_alibi,
        needs_masks=True,
        counts_columns=True,
        layer_entry="norm_1",
    ),
    "nanochat": BackboneSpec(enter=norm_embeddings, finish_logits=softcap_logits),
    "nemotron": LIKE_LLAMA,
    "nemotron_h": BackboneSpec(embed_tokens="embeddings", norm="norm_f", rotary=None, layer_entry="norm"),
    "olmo": LIKE_LLAMA,
    "olmo2": BackboneSpec(layer_entry="self_attn"),
    "olmo3": BackboneSpec(rotary_per_layer_type=True, layer_entry="self_attn"),
    "olmo_hybrid": _WITH_FAST_WEIGHTS,
    "olmoe": LIKE_LLAMA,
    "opt": BackboneSpec(
        embed_tokens="decoder.embed_tokens",
        layers="decoder.layers",
        norm="decoder.final_layer_norm",
        rotary=None,
        enter=add_opt_positions,
        adds_positions=True,
        has_position_table=True,
        counts_padding=False,
        layer_entry="self_attn_layer_norm",
        has_variants=True,
    ),
    "parcae_backbone": BackboneSpec(
        enter=scale_embeddings,
        finish_logits=scale_and_softcap,
        layers_take_token_ids=True,
        model_class=ParcaeBackboneModel,
    ),
    "persimmon": BackboneSpec(norm="final_layernorm"),
    "phi": BackboneSpec(norm="final_layernorm", enter=dropout_module, head_bias=True),
    "phi3": LIKE_LLAMA,
    "qwen2": LIKE_LLAMA,
    "qwen2_moe": LIKE_LLAMA,
    "qwen3": LIKE_LLAMA,
    "qwen3_5_moe_text": BackboneSpec(position_rows=3, keeps_fast_weights=True),
    "qwen3_5_text": BackboneSpec(position_rows=3, keeps_fast_weights=True),
    "qwen3_moe": LIKE_LLAMA,
    "qwen3_next": _WITH_FAST_WEIGHTS,
    "seed_oss": LIKE_LLAMA,
    "smollm3": LIKE_LLAMA,
    "stablelm": LIKE_LLAMA,
    "starcoder2": BackboneSpec(enter=dropout_rate),
    "vaultgemma": BackboneSpec(finish_logits=softcap_logits),
    "xglm": BackboneSpec(
        norm="layer_norm",
        rotary=None,
        enter=add_xglm_positions,
        needs_masks=True,
        adds_positions=True,
        layer_entry="self_attn_layer_norm",
    ),
    "zamba": BackboneSpec(
        norm="final_layernorm", rotary=None, layer_arguments=masks_and_first_states, layers_take_index=True
    ),
    "zamba2": BackboneSpec(
        norm="final_layernorm",
        rotary=None,
        rotate=rotate_if_asked,
        layer_arguments=masks_and_first_states,
        layers_take_index=True,
    ),
}

# decoders with two stacks, for the hierarchical family only
TWO_STACK_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_text": BackboneSpec(
        layers="L_module.layers",
        high_layers="H_module.layers",
        norm="H_module.final_norm",
        enter=scale_by_config,
        low_state="z_L_init",
    ),
}

# layers that attend in both directions, for the hierarchical puzzle model only
PUZZLE_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_backbone": BackboneSpec(enter=enter_hrm, model_class=HrmBackboneModel),
}

# decoders that loop by themselves, whose layers the looped family runs instead
LOOPED_BACKBONES: dict[str, BackboneSpec] = {
    "dory": BackboneSpec(rotary_per_layer_type=True, head_scale=True),
    "inkling2_loop_text": BackboneSpec(
        rotary=None,
        finish_logits=softcap_in_float32,
        layer_arguments=masks_of_hybrids,
        run_state=run_on_blocks,
        read_state=read_blocks,
    ),
}

_WIDE_STATE = "its layers pass on more than one hidden state per token"
_OWN_STATES = "its layers keep their state outside of transformers' cache"
_OWN_LOOPS = "it runs its layers in loops itself: `hf_loop.convert` makes it a looped model"
_NO_LENGTH = "its cache does not know the number of tokens, so positions cannot be counted"

# decoders whose layers do not map one hidden state per token to another: no entry can describe them
REFUSED_BACKBONES: dict[str, str] = {
    "beam": "its layers without rotary positions need a scale computed from the position",
    "deepseek_v4": _WIDE_STATE,
    "dory": _OWN_LOOPS,
    "falcon_mamba": _NO_LENGTH,
    "gemma3n_text": _WIDE_STATE,
    "hy_v4": _WIDE_STATE,
    "inkling2_loop_text": _OWN_LOOPS,
    "inkling2_text": "its layers read the outputs of all earlier layers",
    "longcat_flash": "each of its layers writes two cache slots",
    "mamba": _NO_LENGTH,
    "mamba2": _NO_LENGTH,
    "minimax": _OWN_STATES,
    "modernbert-decoder": "its head is more than a linear map",
    "openai-gpt": "it has no cache and no final norm",
    "qwen4_exp_text": _WIDE_STATE,
    "recurrent_gemma": _OWN_STATES,
    "rwkv": _OWN_STATES,
    "xlstm": _OWN_STATES,
    "zaya": "its layers pass on router states beside the hidden states",
}

# entries registered by users
REGISTERED_BACKBONES: dict[str, BackboneSpec] = {}


def register_backbone(model_type: str, spec: BackboneSpec, exist_ok: bool = False) -> None:
    """Register the description of an architecture, for this process. It is checked before its first use.

    Args:
        model_type (`str`): model type of the configurations.
        spec (`BackboneSpec`): the description.
        exist_ok (`bool`, *optional*, defaults to `False`): whether it may replace an existing entry.

    Raises:
        TypeError: if `spec` is not a `BackboneSpec`.
        ValueError: if `model_type` is not a name, or has an entry and `exist_ok` is `False`.
    """
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"`spec` must be a BackboneSpec, got {type(spec).__name__}")
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"`model_type` must be the name of a model type, got {model_type!r}")
    tables = (SUPPORTED_BACKBONES, TWO_STACK_BACKBONES, LOOPED_BACKBONES, PUZZLE_BACKBONES, REGISTERED_BACKBONES)
    if not exist_ok and any(model_type in table for table in tables):
        raise ValueError(f"`model_type` {model_type!r} has an entry already: pass `exist_ok=True` to replace it")
    REGISTERED_BACKBONES[model_type] = spec


def find_spec(config: PreTrainedConfig) -> BackboneSpec:
    """Return the entry for a configuration, which may not have been checked yet."""
    model_type = config.model_type
    return REGISTERED_BACKBONES.get(model_type) or SUPPORTED_BACKBONES.get(model_type) or LIKE_LLAMA


def is_tested(config: PreTrainedConfig) -> bool:
    """Return whether the tests of hf_loop cover the entry for a configuration."""
    spec = SUPPORTED_BACKBONES.get(config.model_type)
    return spec is not None and not spec.has_variants and config.model_type not in REGISTERED_BACKBONES


__all__ = ["BackboneSpec", "find_spec", "is_tested", "register_backbone"]
