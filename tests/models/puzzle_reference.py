"""HRM's, TRM's and URM's forward pass written out from the papers' definitions, over plain tensors.

Nothing of hf_loop is used: no layer, no mask, no rotary embedding. `Weights` are made from one of our models or from
a published state dict, and `segment` runs one segment.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


EPS, ROPE_BASE = 1e-5, 10_000.0


@dataclass
class Weights:
    """Plain tensors, and the schedule that runs them."""

    tokens: Tensor
    head: Tensor
    low_layers: list[dict[str, Tensor]]
    high_layers: list[dict[str, Tensor]]
    starts: list[Tensor]
    schedule: dict = field(default_factory=dict)
    halt_head: tuple[Tensor, Tensor] | None = None
    puzzles: Tensor | None = None
    positions: Tensor | None = None


def norm(x: Tensor) -> Tensor:
    """An RMS norm without gains over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def rotate(x: Tensor) -> Tensor:
    """RoPE (2104.09864) over `[B, H, T, d]`, half-split."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / ROPE_BASE ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def attention(x: Tensor, layer: dict[str, Tensor], num_heads: int, is_rotary: bool) -> Tensor:
    """Every position sees every other."""

    def heads(name: str) -> Tensor:
        return (x @ layer[name].T).unflatten(-1, (num_heads, -1)).transpose(1, 2)

    query, key, value = heads("q"), heads("k"), heads("v")
    if is_rotary:
        query, key = rotate(query), rotate(key)
    scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return (scores @ value).transpose(1, 2).flatten(2) @ layer["o"].T


def gated(x: Tensor, layer: dict[str, Tensor], prefix: str = "") -> Tensor:
    """SwiGLU, with URM's convolution over a position and the one before it where the layer has one."""
    inner = functional.silu(x @ layer[f"{prefix}gate"].T) * (x @ layer[f"{prefix}up"].T)
    if not prefix and "conv_weight" in layer:
        before = functional.pad(inner, (0, 0, 1, 0))[:, :-1]
        kernel = layer["conv_weight"][:, 0]
        inner = functional.silu(before * kernel[:, 0] + inner * kernel[:, 1] + layer["conv_bias"])
    return inner @ layer[f"{prefix}down"].T


def stack(x: Tensor, layers: list[dict[str, Tensor]], schedule: dict) -> Tensor:
    """Post-norm layers, where a mixer along the positions is normed along them; or pre-norm ones."""
    for layer in layers:
        if schedule.get("pre_norm"):
            mixed = norm(x).transpose(1, 2)
            if "mixer_gate" in layer:
                x = x + gated(mixed, layer, "mixer_").transpose(1, 2)
            else:
                x = x + attention(norm(x), layer, schedule["num_heads"], schedule.get("rotary", True))
            x = x + gated(norm(x), layer)
            continue
        if "mixer_gate" in layer:
            turned = x.transpose(1, 2)
            x = norm(turned + gated(turned, layer, "mixer_")).transpose(1, 2)
        else:
            x = norm(x + attention(x, layer, schedule["num_heads"], schedule.get("rotary", True)))
        x = norm(x + gated(x, layer))
    return x


def encode(weights: Weights, input_ids: Tensor, puzzle_ids: Tensor | None = None) -> Tensor:
    """Token embeddings behind the puzzle's, scaled by `sqrt(D)`."""
    x = weights.tokens[input_ids]
    width = x.shape[-1]
    if weights.puzzles is not None:
        ids = torch.zeros(len(input_ids), dtype=torch.long) if puzzle_ids is None else puzzle_ids
        rows = weights.puzzles[ids]
        room = weights.schedule["puzzle_tokens"] * width - rows.shape[-1]
        rows = torch.cat([rows, torch.zeros(len(rows), room)], 1)
        x = torch.cat([rows.reshape(len(rows), -1, width), x], 1)
    if weights.positions is not None:
        x = (x + weights.positions[: x.shape[1]]) / math.sqrt(2)
    return x * math.sqrt(width)


def segment(
    weights: Weights, x: Tensor, states: list[Tensor] | None, carries=lambda cycle, call: True
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Logits, halting logits and states after one segment; `carries` says which stack calls gradient passes."""
    schedule = weights.schedule
    states = [start.expand_as(x) for start in weights.starts] if states is None else states
    low_cycles, num_states = schedule["low_cycles"], len(states)
    for cycle in range(schedule["num_loops"]):
        for call in range(low_cycles):
            target = stack(sum(states) + x, weights.low_layers, schedule)
            states = [*states[:-1], target if carries(cycle, call) else target.detach()]
        if num_states == 2:
            high = stack(states[0] + states[1], weights.high_layers, schedule)
            states = [high if carries(cycle, low_cycles) else high.detach(), states[1]]
    read = norm(states[0]) if schedule.get("pre_norm") else states[0]
    logits = read[:, schedule.get("puzzle_tokens", 0) :] @ weights.head.T
    halt_logits = None
    if weights.halt_head is not None:
        weight, bias = weights.halt_head
        halt_logits = read[:, 0] @ weight.T + bias
    return logits, halt_logits, [state.detach() for state in states]


def weights_of(model) -> Weights:
    """The plain tensors of a `HierarchicalForPuzzle` over our layers; gradient flows into its parameters."""
    config, named = model.config, dict(model.named_parameters()) | dict(model.named_buffers())
    names = {
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "o": "self_attn.o_proj.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
        "conv_weight": "mlp.convolution.weight",
        "conv_bias": "mlp.convolution.bias",
        "mixer_gate": "position_mlp.gate_proj.weight",
        "mixer_up": "position_mlp.up_proj.weight",
        "mixer_down": "position_mlp.down_proj.weight",
    }
    layers = []
    for index in range(config.backbone_config.num_hidden_layers):
        full = {short: f"model.backbone.layers.{index}.{name}" for short, name in names.items()}
        layers.append({short: named[name] for short, name in full.items() if name in named})
    half = config.num_stack_layers
    tokens = named["model.backbone.embed_tokens.weight"]
    starts = named.get("model.initial_states", torch.zeros(1, tokens.shape[-1]))
    return Weights(
        tokens=tokens,
        head=named["lm_head.weight"],
        low_layers=layers[:half],
        high_layers=layers if config.shared_stack else layers[half:],
        starts=list(starts),
        schedule={
            "num_loops": config.num_loops,
            "low_cycles": config.low_cycles,
            "num_heads": config.num_attention_heads,
            "rotary": config.backbone_config.position_embedding == "rotary",
            "puzzle_tokens": config.num_puzzle_tokens,
            "pre_norm": config.backbone_config.norm_placement == "pre",
        },
        halt_head=(named["halt_head.weight"], named["halt_head.bias"]) if "halt_head.weight" in named else None,
        puzzles=named.get("model.puzzle_embeddings.weight"),
        positions=named.get("model.backbone.embed_positions.weight"),
    )
