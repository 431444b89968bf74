# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A small twin of a decoder's configuration, with random weights, on which an entry is checked.

The twin has the same kinds of layers, multipliers and options; only sizes shrink, all widths by the same factor. Some
architectures do not run at every size, so several are tried, the smallest first.
"""

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .module_seams import parameters_here
from .transformers_seams import causal_model_class, make_model


WIDTH = re.compile(r"(hidden_size|intermediate_size|head_dim|_rank|_dim|d_model|n_embd|n_inner|d_ff|_width)$")
EXPERTS = re.compile(r"^(n|num|moe_num)(_local|_routed)?_experts$")
# fields that may hold the index of a layer, which a twin with fewer layers must still have
LAYER_NUMBER = re.compile(r"layer|dense|step|interval|period|freq|every")
VOCABULARY = 128
WINDOW = 5
FEW_LAYERS = 12
MIN_HEAD_DIM = 8
FEW_EXPERTS = 16
# limit of what a check may cost
MAX_PARAMETERS = 400_000_000
# fields that do not affect what is computed
UNRELATED = ("_name_or_path", "architectures", "auto_map", "dtype", "quantization_config", "transformers_version")


class NoTwinError(ValueError):
    """Raised if no small twin of a configuration runs."""


@contextmanager
def twin_context() -> Generator[None]:
    """Run a block on the CPU, in float32, without gradient or autocast, and with a random generator of its own."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # the check may run while another model is being made on the device "meta"
        with (
            torch.device("cpu"),
            parameters_here(),
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)


def fingerprint(config: PreTrainedConfig) -> str:
    """Return the fields of a configuration that affect its layers, as text."""
    fields = {name: value for name, value in config.to_dict().items() if name not in UNRELATED}
    return json.dumps(fields, sort_keys=True, default=str)


def make_twin(config: PreTrainedConfig, causal_class: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """Make the causal model of a small twin, in evaluation mode.

    Raises:
        NoTwinError: if transformers has no causal model for the configuration, or no size of it runs.
    """
    causal_class = causal_class or causal_model_class(config)
    if causal_class is None:
        raise NoTwinError("transformers has no causal language model for it")
    reason = "it is too large"
    for fields in _sizes(config):
        try:
            twin_config = type(config).from_dict(fields)
            twin_config.dtype = torch.float32
            with torch.device("meta"):
                size = make_model(causal_class, twin_config).num_parameters()
            if size > MAX_PARAMETERS:
                continue
            model = make_model(causal_class, twin_config).eval()
            _draw_weights(model)
            input_ids = torch.arange(3, 3 + 2 * WINDOW)[None] % model.config.vocab_size
            logits = model(input_ids, use_cache=False).logits
        except Exception as error:  # a size that does not fit may raise anything
            reason = f"its own forward raises {type(error).__name__}: {error}"
            continue
        if torch.isfinite(logits).all():
            return model
        reason = "its own logits are not finite"
    raise NoTwinError(f"no small twin of its configuration runs: {reason}")


def _sizes(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Yield the fields of the configurations to try, the smallest first."""
    fields = {name: value for name, value in config.to_dict().items() if name not in UNRELATED}
    few = _with_fewer_layers(config, fields)
    small = _narrow(config, _with_small_windows(_with_few_experts(_with_small_vocabulary(few))))
    yield from (small, _narrow(config, _with_small_vocabulary(fields)), _with_small_vocabulary(few), few, fields)


def _with_fewer_layers(config: PreTrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Keep the first layers, as many as are needed to have every kind of layer."""
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    num_layers = fields.get(name)
    if not isinstance(num_layers, int) or num_layers <= FEW_LAYERS:
        return fields
    lists = {key: value for key, value in fields.items() if isinstance(value, list) and len(value) == num_layers}
    kinds = [json.dumps(kind, default=str) for kind in zip(*lists.values(), strict=True)]
    kept = max(6, *(kinds.index(kind) + 1 for kind in set(kinds))) if kinds else 6
    for key, value in fields.items():
        if key == name or not LAYER_NUMBER.search(key):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value < num_layers:
            # layers that share keys and values are counted from the end
            kept = num_layers if "shared" in key and value else max(kept, value + 1)
    fewer = {**fields, name: kept}
    for key, value in lists.items():
        fewer[key] = value[:kept]
    for key, value in fields.items():
        is_indices = isinstance(value, list) and key not in lists and LAYER_NUMBER.search(key)
        if is_indices and all(isinstance(index, int) and index < num_layers for index in value):
            fewer[key] = [index for index in value if index < kept]
    return fewer


def _with_small_vocabulary(fields: dict[str, Any]) -> dict[str, Any]:
    small = dict(fields)
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if "vocab_size" in name:
            small[name] = min(value, VOCABULARY)
        elif name.endswith("token_id"):
            small[name] = value % VOCABULARY
    if isinstance(fields.get("eos_token_id"), list):
        small["eos_token_id"] = [token_id % VOCABULARY for token_id in fields["eos_token_id"]]
    return small


def _with_few_experts(fields: dict[str, Any]) -> dict[str, Any]:
    """Reduce the number of experts to what routing to several of them, and in groups, needs."""
    needed = [2 * (fields.get(name) or 0) for name in ("num_experts_per_tok", "moe_topk", "top_k_experts")]
    needed += [4 * (fields.get(name) or 0) for name in ("n_group", "num_expert_groups")]
    small = dict(fields)
    for name, value in fields.items():
        if EXPERTS.search(name) and isinstance(value, int):
            while value % 2 == 0 and value // 2 >= max(FEW_EXPERTS, *needed):
                value //= 2
            small[name] = value
    return small


def _with_small_windows(fields: dict[str, Any]) -> dict[str, Any]:
    """Shrink sliding windows, so that the check has more tokens than a window."""
    names = [name for name in ("sliding_window", "attention_chunk_size", "window_size") if fields.get(name)]
    return fields | {name: WINDOW for name in names if isinstance(fields[name], int)}


def _narrow(config: PreTrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Divide all widths by the same power of two."""
    widths = {
        name: value
        for name, value in fields.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and WIDTH.search(name)
    }
    # read from the fields: a configuration whose layers differ in it raises when asked
    head_dim: Any = fields.get("head_dim")
    if not head_dim:
        head_dim = getattr(config, "hidden_size", 0) // getattr(config, "num_attention_heads", 1)
    for factor in (32, 16, 8, 4, 2):
        # intermediate sizes need not be divisible
        fits = all(value % factor == 0 for name, value in widths.items() if "intermediate" not in name)
        if head_dim // factor >= MIN_HEAD_DIM and fits:
            return fields | {name: max(value // factor, 8) for name, value in widths.items()}
    return fields


def _draw_weights(model: PreTrainedModel) -> None:
    """Draw weights large enough to tell layer orders and masks apart; the model's own may not be initialized."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            drawn = noise / max(parameter.shape[-1], 1) ** 0.5
        elif name.endswith("bias"):
            drawn = 0.1 * noise
        else:
            drawn = 1 + 0.1 * noise
        if parameter.device.type == "meta":
            raise NoTwinError(f"{name} was never initialized")
        parameter.data.copy_(drawn)


__all__ = ["NoTwinError", "fingerprint", "make_twin", "twin_context"]
