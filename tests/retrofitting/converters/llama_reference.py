"""Plain arithmetic of Llama's sublayers over tensors by name, and a converted model to hold it against."""

import torch
from torch import Tensor, nn

from hf_loop import LoopedForCausalLM


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights large enough that two different computations differ visibly; norms are near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.2 * noise if "norm" in name else 0.1 * noise
    return tensors


def llama_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint's tensors."""
    hidden_size, intermediate_size = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "self_attn.q_proj": (queries, hidden_size),
        "self_attn.k_proj": (keys, hidden_size),
        "self_attn.v_proj": (keys, hidden_size),
        "self_attn.o_proj": (hidden_size, queries),
        "mlp.gate_proj": (intermediate_size, hidden_size),
        "mlp.up_proj": (intermediate_size, hidden_size),
        "mlp.down_proj": (hidden_size, intermediate_size),
        "input_layernorm": (hidden_size,),
        "post_attention_layernorm": (hidden_size,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden_size),
        "model.norm.weight": (hidden_size,),
        "lm_head.weight": (config["vocab_size"], hidden_size),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return nn.functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def rotate_halves(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding of `[B, H, T, D]` that turns features i and i + D/2 by `t / theta^(2i/D)`."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / theta ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat(turned, dim=-1)


def attention(x: Tensor, tensors: dict[str, Tensor], name: str, config: dict) -> Tensor:
    """Causal attention with grouped queries, `[B, T, D]`."""
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    query, key, value = (
        linear(x, tensors, f"{name}.{part}_proj").unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in "qkv"
    )
    query, key = rotate_halves(query, config["rope_theta"]), rotate_halves(key, config["rope_theta"])
    key, value = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (key, value))
    scores = query @ key.transpose(-1, -2) / head_dim**0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
    return linear(mixed.transpose(1, 2).flatten(-2), tensors, f"{name}.o_proj")


def swiglu(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    gate = nn.functional.silu(linear(x, tensors, f"{name}.gate_proj"))
    return linear(gate * linear(x, tensors, f"{name}.up_proj"), tensors, f"{name}.down_proj")


def converted_model(converter, config: dict, tensors: dict[str, Tensor]) -> LoopedForCausalLM:
    """What a converter makes of a checkpoint; every tensor must be used and every parameter filled."""
    model = LoopedForCausalLM(converter.convert_config(config)).eval()
    remaining = dict(tensors)
    model.load_state_dict(converter.convert_state_dict(config, remaining), strict=True)
    assert remaining == {}
    return model
