"""HRM (https://huggingface.co/papers/2506.21734) and TRM (https://huggingface.co/papers/2510.04871), puzzle models.

What the published code does is stated in sapientinc/HRM, `models/hrm/hrm_act_v1.py`, and in
SamsungSAILMontreal/TinyRecursiveModels, `models/recursive_reasoning/trm.py`. A checkpoint is a torch state dict beside
`all_config.yaml`, whose section `arch` holds the settings; sizes of the data (vocabulary, cells, puzzles) are not
among them and are read off the tensors. Names may be those of a compiled model (`_orig_mod.`) inside the head that
computes its loss (`model.`). Stored differently: queries, keys and values in one matrix, as are gate and up; and TRM
keeps a second halting value that its training without a continue loss never used, which is dropped.
"""

from typing import Any

import torch

from ...models import HierarchicalForPuzzle, HierarchicalPuzzleConfig
from .rules import Rule, apply_rules, check_settings, rename, split_rows


MODEL_CLASS = HierarchicalForPuzzle
PRESETS = {"HierarchicalReasoningModel_ACTV1": "hrm", "TinyRecursiveReasoningModel_ACTV1": "trm"}
WRAPPERS = ("_orig_mod.", "module.", "model.")
LOSSES = {"stablemax_cross_entropy": "stablemax", "softmax_cross_entropy": "softmax"}
POSITIONS = {"rope": "rotary", "learned": "learned", "none": "none"}
# tables of the rotary embedding, and buffers of a training step
SUPERFLUOUS = ("rotary_emb.cos_cached", "rotary_emb.sin_cached", "puzzle_emb.local_weights", "puzzle_emb.local_ids")


def recognizes(config: dict[str, Any]) -> bool:
    """Whether an `all_config.yaml` is that of HRM or TRM."""
    return "model_type" not in config and _preset(config) is not None


