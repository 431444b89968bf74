# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A low-rank update of the core layers for every loop ("relaxed recursion", https://huggingface.co/papers/2410.20672).

In loop r a linear map of the core computes `W x + b + B_r A_r x`, without a further scale (as a PEFT adapter with
`lora_alpha` equal to its rank), and a norm may have its own gain, `g + d_r`.

The backbone's modules are not changed, so that PEFT, quantization, parallel plans and checkpoints work as before. In
loop r a view of the layer is called (`layer_views.py`): the loop is an argument of the call, not a state.
"""

from typing import cast

import torch
from torch import nn
from transformers import initialization as init

from .configuration_looped import LoopedConfig
from .layer_views import LayerUpdates, LinearUpdate, VectorUpdates, updated_view


class LayerLoopLora(nn.Module):
    """The updates of one core layer, stacked over the loops that have one.

    Its parameters are named after the module they update with `_` for `.`, for example `self_attn_q_proj_A`
    (`[R, r, in]`), `self_attn_q_proj_B` (`[R, out, r]`, zero at the start) and `input_layernorm_weight` (`[R, d]`, a
    difference, zero at the start). They are not in modules named like the layer's, to which PEFT would add adapters.

    Args:
        layer (`nn.Module`): the layer, before quantization or adapters change it.
        num_loops (`int`): R, the number of loops with an update of their own.
        rank (`int`): r, at most the smaller side of a linear map.
        target_modules (`list[str]`, *optional*): names of linear maps, or ends of names; by default all.
        has_vectors (`bool`): whether norms and biases have a difference per loop too.
    """

    def __init__(
        self, layer: nn.Module, num_loops: int, rank: int, target_modules: list[str] | None, has_vectors: bool
    ):
        super().__init__()
        self.linear_names: list[str] = []
        self.vector_names: list[tuple[str, str]] = []
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and _is_target(name, target_modules):
                low_rank = min(rank, module.in_features, module.out_features)
                self._add(name, "A", torch.empty(num_loops, low_rank, module.in_features))
                self._add(name, "B", torch.empty(num_loops, module.out_features, low_rank))
                self.linear_names.append(name)
            if has_vectors:
                for parameter_name in vector_parameter_names(module):
                    length = module.get_parameter(parameter_name).shape[0]
                    self._add(name, parameter_name, torch.empty(num_loops, length))
                    self.vector_names.append((name, parameter_name))
        self.bias_names = [name for name, _ in self.vector_names if isinstance(layer.get_submodule(name), nn.Linear)]

    def _add(self, module_name: str, suffix: str, value: torch.Tensor) -> None:
        self.register_parameter(parameter_key(module_name, suffix), nn.Parameter(value))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize A as `nn.Linear` does its weights, and the rest with zero, so that updates start at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("_A"):
                bound = parameter.shape[-1] ** -0.5
                init.uniform_(parameter, -bound, bound)
            else:
                init.zeros_(parameter)

    def forward(self, index: int | torch.Tensor) -> LayerUpdates:
        """Return the updates of one index along the loops, an integer or `[1]`, by module name."""
        updates: LayerUpdates = {}
        for name in self.linear_names:
            updates[name] = LinearUpdate(self._read(name, "A", index), self._read(name, "B", index))
        for name, parameter_name in self.vector_names:
            difference = self._read(name, parameter_name, index)
            if name in self.bias_names:
                updates[name] = cast(LinearUpdate, updates.get(name, LinearUpdate()))._replace(bias=difference)
            else:
                cast(VectorUpdates, updates.setdefault(name, {}))[parameter_name] = difference
        return updates

    def _read(self, module_name: str, suffix: str, index: int | torch.Tensor) -> torch.Tensor:
        stacked: torch.Tensor = getattr(self, parameter_key(module_name, suffix))
        return stacked.index_select(0, index)[0] if isinstance(index, torch.Tensor) else stacked[index]


class LoopLora(nn.ModuleList):
    """The updates of all core layers.

    Args:
        config (`LoopedConfig`): configuration with the `loop_lora_*` fields.
        core_layers (`list[nn.Module]`): the core layers, before quantization or adapters change them.

    Raises:
        ValueError: if a name in `loop_lora_target_modules` matches no linear map of the core.
    """

    def __init__(self, config: LoopedConfig, core_layers: list[nn.Module]):
        # fixed when the weights are made: the model may run another number of loops later
        if config.loop_lora_num_loops is None:
            config.loop_lora_num_loops = config.num_loops
        num_loops = config.loop_lora_num_loops
        target_modules = config.loop_lora_target_modules
        check_targets(target_modules, core_layers)
        super().__init__(
            LayerLoopLora(layer, num_loops, config.loop_lora_rank, target_modules, config.loop_lora_vectors)
            for layer in core_layers
        )
        self.num_loops = num_loops
        self.beyond = config.loop_lora_beyond

    def update_index(self, loop: int | torch.Tensor) -> int | torch.Tensor | None:
        """Return the index of the update of loop `loop`, by `loop_lora_beyond` for later loops; `None` for none."""
        if isinstance(loop, torch.Tensor):
            # in a graph that serves all loops, the index itself, `[1]`
            return loop
        if loop < self.num_loops:
            return loop
        if self.beyond == "cyclic":
            return loop % self.num_loops
        return self.num_loops - 1 if self.beyond == "last" else None

    def layer_in_loop(self, layer: nn.Module, core_index: int, loop: int | torch.Tensor) -> nn.Module:
        """Make a view of `layer`, core layer `core_index`, that computes with the update of loop `loop`.

        Raises:
            ValueError: if a module was replaced or wrapped, so that the update cannot reach it.
        """
        index = self.update_index(loop)
        if index is None:
            return layer
        return updated_view(layer, self[core_index](index))

    def update_size(self, core_index: int, loop: int) -> int:
        """Return the number of parameters in the update of core layer `core_index` in loop `loop`."""
        is_updated = self.update_index(loop) is not None
        return sum(parameter[0].numel() for parameter in self[core_index].parameters()) if is_updated else 0

    @torch.no_grad()
    def merged_state_dict(self, layer: nn.Module, core_index: int, loop: int) -> dict[str, torch.Tensor]:
        """Return the state dict of `layer` with the update of loop `loop` merged into its weights.

        Args:
            layer (`nn.Module`): core layer `core_index`, which is not changed; tensors without an update are shared.
            core_index (`int`): index of the layer in the core.
            loop (`int`): index of the loop, from 0.

        Raises:
            ValueError: if a weight to update is quantized or has an adapter.
        """
        state_dict: dict[str, torch.Tensor] = layer.state_dict()
        index = self.update_index(loop)
        if index is None:
            return state_dict
        for name, update in self[core_index](index).items():
            differences = {}
            if isinstance(update, LinearUpdate):
                if update.lora_A is not None and update.lora_B is not None:
                    dtype = torch.promote_types(update.lora_B.dtype, torch.float32)
                    differences["weight"] = update.lora_B.to(dtype) @ update.lora_A.to(dtype)
                if update.bias is not None:
                    differences["bias"] = update.bias
            else:
                differences = update
            for parameter_name, difference in differences.items():
                key = f"{name}.{parameter_name}"
                state_dict[key] = _add_to_weight(key, state_dict.get(key), difference)
        return state_dict


def parameter_key(module_name: str, suffix: str) -> str:
    """Return the name of a parameter of [`LayerLoopLora`]; `suffix` is `A`, `B` or the name of a vector."""
    return f"{module_name.replace('.', '_')}_{suffix}"


def vector_parameter_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters of `module` that can have a difference per loop.

    They are the vectors of a module without children, such as a bias or the gain of a norm. Convolutions are left out,
    because hybrid layers read their parameters without calling them.
    """
    if next(module.children(), None) is not None or isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return []
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 1]


