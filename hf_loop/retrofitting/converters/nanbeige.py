"""Nanbeige4.2 (https://huggingface.co/papers/2607.22083) as a looped model over a Llama backbone.

The published model is a Llama (grouped queries, half-split rotary embedding, SwiGLU) whose whole stack runs
`num_loops` times, with the final norm at the end of every loop unless `skip_loop_final_norm`. A non-empty
`loop_loss_weights` sets the loop count instead of `num_loops`: one weight for each loop before the last.

Its code has further options, all off in the published checkpoints; one that is on is refused by name.

`save` writes the layout, which llama.cpp, mlx-lm and SGLang run with shared weights from code of their own, and vLLM
from the published code. What it refuses is what one of them would leave out without a word, as read in
`conversion/nanbeige.py` and `src/models/nanbeige.cpp` of ggml-org/llama.cpp, `mlx_lm/models/nanbeige.py` of
ml-explore/mlx-lm and `srt/models/nanbeige.py` of sgl-project/sglang: biases, another activation, a scaled or partial
rotary embedding.
"""

import copy
import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from ...files import read_json, write_text
from ...models import LoopedConfig, LoopedForCausalLM
from ...models.checks import check_positive_int
from ..unrolling import unroll
from .native import TOKEN_IDS
from .rules import Rule, apply_rules, check_schedule, drop_tied_head, rename


BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
UNSUPPORTED = (
    "qk_layernorm",
    "emb_neighbor_num",
    "emb_split_num",
    "ngram_vocab_size_ratio",
    "insert_ngram_layer_idx",
    "ngram_insert_all_layers",
    "enable_double_loop_split",
    "loop_middle_layers",
    "loop_share_kv",
    "enable_hyper_connection",
    "enable_mhc",
    "enable_h_res_identity",
    "mhc_diff_for_loop",
    "mhc_double_stream_position_for_loop",
    "enable_depth_attention",
)
# the schedule of Nanbeige, and what else is refused: its name, and the field of the layers' configuration
SCHEDULE: dict[str, Any] = {
    "num_prelude_layers": 0,
    "num_coda_layers": 0,
    "injection": "none",
    "state_init": "input",
    "loop_update": "replace",
    "coda_norm": False,
    "state_projection": False,
    "exit_gate": False,
    "loop_lora_rank": 0,
}
LAYERS: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
LOOP_NORMS = ("final", "none")
# fields of a Llama under the same names; the rotary embedding is written as in the published files
WRITTEN_FIELDS = [name for name in BACKBONE_FIELDS if not name.startswith("rope_")]
WRITTEN_FIELDS += ["tie_word_embeddings", "use_cache", "dtype", "unpacked_from", "transformers_version"]
# fetched by transformers, if its caller trusts it, where no engine has code of its own
PUBLISHED_CODE = "Nanbeige/Nanbeige4.2-3B"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is that of a looped Nanbeige (the first, unlooped one shares the type)."""
    return config.get("model_type") == "nanbeige" and "num_loops" in config


def convert_config(config: dict[str, Any]) -> LoopedConfig:
    """The configuration of the looped model.

    Args:
        config (`dict`): Nanbeige's `config.json`.

    Returns:
        `LoopedConfig`, over a `LlamaConfig`.

    Raises:
        ValueError: an option that changes the computation is switched on; the message names all of them.
    """
    switched_on = [f"{name}={config[name]!r}" for name in UNSUPPORTED if config.get(name)]
    if switched_on:
        raise ValueError(f"options of this Nanbeige checkpoint are not supported: {', '.join(switched_on)}")
    fields = {name: copy.deepcopy(config[name]) for name in BACKBONE_FIELDS if config.get(name) is not None}
    # that there is no such token is said by null; Llama's own configuration would have one
    fields |= {name: config[name] for name in TOKEN_IDS if name in config}
    backbone_config = LlamaConfig(
        **fields,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        dtype=config.get("dtype", config.get("torch_dtype")),
    )
    loop_loss_weights = config.get("loop_loss_weights")
    return LoopedConfig(
        backbone_config=backbone_config,
        num_loops=len(loop_loss_weights) + 1 if loop_loss_weights else config["num_loops"],
        loop_norm="none" if config.get("skip_loop_final_norm") else "final",
    )


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from Nanbeige's; the rotary frequencies that some copies store follow from the configuration."""
    for name in [name for name in tensors if name.endswith(".rotary_emb.inv_freq")]:
        del tensors[name]
    rules = [
        rename("model.embed_tokens.weight", "model.backbone.embed_tokens.weight"),
        rename("model.norm.weight", "model.backbone.norm.weight"),
    ]
    if config.get("tie_word_embeddings"):
        drop_tied_head(tensors, "lm_head.weight", "model.embed_tokens.weight")
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    for index in range(config["num_hidden_layers"]):
        rules += _layer_rules(config, index)
    return apply_rules(rules, tensors)


