"""The settings of an xLLM model (ifm-ai/xllm-loop, `xllm/config.py`): their defaults, and what can be converted."""

from typing import Any

from .rules import check_settings


# of `ModelConf`, for the settings that a file leaves out
DEFAULTS: dict[str, Any] = {
    "apply_attn_gate": False,
    "apply_bias_term": False,
    "apply_rmsnorm": False,
    "attn_act_func": "softmax",
    "attention_dropout": 0.0,
    "dense_prelude_input_injection": "none",
    "dropout": 0.0,
    "head_dim": None,
    "hidden_dropout": 0.0,
    "huginn_coda_layers": 1,
    "huginn_depth_control": False,
    "huginn_hierarchical_h_cycles": 2,
    "huginn_hierarchical_l_cycles": 3,
    "huginn_hierarchical_state": "none",
    "huginn_input_injection": "diagonal",
    "huginn_ortho_projection_eps": 1e-6,
    "huginn_prelude_layers": 1,
    "huginn_prelude_norm": "none",
    "huginn_prelude_orthogonal": False,
    "huginn_recurrent_exit_norm": "none",
    "huginn_recurrent_layers": None,
    "huginn_split_module_repeats": 1,
    "huginn_state_init": "zero",
    "layernorm_num_groups": 1,
    "loop_end_layers": None,
    "loop_input_injection": "none",
    "loop_start_layer": 0,
    "loop_times": 1,
    "moe_router_bias": False,
    "moe_router_scaling_factor": None,
    "moe_router_score_func": "sigmoid",
    "norm_affine": True,
    "num_dense_layers": None,
    "num_experts": 0,
    "num_kv_heads": None,
    "num_shared_experts": 0,
    "num_values": 0,
    "output_size": -1,
    "qknorm": False,
    "residual_func": "base",
    "rmsnorm_eps": 1e-6,
    "rope_base": 100000,
    "rope_head_dim": None,
    "scale_emb": False,
    "swiglu": False,
    "v_head_dim": None,
}
SETTINGS: dict[str, tuple] = {
    "apply_attn_gate": (False,),
    "apply_rmsnorm": (True,),
    "attn_act_func": ("softmax",),
    # of the recipes, `moe_ff112_prelude_injection` alone injects between layers of its own
    "dense_prelude_input_injection": ("none",),
    "dropout": (0.0,),
    "hidden_dropout": (0.0,),
    "huginn_hierarchical_state": ("none", "shared_hl", "split_hl"),
    "huginn_input_injection": ("none", "diagonal", "linear"),
    "huginn_ortho_projection_eps": (1e-6,),
    "huginn_prelude_norm": ("none", "rms"),
    "huginn_recurrent_exit_norm": ("none", "parameterless_rms"),
    "huginn_state_init": ("zero", "input", "normal"),
    "layernorm_num_groups": (1,),
    "loop_input_injection": ("none", "diagonal"),
    "moe_router_bias": (False,),
    "moe_router_scaling_factor": (None,),
    "moe_router_score_func": ("sigmoid",),
    "norm_affine": (True,),
    "num_dense_layers": (None, 0),
    "num_shared_experts": (0,),
    "num_values": (0,),
    "qknorm": (False,),
    "residual_func": ("base", "add"),
    "scale_emb": (False,),
}
# without a default: those of every model, and of one with experts
SIZES = ("arch", "num_layers", "model_dim", "num_heads", "ffn_hidden_dim", "vocab_size")
SIZES += ("num_activated_experts", "expert_inter_dim")
# what does not count after training, or in these architectures: what the names begin with, and whole names
WITHOUT_EFFECT = ("causal_conv_", "init_", "recompute_", "timenorm_")
WITHOUT_EFFECT += ("huginn_antithetic_", "huginn_backprop_", "huginn_depth_prior", "huginn_diagonal_")
WITHOUT_EFFECT += ("huginn_poisson_", "huginn_sampling_", "loop_diagonal_", "dense_prelude_")
WITHOUT_EFFECT += ("attn_gate_func", "awm_orthogonal_update", "causal_attn_backend", "chunk_size", "ddp_backend")
WITHOUT_EFFECT += ("fused_block", "fused_output_layer", "layernorm_eps", "layerwise_ckpt", "memory_efficient_norm")
WITHOUT_EFFECT += ("moe_expert_backend", "moe_permutation_backend", "moe_router_bias_update_rate", "mova_backend")
WITHOUT_EFFECT += ("num_activated_values", "residual_heads", "sca_backend")


def read_settings(config: dict) -> dict[str, Any]:
    """The settings of the model, with the defaults of those that are left out.

    Raises:
        ValueError: a setting is not known, has no counterpart here, or does not fit the others.
    """
    others = config["model"].keys() - DEFAULTS.keys() - set(SIZES)
    unknown = sorted(name for name in others if not name.startswith(WITHOUT_EFFECT))
    if unknown:
        named = ", ".join(f"`{name}` of the checkpoint is {config['model'][name]!r}" for name in unknown)
        raise ValueError(f"{named}: no such setting is known")
    settings = DEFAULTS | config["model"]
    settings["head_dim"] = head_dim = settings["head_dim"] or settings["model_dim"] // settings["num_heads"]
    check_settings(settings, SETTINGS)
    check_settings(settings, {"swiglu": (True,)} if not settings["num_experts"] else {})
    check_settings(settings, {"rope_head_dim": (None, head_dim), "v_head_dim": (None, head_dim)})
    check_settings(settings, {"output_size": (-1, settings["vocab_size"])})
    if settings["arch"] == "huginn":
        _check_huginn(settings)
    return settings


def _check_huginn(settings: dict[str, Any]) -> None:
    """Refuse counts that the published code refuses, each of which says twice how large or deep a model is."""
    num_outside = settings["huginn_prelude_layers"] + settings["huginn_coda_layers"]
    check_settings(settings, {"huginn_recurrent_layers": (None, settings["num_layers"] - num_outside)})
    if settings["huginn_hierarchical_state"] != "none":
        num_calls = settings["huginn_hierarchical_h_cycles"] * (settings["huginn_hierarchical_l_cycles"] + 1)
        check_settings(settings, {"loop_times": (num_calls,)})
