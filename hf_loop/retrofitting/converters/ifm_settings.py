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


def read_settings(config: dict) -> dict[str, Any]:
    """The settings of the model, with the defaults of those that are left out.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    settings = DEFAULTS | config["model"]
    settings["head_dim"] = head_dim = settings["head_dim"] or settings["model_dim"] // settings["num_heads"]
    check_settings(settings, SETTINGS)
    check_settings(settings, {"swiglu": (True,)} if not settings["num_experts"] else {})
    check_settings(settings, {"rope_head_dim": (None, head_dim), "v_head_dim": (None, head_dim)})
    check_settings(settings, {"output_size": (-1, settings["vocab_size"])})
    return settings