def save(model: LoopedForCausalLM, folder: Path, num_loops: int | None = None) -> None:
    """Write a looped model of Nanbeige's shape in Nanbeige's layout: all layers of a Llama in every loop.

    Args:
        model (`LoopedForCausalLM`): the looped model.
        folder (`Path`): where `config.json`, `generation_config.json` and the weights go.
        num_loops (`int`, *optional*): loops that the engines run, `model.config.num_loops` if not given.

    Raises:
        ValueError: the layers are others, or they or the schedule do what an engine would leave out; the generation
            configuration has a setting that engines do not know; or `model` carries an adapter that was not merged,
            or its weights are offloaded.
    """
    if not isinstance(model, LoopedForCausalLM):
        raise ValueError(f"`model` must be a LoopedForCausalLM, got {type(model).__name__}")
    config: Any = model.config
    if config.backbone_config.model_type != "llama":
        raise ValueError(f"`model` must run llama layers, got {config.backbone_config.model_type!r}")
    num_loops = config.num_loops if num_loops is None else check_positive_int("num_loops", num_loops)
    check_schedule(config, SCHEDULE, "nanbeige")
    check_schedule(config.backbone_config, LAYERS, "nanbeige")
    if config.loop_norm not in LOOP_NORMS:
        raise ValueError(f"`loop_norm` of nanbeige is 'final' or 'none', got {config.loop_norm!r}")
    rope_theta = _rope_theta(config.backbone_config.rope_parameters)
    # one loop of this shape is a Llama, which knows how its weights are stored
    unroll(model, 1).save_pretrained(folder)
    fields = read_json(folder / "config.json")
    written = {name: fields[name] for name in WRITTEN_FIELDS if name in fields}
    written |= {
        "model_type": "nanbeige",
        "architectures": ["NanbeigeForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{PUBLISHED_CODE}--configuration_nanbeige.NanbeigeConfig",
            "AutoModelForCausalLM": f"{PUBLISHED_CODE}--modeling_nanbeige.NanbeigeForCausalLM",
        },
        "rope_theta": rope_theta,
        "rope_scaling": None,
        "num_loops": num_loops,
        # the published code takes the number of loops from this where it is not empty
        "loop_loss_weights": [],
        "skip_loop_final_norm": config.loop_norm == "none",
    }
    write_text(folder / "config.json", json.dumps(written, indent=2) + "\n")


def _rope_theta(parameters: dict[str, Any]) -> float:
    if {**parameters, "rope_theta": 0} != {"rope_type": "default", "rope_theta": 0}:
        raise ValueError(f"`rope_parameters` of nanbeige are a `rope_theta` alone, got {parameters}")
    return parameters["rope_theta"]


def _layer_rules(config: dict[str, Any], index: int) -> list[Rule]:
    names = [f"{module}.weight" for module in ATTENTION + MLP + NORMS]
    if config.get("attention_bias"):
        names += [f"{module}.bias" for module in ATTENTION]
    if config.get("mlp_bias"):
        names += [f"{module}.bias" for module in MLP]
    return [rename(f"model.layers.{index}.{name}", f"model.backbone.layers.{index}.{name}") for name in names]
