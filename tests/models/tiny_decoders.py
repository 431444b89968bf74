"""A tiny configuration of every causal language model of the installed transformers.

Its default configuration is shrunk field by field: what is a width, a count of layers, of heads or of experts is known
by its name. What a name does not tell is in `OWN`.
"""

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


NUM_LAYERS = 4
VOCABULARY = 97

# a field of the default configuration -> its value in a tiny one
_WIDTHS = dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "word_embed_proj_dim"), 64)
_COUNTS = (
    dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), NUM_LAYERS)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4)
    | dict.fromkeys(("decoder_attention_heads", "swa_num_attention_heads"), 4)
    | dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads"), 2)
)
_FEED_FORWARD = dict.fromkeys(
    (
        "intermediate_size",
        "ffn_dim",
        "decoder_ffn_dim",
        "ffn_hidden_size",
        "intermediate_size_mlp",
        "dense_intermediate_size",
        "n_inner",
        "dff",
        "d_inner",
        "shared_intermediate_size",
    ),
    96,
)
_EXPERTS = (
    dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
    | dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2)
    | dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"), 1)
    | dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "expert_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
        ),
        32,
    )
    | dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1)
    | {"n_group": 2, "topk_group": 1, "num_expert_group": 2, "moe_layer_end_index": NUM_LAYERS - 1}
    | {"num_nextn_predict_layers": 0}
)
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    # what the layers attend to is chosen among the tokens: few of them
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 16,
    "gated_norm_rank": 4,
}
_STATES = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_headdim": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 128,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "mamba_chunk_size": 4,
    "n_mamba_heads": 2,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 4,
    "block_size": 4,
    "lru_width": 64,
}
_CAPS = {"final_logit_softcapping": 3.0}
_HEADS = dict.fromkeys(("head_dim", "swa_head_dim", "attention_head_dim", "dim_head", "d_head", "kv_channels"), 16)
_WINDOWS = dict.fromkeys(
    (
        "sliding_window",
        "sliding_window_size",
        "local_attention",
        "window_size",
        "attention_window_size",
        "attention_chunk_size",
    ),
    5,
)
_POSITIONS = dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 256)
_TOKENS = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMALL = (
    _WIDTHS | _COUNTS | _FEED_FORWARD | _EXPERTS | _LATENT | _STATES | _HEADS | _WINDOWS | _POSITIONS | _TOKENS | _CAPS
)
# lists with one entry per layer
_PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
# tokens of a default configuration that a small vocabulary has not
_OTHER_TOKENS = ("sep_token_id", "cls_token_id", "decoder_start_token_id", "eod_token_id", "mask_token_id")

_SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}

OWN: dict[str, dict[str, Any]] = {
    "afmoe": {"global_attn_every_n_layers": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 8},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": _SLIDING
    | {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in _SLIDING["layer_types"]}},
    "cpmant": {"dim_ff": 96},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "deepseek_v4": {"o_groups": 2, "o_lora_rank": 8, "hc_mult": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        f"swa_{name}": value
        for name, value in {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "head_dim": 24,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        }.items()
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    # the larger ones have no embeddings per layer
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling2_loop_text": {
        "unpadded_vocab_size": 97,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "inkling2_text": {"unpadded_vocab_size": 97},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "moe_layers": [1, 3]},
    "longcat_flash": {"zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minimax": {"head_dim": 16},
    "phi4_multimodal": {"sliding_window": 5},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ple_embed_dim": 8,
        "ngram_vocab_size_base": 97,
    },
    "roc_bert": {"shape_vocab_size": 97, "pronunciation_vocab_size": 97},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def causal_model_types() -> list[str]:
    """The model types of all causal language models of transformers, without those that hf_loop registers."""
    names = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return [name for name in names if CONFIG_MAPPING[name].__module__.startswith("transformers.")]


def tiny_decoder(model_type: str, **overrides) -> PreTrainedConfig:
    """A configuration of `model_type` with four layers, with what is special about it switched on."""
    default = CONFIG_MAPPING[model_type]()
    fields = {name: _small(name, value) for name, value in vars(default).items() if not name.startswith("_")}
    fields = {name: value for name, value in fields.items() if value is not None}
    if "kv_lora_rank" in fields:
        # latent attention has as many key heads as query heads, and its rotary part is the head's width
        fields |= {"num_key_value_heads": 4, "head_dim": 8}
    return CONFIG_MAPPING[model_type](**{**fields, **_TOKENS_OF_ALL, **OWN.get(model_type, {}), **overrides})


_TOKENS_OF_ALL = {name: _TOKENS[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id", "vocab_size")}


def _small(name: str, value: Any) -> Any:
    """The value of a field in a tiny configuration, `None` where the default stays."""
    if name in _PER_LAYER and isinstance(value, list | tuple) and value:
        kinds = list(dict.fromkeys(value))
        return [kinds[index % len(kinds)] for index in range(NUM_LAYERS)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        # `None` of these means that the width follows from others, or that there is no such part
        if value is None and name in ("num_key_value_heads", "head_dim", "final_logit_softcapping"):
            return _SMALL[name]
        return None
    if name in _OTHER_TOKENS:
        return 3
    if name in _SMALL:
        return _SMALL[name]
    if value == 1.0 and isinstance(value, float) and name.endswith(("multiplier", "scaling", "_scale")):
        # a factor of one would hide that it was forgotten
        return 1.5
    return None
