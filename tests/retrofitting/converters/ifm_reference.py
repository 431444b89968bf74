"""The models of ifm-ai/xllm-loop in plain arithmetic over the names of their checkpoints, and their recipes, small.

Written after the formulas of `xllm/models/looped.py` there, and of `xllm/modules/` in ifm-ai/xllm.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softplus

from .llama_reference import random_tensors, rms_norm


# what all recipes have, smaller
BASE = {
    "arch": "transformer",
    "num_layers": 6,
    "model_dim": 48,
    "num_heads": 3,
    "num_kv_heads": 1,
    "head_dim": 16,
    "attn_act_func": "softmax",
    "qknorm": False,
    "apply_attn_gate": False,
    "attn_gate_func": "silu",
    "ffn_hidden_dim": 80,
    "vocab_size": 97,
    "output_size": -1,
    "apply_bias_term": True,
    "apply_rmsnorm": True,
    "layernorm_num_groups": 1,
    "norm_affine": True,
    "rmsnorm_eps": 1e-6,
    "rope_base": 1_000_000,
    "rope_head_dim": 16,
    "swiglu": True,
    "scale_emb": False,
    "causal_attn_backend": "flash",
    "loop_times": 1,
    "loop_start_layer": 0,
    "loop_end_layers": None,
    "loop_input_injection": "none",
    "dense_prelude_input_injection": "none",
    "num_experts": 0,
    "num_activated_experts": 0,
    "num_shared_experts": 0,
    "num_dense_layers": None,
    "expert_inter_dim": 0,
}
HUGINN = {
    "arch": "huginn",
    "loop_times": 3,
    "huginn_prelude_layers": 1,
    "huginn_recurrent_layers": 4,
    "huginn_coda_layers": 1,
    "huginn_state_init": "normal",
    "huginn_input_injection": "diagonal",
    "huginn_hierarchical_state": "none",
    "huginn_hierarchical_h_cycles": 2,
    "huginn_hierarchical_l_cycles": 3,
    "huginn_split_module_repeats": 1,
}
TWO_STATES = HUGINN | {"loop_times": 8}
# its models leave out what has its default
PART_2 = {
    "arch": "huginn",
    "huginn_depth_control": True,
    "num_layers": 4,
    "model_dim": 48,
    "num_heads": 3,
    "num_kv_heads": 1,
    "head_dim": 16,
    "ffn_hidden_dim": 80,
    "vocab_size": 97,
    "swiglu": True,
    "apply_bias_term": True,
    "apply_rmsnorm": True,
    "rope_base": 1_000_000.0,
    "rope_head_dim": 16,
    "loop_times": 5,
    "loop_start_layer": 1,
    "loop_end_layers": 3,
    "huginn_prelude_layers": 1,
    "huginn_recurrent_layers": 2,
    "huginn_coda_layers": 1,
    "huginn_state_init": "normal",
    "huginn_input_injection": "diagonal",
    "huginn_sampling_scheme": "fixed",
    "huginn_backprop_depth": 5,
}
EXPERTS = {"num_experts": 5, "num_activated_experts": 2, "expert_inter_dim": 40}
LINEAR = {"huginn_input_injection": "linear", "huginn_recurrent_exit_norm": "parameterless_rms"}
RECIPES = {
    "dense_d28": BASE,
    "dense_d112": BASE | {"num_layers": 12},
    "dense_ouro": BASE | {"loop_times": 4},
    "dense_middle": BASE | HUGINN | {"huginn_state_init": "input", "huginn_input_injection": "none"},
    "dense_ouro_raw_injection": BASE | {"loop_times": 4, "loop_input_injection": "diagonal"},
    "dense_middle_prelude_injection": BASE | HUGINN | {"huginn_state_init": "input"},
    "dense_huginn": BASE | HUGINN,
    "dense_shared_hl": BASE | TWO_STATES | {"huginn_hierarchical_state": "shared_hl"},
    "dense_split_hl": BASE | TWO_STATES | {"huginn_hierarchical_state": "split_hl"},
    "dense_split_hl_x2": BASE
    | TWO_STATES
    | {"loop_end_layers": 6, "huginn_hierarchical_state": "split_hl", "huginn_split_module_repeats": 2},
    "moe_ff112": BASE | EXPERTS,
    "moe_ouro": BASE | EXPERTS | {"loop_times": 4},
    "moe_middle": BASE | EXPERTS | HUGINN | {"huginn_state_init": "input", "huginn_input_injection": "none"},
    "moe_middle_input_injection": BASE | EXPERTS | HUGINN | {"huginn_state_init": "input"},
    "moe_huginn": BASE | EXPERTS | HUGINN,
    "moe_shared_hl": BASE | EXPERTS | TWO_STATES | {"huginn_hierarchical_state": "shared_hl"},
    "s_fixed_r5": PART_2,
    "s_learned_entropy0p01": PART_2
    | {"huginn_sampling_scheme": "poisson-lognormal-capped", "huginn_depth_prior": "learned"},
    "s_huginn_linear": PART_2 | LINEAR,
    "s_parcae": PART_2 | {"huginn_prelude_norm": "rms"},
    "s_orthoinj": PART_2 | {"huginn_prelude_orthogonal": True},
    "s_d4": {name: value for name, value in PART_2.items() if not name.startswith(("huginn_", "loop_"))}
    | {"arch": "transformer"},
}


def make_tensors(model: dict) -> dict[str, Tensor]:
    """Random weights of a model, by name; gains of norms are stored less one."""
    width, heads, head_dim = model["model_dim"], model["num_heads"], model["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (model["vocab_size"], width),
        "output.final_norm.weight": (width,),
        "output.output.weight": (model["vocab_size"], width),
    }
    keys, inner = model["num_kv_heads"] * head_dim, model["ffn_hidden_dim"]
    for index in range(model["num_layers"]):
        layer = {
            "attention.norm": (width,),
            "attention.wq": (heads * head_dim, width),
            "attention.wk": (keys, width),
            "attention.wv": (keys, width),
            "attention.wo": (width, heads * head_dim),
        }
        if model.get("num_experts"):
            count, inner = model["num_experts"], model["expert_inter_dim"]
            layer |= {"moe.norm": (width,), "moe.router": (count, width)}
            sizes = {"1": (count * inner, width), "2": (count * width, inner), "3": (count * inner, width)}
            shapes |= {f"layers.{index}.moe.experts.weight{part}": size for part, size in sizes.items()}
        else:
            layer |= {"nffn.norm": (width,), "nffn.fc1": (inner, width)}
            layer |= {"nffn.fc2": (width, inner), "nffn.fc3": (inner, width)}
        shapes |= {f"layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    name = injection_name(model)
    if name is not None:
        if model.get("huginn_input_injection") == "linear":
            shapes |= {f"{name}.adapter.weight": (width, 2 * width), f"{name}.adapter.bias": (width,)}
        else:
            shapes |= {f"{name}.input_adapter.weight": (width, width), f"{name}.A_log": (width,)}
            shapes[f"{name}.dt_bias"] = (width,)
    if model.get("huginn_prelude_norm") == "rms":
        shapes["huginn_prelude_norm_module.weight"] = (width,)
    tensors = random_tensors(shapes)
    # decays, steps, routers and the injected input are large enough to matter, and no two of them are alike
    large = ("A_log", "dt_bias", "input_adapter.weight", "router.weight", "adapter.bias")
    return {
        name: tensor - 1 if "norm" in name else 5 * tensor if name.endswith(large) else tensor
        for name, tensor in tensors.items()
    }


def injection_name(model: dict) -> str | None:
    if model["arch"] == "huginn":
        return None if model.get("huginn_input_injection") == "none" else "input_injection"
    return None if model.get("loop_input_injection", "none") == "none" else "loop_input_injection_module"


def noise(model: dict, length: int, example: int = 0, start: int = 0) -> Tensor:
    """The state `[1, T, D]` of a row: the first of a batch in Part I, an example under seed 42 in Part II."""
    width, prime = model["model_dim"], 16_777_213
    phase = 0.0
    if model.get("huginn_depth_control"):
        phase = torch.tensor((example * 104_729 + 42 * 130_363) % prime, dtype=torch.float32) * (2 * math.pi / prime)
    x = torch.arange(width).float().repeat(length, 1) * 0.013579
    x = x + torch.arange(start, start + length).float()[:, None] * 0.021713
    x = x + phase
    x = x + 0.123457
    product = torch.sin(x) * 43758.5453123
    uniform = torch.clamp(product - torch.floor(product), 1e-6, 1.0 - 1e-6)
    return (torch.erfinv(2 * uniform - 1) * math.sqrt(2 / width))[None]


class Reference:
    """A model, run on one row at a time.

    Args:
        model (`dict`): its settings.
        tensors (`dict`): its weights by name.
    """

    def __init__(self, model: dict, tensors: dict[str, Tensor]):
        self.model, self.tensors = model, tensors
        # keys and values of earlier tokens, of layers that keep them
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, 1 + self.tensors[f"{name}.weight"], 1e-6)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Turn channels 2i and 2i + 1 of `[1, T, H, D]` as one complex number."""
        half = x.shape[-1] // 2
        positions = torch.arange(start, start + x.shape[1]).float()
        angles = positions[:, None] / self.model["rope_base"] ** (torch.arange(half) / half)
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

    def layer(self, index: int, x: Tensor, start: int = 0, reads: bool = False, keeps: bool = False) -> Tensor:
        name, head_dim = f"layers.{index}", self.model["head_dim"]
        normed = self.norm(x, f"{name}.attention.norm")
        query, key, value = (
            linear(normed, self.tensors[f"{name}.attention.{part}.weight"]).unflatten(-1, (-1, head_dim))
            for part in ("wq", "wk", "wv")
        )
        query, key = self.rotate(query, start), self.rotate(key, start)
        if reads and index in self.kept:
            key, value = (torch.cat(pair, dim=1) for pair in zip(self.kept[index], (key, value)))
        if keeps:
            self.kept[index] = (key, value)
        key, value = (part.repeat_interleave(query.shape[2] // part.shape[2], dim=2) for part in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(head_dim)
        behind = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
        weights = scores.masked_fill(~behind, float("-inf")).softmax(dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(-2)
        x = x + linear(mixed, self.tensors[f"{name}.attention.wo.weight"])
        return x + (self.experts(x, f"{name}.moe") if self.model.get("num_experts") else self.mlp(x, f"{name}.nffn"))

    def mlp(self, x: Tensor, name: str) -> Tensor:
        x = self.norm(x, f"{name}.norm")
        first, second, third = (self.tensors[f"{name}.fc{part}.weight"] for part in (1, 2, 3))
        return linear(silu(linear(x, first)) * linear(x, third), second)

    def experts(self, x: Tensor, name: str) -> Tensor:
        x = self.norm(x, f"{name}.norm")
        scores = torch.sigmoid(linear(x, self.tensors[f"{name}.router.weight"]))
        chosen = scores.topk(self.model["num_activated_experts"], dim=-1).indices
        first, second, third = (
            self.tensors[f"{name}.experts.weight{part}"].chunk(self.model["num_experts"]) for part in (1, 2, 3)
        )
        result = torch.zeros_like(x)
        for position in range(x.shape[1]):
            token, indices = x[0, position], chosen[0, position].tolist()
            total = sum(scores[0, position, index] for index in indices)
            for index in indices:
                answer = second[index] @ (silu(first[index] @ token) * (third[index] @ token))
                result[0, position] += scores[0, position, index] / total * answer
        return result

    def inject(self, state: Tensor, encoded: Tensor) -> Tensor:
        name = injection_name(self.model)
        if name is None:
            return state
        if self.model.get("huginn_input_injection") == "linear":
            both = torch.cat([state, encoded], dim=-1)
            return linear(both, self.tensors[f"{name}.adapter.weight"], self.tensors[f"{name}.adapter.bias"])
        step = softplus(self.tensors[f"{name}.dt_bias"])
        kept = torch.exp(-step * torch.exp(self.tensors[f"{name}.A_log"])) * state
        update = step * linear(encoded, self.tensors[f"{name}.input_adapter.weight"])
        if self.model.get("huginn_prelude_orthogonal"):
            share = (kept * update).sum(-1, keepdim=True) / (update.square().sum(-1, keepdim=True) + 1e-6)
            kept = kept - share * update
        return kept + update

    def stack(self, layers, state: Tensor, encoded: Tensor, repeats: int = 1) -> Tensor:
        """One update of a state: the injection, then layers."""
        state = self.inject(state, encoded)
        for _ in range(repeats):
            for index in layers:
                state = self.layer(index, state)
        return state

    def logits(self, row: Tensor, num_loops: int, example: int = 0) -> Tensor:
        """The logits `[1, T, V]` of a row `[T]` at a number of loops, or of slow cycles."""
        model = self.model
        x = self.tensors["embed.weight"][row][None]
        if model["arch"] == "transformer":
            start, end = model.get("loop_start_layer", 0), model.get("loop_end_layers") or model["num_layers"]
            encoded = x
            for index in range(start):
                x = self.layer(index, x)
            for _ in range(num_loops):
                x = self.stack(range(start, end), x, encoded)
            for index in range(end, model["num_layers"]):
                x = self.layer(index, x)
            return self.head(x)
        first, last = model["huginn_prelude_layers"], model["num_layers"] - model["huginn_coda_layers"]
        for index in range(first):
            x = self.layer(index, x)
        encoded, state = self.first_state(x, example)
        kind = model.get("huginn_hierarchical_state", "none")
        if kind == "none":
            for _ in range(num_loops):
                state = self.stack(range(first, last), state, encoded)
                if model.get("huginn_recurrent_exit_norm") == "parameterless_rms":
                    state = rms_norm(state, torch.ones(()), 1e-6)
        else:
            middle = (first + last) // 2
            slow = fast = range(first, last)
            if kind == "split_hl":
                slow, fast = range(first, middle), range(middle, last)
            high, low, repeats = encoded, state, model["huginn_split_module_repeats"]
            for _ in range(num_loops):
                for _ in range(model["huginn_hierarchical_l_cycles"]):
                    low = self.stack(fast, low + high, encoded, repeats)
                high = self.stack(slow, high + low, encoded, repeats)
            state = high
        for index in range(last, model["num_layers"]):
            state = self.layer(index, state)
        return self.head(state)

    def first_state(self, x: Tensor, example: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
        """What is injected, and the state before the first loop."""
        encoded = self.norm(x, "huginn_prelude_norm_module") if self.model.get("huginn_prelude_norm") == "rms" else x
        kind = self.model["huginn_state_init"]
        if kind == "normal":
            return encoded, noise(self.model, x.shape[1], example, start)
        return encoded, encoded if kind == "input" else torch.zeros_like(encoded)

    def terminal_logits(self, tokens: Tensor, start: int, num_loops: int) -> Tensor:
        """Part II's evaluation of the next tokens `[T]`: of earlier ones the last loop's keys and values are kept."""
        model = self.model
        x = self.tensors["embed.weight"][tokens][None]
        first, last = model["huginn_prelude_layers"], model["num_layers"] - model["huginn_coda_layers"]
        for index in range(first):
            x = self.layer(index, x, start, reads=True, keeps=True)
        encoded, state = self.first_state(x, start=start)
        for loop in range(num_loops):
            state = self.inject(state, encoded)
            for index in range(first, last):
                state = self.layer(index, state, start, reads=True, keeps=loop == num_loops - 1)
            if model.get("huginn_recurrent_exit_norm") == "parameterless_rms":
                state = rms_norm(state, torch.ones(()), 1e-6)
        for index in range(last, model["num_layers"]):
            state = self.layer(index, state, start, reads=True, keeps=True)
        return self.head(state)

    def head(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(x, "output.final_norm"), self.tensors["output.output.weight"])
