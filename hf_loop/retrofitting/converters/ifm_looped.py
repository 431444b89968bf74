"""LoopedLM (ifm-ai/xllm-loop): looped models of many kinds and the dense models beside them.

What the published code does is stated in ifm-ai/xllm-loop, `xllm/models/looped.py`, and in ifm-ai/xllm,
`xllm/modules/`. A checkpoint has its model's settings under `model` in `config.json`, the tokenizer in `tokenizer/`,
and tensors under the names of that code. Over layers of Llama, or with experts of ours:

    transformer   all layers once, or `loop_times` times (Ouro), with the embeddings injected before each loop or not
    huginn        prelude, core, coda; the core from noise or from the prelude's output, which is injected or not; or
                  the core as one or two stacks for a slow and a fast state (H/L), which becomes a hierarchical model

Stored differently: queries and keys for transformers' rotation (half-split, theirs is interleaved), gains of norms
with the one that their code adds, and the fast stack before the slow one. The noise is that of the first row of a
batch in Part I, where it differs between rows, and that of example 0 and seed 42 in Part II.

The published tokenizers add no beginning of a text, since the code for training does; the converted one does.

A model of Part II (`huginn_depth_control`) was evaluated with "terminal KV", the cache policy `"last_loop"`, which a
converted one has in its generation configuration.
"""

from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from ...models import HierarchicalConfig, IfmMoeBackboneConfig, LoopedConfig
from .ifm_settings import read_settings
from .rules import Rule, apply_rules, check_settings, half_split_rotary, rename


STATE_INITS: dict[str, Any] = {"zero": "zeros", "input": "input", "normal": "sine_normal"}
# length of the sequences of training
MAX_POSITIONS = 8192
# Part II's evaluation
PART_2_SEED = 42


def recognizes(config: dict) -> bool:
    """Whether a `config.json` has the settings of an xLLM model under `model`."""
    model = config.get("model")
    return isinstance(model, dict) and model.get("arch") in ("transformer", "huginn") and "model_dim" in model


def convert_config(config: dict) -> LoopedConfig | HierarchicalConfig:
    """The configuration of ours.

    Raises:
        ValueError: a setting has no counterpart here, or the checkpoint is a distilled student.
    """
    if "student" in config:
        raise ValueError(
            "a distilled student predicts a state of its teacher and is no model by itself: convert the teacher"
        )
    settings = read_settings(config)
    backbone_config = convert_backbone(config, settings)
    if settings["arch"] == "transformer":
        return convert_transformer(settings, backbone_config)
    if settings["huginn_hierarchical_state"] != "none":
        return convert_two_states(settings, backbone_config)
    return convert_huginn(settings, backbone_config)


def generation_settings(config: dict) -> dict[str, Any]:
    """What the converted model's generation configuration says besides the special tokens."""
    return {"cache_policy": "last_loop"} if read_settings(config)["huginn_depth_control"] else {}


def tokenizer_settings(config: dict) -> dict[str, Any]:
    """What the tokenizer has to say otherwise: all models were trained on texts that have a beginning."""
    return {"add_bos_token": True}


