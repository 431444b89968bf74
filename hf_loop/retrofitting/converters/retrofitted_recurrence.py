"""Retrofitted recurrence (https://huggingface.co/papers/2511.07384): looped Llama-3.2, TinyLlama and OLMo-2.

What the published code does is stated in LoopedLMs/retrofitting-recurrence, `convert_pretrained_model/`,
`raven_modeling_minimal_llama.py` and `..._olmo.py`: Huginn's schedule on the base model's own layers, without scaled
embeddings and without a norm between core and coda. The rotation is transformers' already. Query, key and value
projections are fused, and so are the MLP's gate and up projections.

The checkpoints carry Huginn's special token ids, which are ordinary words in the base models' vocabularies. They are
replaced by those of the tokenizer, or, where there is none, of the base model that has the vocabulary.
"""

from typing import Any

import torch
from transformers import LlamaConfig, Olmo2Config, PreTrainedConfig

from ...models import LoopedConfig
from . import huginn
from .rules import Rule, apply_rules, check_settings, drop_tied_head, rename, split_rows


# of these the published code reads only the last two: the others say what it was written for
SETTINGS = {
    "bias": (False,),
    "injection_type": ("linear", "add"),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "qk_bias": (False,),
    "state_init": ("like-init", "zero"),
    "initial_state_mode": ("random", "embed-init"),
    "test_time_noise": (0,),
}
HUGINN_TOKEN_IDS = {
    "bos_token_id": huginn.BEGIN_TEXT,
    "eos_token_id": huginn.END_TEXT,
    "pad_token_id": huginn.PAD,
}
# by size of the vocabulary: TinyLlama, Llama-3, OLMo-2
BASE_TOKEN_IDS = {
    32000: {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    128256: {"bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004},
    100352: {"bos_token_id": 100257, "eos_token_id": 100257, "pad_token_id": 100277},
}


def recognizes(config: dict) -> bool:
    """Whether this is Huginn's model type with a rotation of transformers'."""
    return config.get("model_type") in huginn.MODEL_TYPES and not huginn.recognizes(config)


def is_olmo(config: dict) -> bool:
    """Whether queries and keys are normed, as in OLMo-2; the configuration does not say."""
    return "transformer.prelude.0.attn.q_norm.weight" in config["tensor_names"]


def convert_config(config: dict) -> LoopedConfig:
    """The configuration of ours.

    Raises:
        ValueError: a setting has no counterpart here, or the base model's special tokens are not known.
    """
    check_settings(config, SETTINGS)
    state_init: Any = huginn.STATE_INITS[config["state_init"]]
    if config.get("initial_state_mode", "random") == "embed-init":
        state_init = "input"
    prelude, _, coda = huginn.num_layers(config)
    return LoopedConfig(
        backbone_config=convert_backbone_config(config),
        num_prelude_layers=prelude,
        num_coda_layers=coda,
        num_loops=config["mean_recurrence"],
        injection=huginn.INJECTIONS[config["injection_type"]],
        state_init=state_init,
        # of Huginn's width, not of this model's: the published checkpoints kept the number
        state_std=config["init_values"]["std"],
    )


def convert_backbone_config(config: dict) -> PreTrainedConfig:
    """The base model's configuration, with as many layers as were kept of it."""
    # `rope_base` is another model's: the published code hands `rope_theta` and `rope_scaling` to transformers
    rope_parameters = {"rope_type": "default", "rope_theta": config["rope_theta"]} | (config.get("rope_scaling") or {})
    shared: dict[str, Any] = dict(
        vocab_size=config.get("padded_vocab_size", config["vocab_size"]),
        hidden_size=config["n_embd"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=sum(huginn.num_layers(config)),
        num_attention_heads=config["n_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        max_position_embeddings=config.get("max_position_embeddings", config["block_size"]),
        rms_norm_eps=config["norm_eps"],
        rope_parameters=rope_parameters,
        tie_word_embeddings=config["tie_embeddings"],
        **token_ids(config),
    )
    if is_olmo(config):
        return Olmo2Config(**shared)
    return LlamaConfig(head_dim=config["n_embd"] // config["n_heads"], **shared)


def token_ids(config: dict) -> dict[str, Any]:
    """The special token ids of the base model.

    Raises:
        ValueError: the checkpoint has Huginn's, comes without a tokenizer, and has no known vocabulary.
    """
    if config["tokenizer_token_ids"]:
        return {name: config["tokenizer_token_ids"].get(name) for name in HUGINN_TOKEN_IDS}
    vocab_size = config.get("padded_vocab_size", config["vocab_size"])
    if vocab_size in BASE_TOKEN_IDS:
        return BASE_TOKEN_IDS[vocab_size]
    stated = {name: config.get(name) for name in HUGINN_TOKEN_IDS}
    if any(stated[name] == token_id for name, token_id in HUGINN_TOKEN_IDS.items()):
        raise ValueError(
            f"`eos_token_id` of the checkpoint is {stated['eos_token_id']}, which is Huginn's: put the base model's "
            "tokenizer.json beside it, to take the special tokens from"
        )
    return stated


def convert_state_dict(config: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights from theirs."""
    rules = huginn.outer_rules(config)
    if config["tie_embeddings"]:
        drop_tied_head(tensors, "lm_head.weight", "transformer.wte.weight")
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    for source, target in huginn.layer_names(config):
        rules += layer_rules(config, source, target)
    return apply_rules(rules, tensors)


def layer_rules(config: dict, source: str, target: str) -> list[Rule]:
    """One layer."""
    key_size = config["num_key_value_heads"] * (config["n_embd"] // config["n_heads"])
    attention = f"{target}.self_attn"
    rules = [
        Rule(
            f"{source}.attn.Wqkv.weight",
            tuple(f"{attention}.{name}_proj.weight" for name in "qkv"),
            split_rows(config["n_embd"], key_size, key_size),
        ),
        rename(f"{source}.attn.proj.weight", f"{attention}.o_proj.weight"),
        Rule(
            f"{source}.mlp.fc.weight",
            (f"{target}.mlp.gate_proj.weight", f"{target}.mlp.up_proj.weight"),
            split_rows(config["intermediate_size"], config["intermediate_size"]),
        ),
        rename(f"{source}.mlp.proj.weight", f"{target}.mlp.down_proj.weight"),
    ]
    # Llama norms what goes into a sub-layer, OLMo-2 what comes out of it
    norms = ("input_layernorm", "post_attention_layernorm")
    if is_olmo(config):
        norms = ("post_attention_layernorm", "post_feedforward_layernorm")
        for name in ("q_norm", "k_norm"):
            rules.append(rename(f"{source}.attn.{name}.weight", f"{attention}.{name}.weight"))
    for index, norm in enumerate(norms, start=1):
        rules.append(rename(f"{source}.norm_{index}.weight", f"{target}.{norm}.weight"))
    return rules