def convert_config(config: dict[str, Any]) -> HierarchicalPuzzleConfig:
    """The configuration of the puzzle model.

    Args:
        config (`dict`): `all_config.yaml`, and the shapes of the checkpoint's tensors.

    Raises:
        ValueError: a setting has no counterpart here; the message names it and its value.
    """
    arch, preset = config["arch"], _preset(config)
    shapes = {_bare(name): shape for name, shape in config["tensor_shapes"].items()}
    check_settings(arch, {"pos_encodings": tuple(POSITIONS)})
    check_settings(arch.get("loss") or {}, {"loss_type": tuple(LOSSES)})
    num_layers = arch["L_layers"]
    if preset == "hrm" and arch["H_layers"] != num_layers:
        raise ValueError(f"`H_layers` of the checkpoint is {arch['H_layers']}; it must equal `L_layers` {num_layers}")
    embedding = _shape(shapes, "embed_tokens.embedding_weight")
    fields: dict[str, Any] = {
        "vocab_size": embedding[0],
        "hidden_size": embedding[1],
        "num_hidden_layers": num_layers * (2 if preset == "hrm" else 1),
        "num_attention_heads": arch["num_heads"],
        "intermediate_size": _shape(shapes, "L_level.layers.0.mlp.gate_up_proj.weight")[0] // 2,
        "rms_norm_eps": arch.get("rms_norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(arch.get("rope_theta", 10_000.0))},
        "position_embedding": POSITIONS[arch["pos_encodings"]],
        "num_loops": arch["H_cycles"],
        "low_cycles": arch["L_cycles"],
        "max_segments": arch["halt_max_steps"],
        "cell_loss": LOSSES[(arch.get("loss") or {}).get("loss_type", "stablemax_cross_entropy")],
        "halting": "binary" if _drops_continue(arch, preset) else "q_learning",
    }
    if arch.get("mlp_t", False):
        double_width, length = _shape(shapes, "L_level.layers.0.mlp_t.gate_up_proj.weight")
        fields |= {"token_mixer": "mlp", "mixer_intermediate_size": double_width // 2}
        fields["max_position_embeddings"] = length
    elif fields["position_embedding"] == "learned":
        fields["max_position_embeddings"] = _shape(shapes, "embed_pos.embedding_weight")[0]
    return HierarchicalPuzzleConfig.from_preset(str(preset), **fields, **_puzzle_fields(arch, preset, shapes))


def convert_state_dict(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors from the published ones, without what wrappers put before their names."""
    arch, preset = config["arch"], _preset(config)
    for name in list(tensors):
        tensors[_bare(name)] = tensors.pop(name)
    for name in SUPERFLUOUS:
        tensors.pop(name, None)
    levels = ["L_level", "H_level"] if preset == "hrm" else ["L_level"]
    rules = [
        rename("embed_tokens.embedding_weight", "model.backbone.embed_tokens.weight"),
        rename("lm_head.weight", "lm_head.weight"),
        rename("q_head.weight", "halt_head.weight"),
        rename("q_head.bias", "halt_head.bias"),
        rename("H_init", "high"),
        rename("L_init", "low"),
    ]
    if arch.get("puzzle_emb_ndim", 0):
        rules.append(rename("puzzle_emb.weights", "model.puzzle_embeddings.weight"))
    if arch["pos_encodings"] == "learned":
        rules.append(rename("embed_pos.embedding_weight", "model.backbone.embed_positions.weight"))
    for level_index, level in enumerate(levels):
        for index in range(arch["L_layers"]):
            target = f"model.backbone.layers.{level_index * arch['L_layers'] + index}"
            rules += _layer_rules(f"{level}.layers.{index}", target, bool(arch.get("mlp_t", False)))
    converted = apply_rules(rules, tensors)
    converted["model.initial_states"] = torch.stack([converted.pop("high"), converted.pop("low")])
    if _drops_continue(arch, preset):
        for name in ("halt_head.weight", "halt_head.bias"):
            converted[name] = converted[name][:1].clone()
    return converted


def _layer_rules(source: str, target: str, has_mixer: bool) -> list[Rule]:
    parts = {"mlp": "mlp"}
    rules = []
    if has_mixer:
        parts["mlp_t"] = "position_mlp"
    else:
        names = tuple(f"{target}.self_attn.{part}_proj.weight" for part in "qkv")
        rules.append(Rule(f"{source}.self_attn.qkv_proj.weight", names, _thirds))
        rules.append(rename(f"{source}.self_attn.o_proj.weight", f"{target}.self_attn.o_proj.weight"))
    for theirs, ours in parts.items():
        names = (f"{target}.{ours}.gate_proj.weight", f"{target}.{ours}.up_proj.weight")
        rules.append(Rule(f"{source}.{theirs}.gate_up_proj.weight", names, _halves))
        rules.append(rename(f"{source}.{theirs}.down_proj.weight", f"{target}.{ours}.down_proj.weight"))
    return rules


def _puzzle_fields(arch: dict[str, Any], preset: str | None, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    size = arch.get("puzzle_emb_ndim", 0)
    # TRM may say how many positions the embedding takes; otherwise as many as hold it
    num_tokens = (arch.get("puzzle_emb_len", 16) if preset == "trm" else 0) or -(size // -arch["hidden_size"])
    if not size:
        if num_tokens:
            raise ValueError(f"`puzzle_emb_len` of the checkpoint is {num_tokens}, for no embedding of puzzles")
        return {"num_puzzles": 0, "num_puzzle_tokens": 0}
    num_puzzles, size = _shape(shapes, "puzzle_emb.weights")
    return {"num_puzzles": num_puzzles, "num_puzzle_tokens": num_tokens, "puzzle_embedding_size": size}


def _drops_continue(arch: dict[str, Any], preset: str | None) -> bool:
    return preset == "trm" and arch.get("no_ACT_continue", True)


def _preset(config: dict[str, Any]) -> str | None:
    arch = config.get("arch")
    name = arch.get("name") if isinstance(arch, dict) else None
    return PRESETS.get(str(name).rpartition("@")[2])


def _bare(name: str) -> str:
    """The name of a tensor in the model itself, without what it was wrapped into."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name.removeprefix("inner.")


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"the checkpoint lacks {name}")
    if len(shapes[name]) != 2:
        raise ValueError(f"{name} must be a matrix, got the shape {shapes[name]}")
    return shapes[name]


def _thirds(tensor: torch.Tensor) -> Any:
    return split_rows(*[len(tensor) // 3] * 3)(tensor)


def _halves(tensor: torch.Tensor) -> Any:
    return split_rows(*[len(tensor) // 2] * 2)(tensor)


__all__ = ["MODEL_CLASS", "convert_config", "convert_state_dict", "recognizes"]