def convert_backbone(config: dict, settings: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of the layers."""
    shared: dict[str, Any] = {
        "vocab_size": settings["vocab_size"],
        "hidden_size": settings["model_dim"],
        "num_hidden_layers": settings["num_layers"],
        "num_attention_heads": settings["num_heads"],
        "num_key_value_heads": settings["num_kv_heads"] or settings["num_heads"],
        "head_dim": settings["head_dim"],
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": settings["rmsnorm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(settings["rope_base"])},
        "attention_dropout": settings["attention_dropout"],
        "tie_word_embeddings": False,
    }
    shared |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | config["tokenizer_token_ids"]
    if not settings["num_experts"]:
        return LlamaConfig(intermediate_size=settings["ffn_hidden_dim"], **shared)
    return IfmMoeBackboneConfig(
        intermediate_size=settings["expert_inter_dim"],
        num_local_experts=settings["num_experts"],
        num_experts_per_tok=settings["num_activated_experts"],
        **shared,
    )


def convert_transformer(settings: dict[str, Any], backbone_config: PreTrainedConfig) -> LoopedConfig:
    """A run of the layers once, or of some of them in loops."""
    start, end = settings["loop_start_layer"], settings["loop_end_layers"]
    is_injected = settings["loop_input_injection"] != "none"
    if is_injected:
        # the embeddings are injected, which are what a prelude without layers puts out
        check_settings(settings, {"loop_start_layer": (0,)})
    return LoopedConfig(
        backbone_config=backbone_config,
        num_prelude_layers=start,
        num_coda_layers=0 if end is None else settings["num_layers"] - end,
        num_loops=settings["loop_times"],
        injection="diagonal" if is_injected else "none",
        injection_norm=not is_injected,
    )


def convert_huginn(settings: dict[str, Any], backbone_config: PreTrainedConfig) -> LoopedConfig:
    """A prelude, a core with one state, and a coda."""
    kind, is_normed = settings["huginn_input_injection"], settings["huginn_prelude_norm"] == "rms"
    if is_normed:
        # our norm belongs to this injection, and a first state that is the input is not normed
        check_settings(settings, {"huginn_input_injection": ("diagonal",), "huginn_state_init": ("zero", "normal")})
    injection: Any = {"none": "none", "linear": "concat", "diagonal": "diagonal"}[kind]
    if kind == "diagonal" and settings["huginn_prelude_orthogonal"]:
        injection = "orthogonal"
    return LoopedConfig(
        backbone_config=backbone_config,
        num_prelude_layers=settings["huginn_prelude_layers"],
        num_coda_layers=settings["huginn_coda_layers"],
        num_loops=settings["loop_times"],
        injection=injection,
        injection_norm=is_normed or kind != "diagonal",
        injection_bias=kind == "linear" and settings["apply_bias_term"],
        loop_norm="weightless" if settings["huginn_recurrent_exit_norm"] == "parameterless_rms" else "none",
        **first_state(settings),
    )


def first_state(settings: dict[str, Any]) -> dict[str, Any]:
    """The fields of the first state."""
    if settings["huginn_state_init"] != "normal":
        return {"state_init": STATE_INITS[settings["huginn_state_init"]]}
    seed = PART_2_SEED if settings["huginn_depth_control"] else 0
    return {"state_init": "sine_normal", "state_std": settings["model_dim"] ** -0.5, "state_seed": seed}


def convert_two_states(settings: dict[str, Any], backbone_config: PreTrainedConfig) -> HierarchicalConfig:
    """A prelude, a slow and a fast state, and a coda."""
    # the slow state starts from the prelude's output, the fast one from noise or zero
    check_settings(settings, {"huginn_state_init": ("zero", "normal"), "huginn_input_injection": ("diagonal", "none")})
    is_injected = settings["huginn_input_injection"] == "diagonal"
    is_noise = settings["huginn_state_init"] == "normal"
    return HierarchicalConfig(
        backbone_config=backbone_config,
        num_prelude_layers=settings["huginn_prelude_layers"],
        num_coda_layers=settings["huginn_coda_layers"],
        num_loops=settings["huginn_hierarchical_h_cycles"],
        low_cycles=settings["huginn_hierarchical_l_cycles"],
        shared_stack=settings["huginn_hierarchical_state"] == "shared_hl",
        stack_repeats=settings["huginn_split_module_repeats"],
        injection="diagonal" if is_injected else "none",
        injection_norm=not is_injected,
        stack_norm="none",
        **(first_state(settings) if is_noise else {"state_init": "input"}),
    )


def convert_state_dict(config: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors from theirs; those of the experts of a layer are stacked."""
    settings = read_settings(config)
    rules = [
        rename("embed.weight", "model.backbone.embed_tokens.weight"),
        norm_rule("output.final_norm.weight", "model.backbone.norm.weight"),
        rename("output.output.weight", "lm_head.weight"),
        *injection_rules(settings),
    ]
    for index, source in enumerate(layer_order(settings)):
        rules += layer_rules(settings, f"layers.{source}", f"model.backbone.layers.{index}")
    converted = apply_rules(rules, tensors)
    for name in [name for name in converted if name.endswith(".mlp.experts.gate_proj")]:
        experts = name.removesuffix(".gate_proj")
        gate, up = converted.pop(name), converted.pop(f"{experts}.up_proj")
        converted[f"{experts}.gate_up_proj"] = torch.cat([gate, up], dim=1)
    return converted


def layer_order(settings: dict[str, Any]) -> list[int]:
    """The source's layers in our order, in which the fast stack comes before the slow one."""
    layers = list(range(settings["num_layers"]))
    if settings["arch"] != "huginn" or settings["huginn_hierarchical_state"] != "split_hl":
        return layers
    first, last = settings["huginn_prelude_layers"], settings["num_layers"] - settings["huginn_coda_layers"]
    half = (first + last) // 2
    return [*layers[:first], *layers[half:last], *layers[first:half], *layers[last:]]


def injection_rules(settings: dict[str, Any]) -> list[Rule]:
    """What lies between the layers."""
    is_huginn = settings["arch"] == "huginn"
    kind = settings["huginn_input_injection" if is_huginn else "loop_input_injection"]
    source = "input_injection" if is_huginn else "loop_input_injection_module"
    has_two_states = is_huginn and settings["huginn_hierarchical_state"] != "none"
    target = "model.stack_injection" if has_two_states else "model.injection"
    if kind == "none":
        return []
    if kind == "linear":
        names = ("weight", "bias") if settings["apply_bias_term"] else ("weight",)
        return [rename(f"{source}.adapter.{name}", f"{target}.proj.{name}") for name in names]
    rules = [rename(f"{source}.{name}", f"{target}.{name}") for name in ("A_log", "dt_bias")]
    rules.append(rename(f"{source}.input_adapter.weight", f"{target}.B.weight"))
    if is_huginn and settings["huginn_prelude_norm"] == "rms":
        rules.append(norm_rule("huginn_prelude_norm_module.weight", f"{target}.norm.weight"))
    return rules


def norm_rule(source: str, target: str) -> Rule:
    """The gains of a norm, to which the source adds one whenever it computes."""
    return Rule(source, (target,), lambda gains: [gains + 1])


def layer_rules(settings: dict[str, Any], source: str, target: str) -> list[Rule]:
    """One layer."""
    rotate = partial(half_split_rotary, head_dim=settings["head_dim"])
    attention, mlp = f"{target}.self_attn", f"{target}.mlp"
    rules = [
        norm_rule(f"{source}.attention.norm.weight", f"{target}.input_layernorm.weight"),
        Rule(f"{source}.attention.wq.weight", (f"{attention}.q_proj.weight",), lambda rows: [rotate(rows)]),
        Rule(f"{source}.attention.wk.weight", (f"{attention}.k_proj.weight",), lambda rows: [rotate(rows)]),
        rename(f"{source}.attention.wv.weight", f"{attention}.v_proj.weight"),
        rename(f"{source}.attention.wo.weight", f"{attention}.o_proj.weight"),
    ]
    # gate, output and input of the MLP
    names = {1: "gate_proj", 2: "down_proj", 3: "up_proj"}
    if not settings["num_experts"]:
        rules.append(norm_rule(f"{source}.nffn.norm.weight", f"{target}.post_attention_layernorm.weight"))
        for part, name in names.items():
            rules.append(rename(f"{source}.nffn.fc{part}.weight", f"{mlp}.{name}.weight"))
        return rules
    rules.append(norm_rule(f"{source}.moe.norm.weight", f"{target}.post_attention_layernorm.weight"))
    rules.append(rename(f"{source}.moe.router.weight", f"{mlp}.gate.weight"))
    # theirs lie below each other in one matrix
    stack = partial(torch.unflatten, dim=0, sizes=(settings["num_experts"], -1))
    return rules + [
        Rule(f"{source}.moe.experts.weight{part}", (f"{mlp}.experts.{name}",), lambda rows: [stack(rows)])
        for part, name in names.items()
    ]
