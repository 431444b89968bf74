"""Parcae (https://huggingface.co/papers/2604.12946).

What the published code does is stated in sandyresearch/parcae, `parcae_lm/models/parcae/parcae.py` and
`parcae_lm/modules/`: `e = norm(prelude(embed(x)))`; loops of `core(exp(-D A) s + D B e)`; then a linear map, the coda
and the final norm. Stored differently: queries and keys for transformers' rotation (half-split, theirs is
interleaved), and half of the MLP's output projection, since theirs is `max(x, 0)^2 / 2` where transformers' relu2 has
no half.

Value embeddings come in every second layer, counted in two ways: their tables by the layer's place in the backbone,
the gates that let them in by its place in a network of `mean_recurrence` unrolled loops. A layer uses them where it
has both. In the published models the two agree; elsewhere tables or gates that nothing reads are dropped.
"""

import math
from functools import partial
from typing import Any

import torch

from ...models import LoopedConfig
from ...models.configuration_parcae import ParcaeBackboneConfig
from .rules import Rule, apply_rules, check_settings, drop_tied_head, half_split_rotary, rename


SETTINGS = {
    "bias": (False,),
    "block_class_name": ("TransformerPreNormBlock",),
    "clip_qkv": (None,),
    "injection_type": ("diagonal", "linear", "add"),
    "mlp_class_name": ("BaseMLP",),
    "mup_model_scaling_factor": (1,),
    "nonlin_name": ("ReLU2",),
    "norm_class_name": ("RMSNorm",),
    "qk_bias": (False,),
    "qk_norm": (True,),
    "state_init": ("like-init", "zero"),
}
INJECTIONS: dict[str, Any] = {"diagonal": "diagonal", "linear": "concat", "add": "add"}
STATE_INITS: dict[str, Any] = {"like-init": "normal", "zero": "zeros"}
# strategies of initialisation under which embeddings and state start with sqrt(2 / (5 d)), and whether the embeddings
# and the logits are then scaled in the forward pass
SCALES_EMBEDDINGS = {"scaled": False, "scaled-zero": False, "scaled-geiping": False, "takase": True}
SCALES_EMBEDDINGS |= {"scaled-stuck": False, "takase-scaled": True}
SCALES_LOGITS = ("takase-scaled",)
VALUE_GATE_CHANNELS = 32
# the first three entries of the published tokenizer, by `scripts/tok_train.py`; its files give them no roles
PUBLISHED_VOCAB_SIZE = 32768
PUBLISHED_TOKEN_IDS: dict[str, int | None] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")


def recognizes(config: dict) -> bool:
    """Whether either of the two ways in which the published code saves a model says it is one."""
    return config.get("_class_name") == "ParcaeConfig" or config.get("model_class_name") == "Parcae"


def num_layers(config: dict) -> tuple[int, int, int]:
    """Layers in the prelude, the core and the coda."""
    return config["n_layers_in_prelude"], config["n_layers_in_recurrent_block"], config["n_layers_in_coda"]


def layer_names(config: dict) -> list[str]:
    """The prefix of every layer in the source, in our order."""
    names = ("prelude", "core_block", "coda")
    counts = num_layers(config)
    return [f"transformer.{name}.{index}" for name, count in zip(names, counts) for index in range(count)]


def value_layers(config: dict) -> tuple[set[int], set[int]]:
    """The layers of the backbone that have a table of value embeddings, and those that have a gate for it."""
    prelude, core, coda = num_layers(config)
    total = prelude + core + coda
    tables = {index for index in range(total) if index % 2 == (total - 1) % 2}
    # the network's length and a layer's place in it, as the published code numbers them
    length = core * config["mean_backprop_depth"]
    places = [*range(prelude + core), *(prelude + core * config["mean_recurrence"] + index for index in range(coda))]
    gates = {index for index, place in enumerate(places) if place % 2 == (length - 1) % 2}
    return tables, gates


