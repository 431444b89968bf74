"""Huginn's schedule, in plain arithmetic over the names of its checkpoints, for it and for the retrofits like it."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def write_checkpoint(folder: Path, config: dict, tensors: dict[str, Tensor]) -> Path:
    """A folder as published: `config.json` and the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def recurrent_shapes(config: dict, layer: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint whose every layer has the tensors `layer`."""
    hidden_size = config["n_embd"]
    shapes = {
        "transformer.wte.weight": (config["vocab_size"], hidden_size),
        "transformer.adapter.weight": (hidden_size, 2 * hidden_size),
        "transformer.ln_f.weight": (hidden_size,),
        "lm_head.weight": (config["vocab_size"], hidden_size),
    }
    for prefix in layer_prefixes(config):
        shapes |= {f"{prefix}.{name}": shape for name, shape in layer.items()}
    return shapes


def layer_prefixes(config: dict) -> list[str]:
    parts = (("prelude", "prelude"), ("core_block", "recurrent_block"), ("coda", "coda"))
    return [f"transformer.{name}.{index}" for name, key in parts for index in range(config[f"n_layers_in_{key}"])]


def recurrent_logits(
    config: dict,
    tensors: dict[str, Tensor],
    input_ids: Tensor,
    num_loops: int,
    run_layer: Callable[[Tensor, str], Tensor],
    final_norm: Callable[[Tensor], Tensor],
    state: Tensor | None = None,
    embedding_scale: float = 1.0,
    norms_core: bool = True,
) -> Tensor:
    """Section 3 of 2502.05171: prelude, `num_loops` times the core on an adapter of state and input, coda, head.

    The state starts at zero if none is given. `norms_core`: the final norm follows the last loop, too.
    """
    layers = layer_prefixes(config)
    first, last = config["n_layers_in_prelude"], len(layers) - config["n_layers_in_coda"]
    encoded = embedding_scale * tensors["transformer.wte.weight"][input_ids]
    for layer in layers[:first]:
        encoded = run_layer(encoded, layer)
    state = torch.zeros_like(encoded) if state is None else state
    for _ in range(num_loops):
        state = torch.cat([state, encoded], dim=-1) @ tensors["transformer.adapter.weight"].T
        for layer in layers[first:last]:
            state = run_layer(state, layer)
    state = final_norm(state) if norms_core else state
    for layer in layers[last:]:
        state = run_layer(state, layer)
    return final_norm(state) @ tensors["lm_head.weight"].T


def fused_attention(
    x: Tensor,
    tensors: dict[str, Tensor],
    name: str,
    config: dict,
    rotate: Callable[[Tensor], Tensor],
    bias: Tensor | None = None,
    norms: list[Callable[[Tensor], Tensor]] | None = None,
) -> Tensor:
    """Causal attention `[B, T, D]` over one matrix of queries, keys and values; `rotate` takes `[B, T, H, D]`."""
    head_dim = config["n_embd"] // config["n_heads"]
    num_keys = config["num_key_value_heads"] * head_dim
    query, key, value = (x @ tensors[f"{name}.Wqkv.weight"].T).split([config["n_embd"], num_keys, num_keys], dim=-1)
    if norms is not None:
        query, key = norms[0](query), norms[1](key)
    query, key, value = (states.unflatten(-1, (-1, head_dim)) for states in (query, key, value))
    if bias is not None:
        query, key = query + bias[0], key + bias[1]
    query, key, value = (states.transpose(1, 2) for states in (rotate(query), rotate(key), value))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return mixed.transpose(1, 2).flatten(-2) @ tensors[f"{name}.proj.weight"].T


def fused_swiglu(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    gate, up = (x @ tensors[f"{name}.fc.weight"].T).chunk(2, dim=-1)
    return (nn.functional.silu(gate) * up) @ tensors[f"{name}.proj.weight"].T


def rotate_pairs(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding of `[B, T, H, D]` that turns features 2i and 2i + 1, as one complex number, by position."""
    channels = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] / theta ** (torch.arange(channels) / channels)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2)
