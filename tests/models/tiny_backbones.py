"""A tiny configuration of every supported backbone."""

from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_loop.models.backbone import SUPPORTED_BACKBONES

from .tiny_decoders import tiny_decoder


COMMON = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# small enough that a prompt of a dozen tokens runs past it
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
OWN = {
    "codegen": {"rotary_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "cohere2": SLIDING | {"logit_scale": 0.25},
    "cohere2_moe": SLIDING | EXPERTS | {"logit_scale": 0.25},
    "deepseek_v3": {
        "head_dim": 8,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
    "doge": {"sliding_window": 5, "keep_window_size": 6},
    "dory": SLIDING | {"n_input_layers": 1, "n_output_layers": 1},
    "exaone4": SLIDING,
    "falcon": {"head_dim": None},
    "gemma2": SLIDING | {"final_logit_softcapping": 3.0},
    "gemma3_text": SLIDING | {"final_logit_softcapping": 3.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 5},
    "gpt_oss": EXPERTS | SLIDING,
    "gptj": {"rotary_dim": 8},
    "granite": {"embedding_multiplier": 6.0, "logits_scaling": 0.5, "residual_multiplier": 0.3},
    "huginn_backbone": {"embedding_multiplier": 3.0},
    "ifm_moe_backbone": EXPERTS,
    "inkling2_loop_text": {
        "unpadded_vocab_size": 97,
        "num_hidden_layers": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 5,
        "layer_types": ["hybrid_sliding", "hybrid"] * 4,
        "d_rel": 4,
        "rel_extent": 8,
        "log_scaling_n_floor": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_layers_per_attn_res_block": 2,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 6,
        "loop_num_passes": 3,
        "loop_gate_rank": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "minicpm3": {
        "head_dim": 8,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "scale_emb": 3.0,
        "dim_model_base": 16,
    },
    "ministral": SLIDING,
    "mistral": {"sliding_window": 5},
    "mixtral": EXPERTS,
    "nanochat": {"final_logit_softcapping": 3.0},
    "olmo3": SLIDING,
    "olmo_hybrid": LINEAR_ATTENTION,
    "olmoe": EXPERTS,
    "parcae_backbone": {
        "value_embedding_layers": [1, 3],
        "value_gate_channels": 16,
        "embedding_multiplier": 3.0,
        "logit_scale": 0.5,
        "final_logit_softcapping": 3.0,
    },
    "phi": {"embd_pdrop": 0.1},
    "phi3": {"sliding_window": 5},
    "qwen2": SLIDING | {"use_sliding_window": True},
    "qwen2_moe": EXPERTS,
    "qwen3_5_text": LINEAR_ATTENTION,
    "qwen3_moe": EXPERTS,
    "qwen3_next": LINEAR_ATTENTION | EXPERTS,
    "starcoder2": {"sliding_window": 5, "embedding_dropout": 0.1},
    "vaultgemma": SLIDING | {"final_logit_softcapping": 3.0},
    "xglm": {"ffn_dim": 96},
}
# those that the installed release of transformers has
MODEL_TYPES = sorted(model_type for model_type in SUPPORTED_BACKBONES if model_type in CONFIG_MAPPING)
# made by shrinking the default configuration instead
SHRUNK = {
    "bamba",
    "falcon_h1",
    "gemma4_text",
    "gemma4_unified_text",
    "gpt-sw3",
    "gpt_neox_japanese",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hyperclovax",
    "jamba",
    "kimi_linear",
    "laguna",
    "lara_mini",
    "lfm2_moe",
    "lfm3",
    "mellum",
    "mimo_v2_flash",
    "nemotron_h",
    "qwen3_5_moe_text",
    "zamba",
    "zamba2",
}


def tiny_backbone(model_type: str, **overrides) -> PreTrainedConfig:
    """A four-layer configuration of `model_type`, with what is special about it switched on."""
    if model_type in SHRUNK:
        return tiny_decoder(model_type, **overrides)
    fields = {**COMMON, **OWN.get(model_type, {}), **overrides}
    # some configurations derive it and cannot be told
    if fields["head_dim"] is None:
        del fields["head_dim"]
    return CONFIG_MAPPING[model_type](**fields)


def _having(flag: str) -> list[str]:
    return [model_type for model_type in MODEL_TYPES if getattr(SUPPORTED_BACKBONES[model_type], flag)]


# one of every kind, for tests that take long: plain, experts, compressed keys, several rotary embeddings, something
# around the layers, hybrids, other names of parts, positions that are learned, made of sines or a bias, a head's bias
KINDS = [
    "apertus",
    "bloom",
    "deepseek_v3",
    "doge",
    "falcon",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "granite",
    "lfm2",
    "llama",
    "minicpm3",
    "mpt",
    "nanochat",
    "olmo2",
    "opt",
    "parcae_backbone",
    "phi",
    "qwen2_moe",
    "qwen3_5_text",
    "qwen3_next",
    "starcoder2",
    "xglm",
]
# layers that look up embeddings of tokens, which rows of memory are not and second passes have none of
EMBED_TOKENS = _having("layers_take_token_ids")
ADD_POSITIONS = _having("adds_positions")
COUNT_COLUMNS = _having("counts_columns")
# a state that has no blocks
HYBRIDS = [
    model_type
    for model_type in MODEL_TYPES
    if {"conv", "hybrid", "linear_attention"}.intersection(getattr(tiny_backbone(model_type), "layer_types", ()))
]
# layers that sleep does not run
AWAKE = ["falcon_h1", "jamba", "nemotron_h", "zamba", "zamba2"]
# and those whose state is what it writes
FAST_WEIGHTS = [
    model_type
    for model_type in HYBRIDS
    if "linear_attention" in getattr(tiny_backbone(model_type), "layer_types", ()) and model_type not in AWAKE
]
# residuals are scaled by the number of layers, which must stay as it is
SCALED_BY_DEPTH = ["minicpm3"]