def convert_config(config: dict) -> LoopedConfig:
    """The configuration of ours.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    check_settings(config, SETTINGS)
    rope_settings = config.get("rope_settings", {})
    check_settings(rope_settings, {"use_rope": (True,), "rope_condense_ratio": (1,)})
    check_settings(config, {"init_strategy": tuple(SCALES_EMBEDDINGS)})
    # only the diagonal injection norms what it injects
    is_diagonal = config["injection_type"] == "diagonal"
    check_settings(config, {"prelude_norm": (is_diagonal,)})
    check_core_size(config)

    hidden_size, strategy = config["n_embd"], config["init_strategy"]
    embedding_scale = math.sqrt(hidden_size) if SCALES_EMBEDDINGS[strategy] else 1.0
    tables, gates = value_layers(config)
    prelude, core, coda = num_layers(config)
    backbone_config = ParcaeBackboneConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=hidden_size,
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=prelude + core + coda,
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        max_position_embeddings=config["block_size"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(rope_settings.get("rope_base", 50000))},
        tie_word_embeddings=config["tie_embeddings"],
        value_embedding_layers=sorted(tables & gates),
        value_gate_channels=VALUE_GATE_CHANNELS,
        embedding_multiplier=embedding_scale,
        logit_scale=math.sqrt(2 / (5 * hidden_size)) if strategy in SCALES_LOGITS else 1.0,
        final_logit_softcapping=config.get("logit_softcap"),
        **token_ids(config),
    )
    return LoopedConfig(
        backbone_config=backbone_config,
        num_prelude_layers=prelude,
        num_coda_layers=coda,
        num_loops=config["mean_recurrence"],
        injection=INJECTIONS[config["injection_type"]],
        state_init=STATE_INITS[config["state_init"]],
        state_std=math.sqrt(2 / (5 * hidden_size)) * embedding_scale,
        state_projection=True,
    )


def token_ids(config: dict) -> dict[str, Any]:
    """The special token ids: of the tokenizer where it names them, which the published one does not."""
    published = config["vocab_size"] == PUBLISHED_VOCAB_SIZE
    defaults = PUBLISHED_TOKEN_IDS if published else dict.fromkeys(PUBLISHED_TOKEN_IDS)
    return defaults | config["tokenizer_token_ids"]


def check_core_size(config: dict) -> None:
    """Refuse a core of another width than the rest.

    Raises:
        ValueError: a size differs; the message names it.
    """
    heads = config["num_attention_heads"]
    for name, value, expected in (
        ("recurrent_embedding_dimension", config["recurrent_embedding_dimension"], config["n_embd"]),
        (
            "recurrent_intermediation_embedding_dimension",
            config["recurrent_intermediation_embedding_dimension"],
            config["intermediate_size"],
        ),
        ("recurrent_num_attention_heads", config.get("recurrent_num_attention_heads") or heads, heads),
        # the core has as many heads for keys as for queries, whatever the other layers have
        ("num_key_value_heads", config["num_key_value_heads"], heads),
    ):
        if value != expected:
            raise ValueError(f"`{name}` of the checkpoint is {value}; only {expected}, as elsewhere, can be converted")


def convert_state_dict(config: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights from theirs; the rotation's table and what nothing reads are dropped."""
    strip_wrappers(tensors)
    tensors.pop("freqs_cis", None)
    tables, gates = value_layers(config)
    names = layer_names(config)
    for index in tables - gates:
        tensors.pop(f"value_embeds.{index}.weight", None)
    for index in gates - tables:
        tensors.pop(f"{names[index]}.attn.ve_gate.weight", None)

    rules = outer_rules(config, tensors)
    for index, source in enumerate(names):
        attention = f"model.backbone.layers.{index}.self_attn"
        rules += layer_rules(config, source, f"model.backbone.layers.{index}")
        if index in tables & gates:
            rules.append(rename(f"value_embeds.{index}.weight", f"{attention}.value_embedding.weight"))
            rules.append(rename(f"{source}.attn.ve_gate.weight", f"{attention}.value_gate.weight"))
    return apply_rules(rules, tensors)


def strip_wrappers(tensors: dict[str, torch.Tensor]) -> None:
    """Take off what data parallelism and compilation put before the names."""
    for name in list(tensors):
        stripped = name
        for prefix in WRAPPER_PREFIXES:
            stripped = stripped.removeprefix(prefix)
        tensors[stripped] = tensors.pop(name)


def outer_rules(config: dict, tensors: dict[str, torch.Tensor]) -> list[Rule]:
    """What lies around the layers."""
    rules = [
        rename("transformer.wte.weight", "model.backbone.embed_tokens.weight"),
        rename("transformer.C.weight", "model.state_projection.weight"),
        rename("transformer.ln_f.weight", "model.backbone.norm.weight"),
    ]
    if config["injection_type"] == "diagonal":
        rules += [
            rename("transformer.adapter.A_log", "model.injection.A_log"),
            rename("transformer.adapter.dt_bias", "model.injection.dt_bias"),
            rename("transformer.adapter.B", "model.injection.B.weight"),
            rename("transformer.ln_prelude.weight", "model.injection.norm.weight"),
        ]
    elif config["injection_type"] == "linear":
        rules.append(rename("transformer.adapter.adapter.weight", "model.injection.proj.weight"))
    if config["tie_embeddings"]:
        drop_tied_head(tensors, "lm_head.weight", "transformer.wte.weight")
    elif config.get("use_fused_head") == "full-triton":
        # the fused kernel's matrix lies the other way round
        rules.append(Rule("lm_head.weight", ("lm_head.weight",), lambda weight: [weight.T.contiguous()]))
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    return rules


def layer_rules(config: dict, source: str, target: str) -> list[Rule]:
    """One layer, without its value embedding."""
    rotate = partial(half_split_rotary, head_dim=config["n_embd"] // config["num_attention_heads"])
    return [
        Rule(f"{source}.attn.c_q.weight", (f"{target}.self_attn.q_proj.weight",), lambda rows: [rotate(rows)]),
        Rule(f"{source}.attn.c_k.weight", (f"{target}.self_attn.k_proj.weight",), lambda rows: [rotate(rows)]),
        rename(f"{source}.attn.c_v.weight", f"{target}.self_attn.v_proj.weight"),
        rename(f"{source}.attn.c_proj.weight", f"{target}.self_attn.o_proj.weight"),
        rename(f"{source}.mlp.fc.weight", f"{target}.mlp.fc1.weight"),
        # exact: halving a floating-point number loses nothing
        Rule(f"{source}.mlp.proj.weight", (f"{target}.mlp.fc2.weight",), lambda weight: [0.5 * weight]),
        rename(f"{source}.norm_1.weight", f"{target}.input_layernorm.weight"),
        rename(f"{source}.norm_2.weight", f"{target}.post_attention_layernorm.weight"),
    ]