def _is_target(name: str, target_modules: list[str] | None) -> bool:
    return target_modules is None or any(f".{name}".endswith(f".{target}") for target in target_modules)


def check_targets(target_modules: list[str] | None, core_layers: list[nn.Module]) -> None:
    """Check the names in `loop_lora_target_modules`.

    Raises:
        ValueError: if a name matches no linear map of the core.
    """
    names = {
        name: None for layer in core_layers for name, module in layer.named_modules() if isinstance(module, nn.Linear)
    }
    for target in target_modules or []:
        if not any(_is_target(name, [target]) for name in names):
            raise ValueError(
                f"`loop_lora_target_modules` names {target!r}, but the linear maps of the core are {', '.join(names)}"
            )


def is_plain(weight: torch.Tensor) -> bool:
    """Return whether numbers can be added to a weight: it is not quantized, by its dtype or its tensor class."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype in dtypes


def _add_to_weight(key: str, weight: torch.Tensor | None, difference: torch.Tensor) -> torch.Tensor:
    if weight is None:
        raise ValueError(f"the layer has no {key!r}: unload or merge its adapter first")
    if not is_plain(weight):
        kind = weight.dtype if type(weight) is torch.Tensor else type(weight).__name__
        raise ValueError(f"{key!r} is quantized ({kind}): a loop's update cannot be merged into it")
    # in fp32, because bf16 would round away a small update of a large weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(dtype) + difference.to(weight.device, dtype)).to(weight.dtype)


__all__ = ["LayerLoopLora", "LoopLora"]
