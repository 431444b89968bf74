"""Distinct layers folded into shared ones, with what they lose kept as per-loop LoRA (arXiv 2410.20672).

The core's M layers become n = M / num_loops shared layers. Loop b of shared layer k stands for the original core layer
b * n + k: the update of each of its linear maps is the truncated singular value decomposition of what the original has
and the shared layer has not, `W_original - W_shared = U S V^T`, with B = U_r S_r and A = V_r^T. Vectors (gains and
biases) keep their whole difference. At full rank nothing is lost, and the looped model computes what the original did.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from ..models.adapters import refuse_adapter
from ..models.loop_lora import LayerLoopLora, LoopLora, is_plain, parameter_key, vector_parameter_names
from .layer_selection import first_difference


def shared_core(core: range, num_loops: int) -> range:
    """The layers of a core that remain when the others are folded into them.

    Args:
        core (`range`): the core's layers in the original.
        num_loops (`int`): how many of them each shared layer stands for.

    Raises:
        ValueError: the layers do not divide into loops.
    """
    if num_loops < 2:
        raise ValueError(f"`fold` needs `num_loops` of at least 2, got {num_loops}")
    if len(core) % num_loops:
        raise ValueError(f"`fold` cannot share the {len(core)} core layers evenly between num_loops={num_loops}")
    return core[: len(core) // num_loops]


def check_foldable(
    layers: Sequence[nn.Module], indices: Sequence[int], layer_types: Sequence[str] | None, num_shared: int
) -> None:
    """Refuse core layers that cannot be folded, before anything is changed.

    Args:
        layers (`Sequence[nn.Module]`): the core's layers.
        indices (`Sequence[int]`): where they are in the original.
        layer_types (`Sequence[str]`, *optional*): the type of every layer of the original, if it has several.
        num_shared (`int`): how many of them remain.

    Raises:
        ValueError: two layers that would share differ in kind, or they hold something other than linear maps and
            vectors.
    """
    for place, (layer, index) in enumerate(zip(layers, indices, strict=True)):
        first = indices[place % num_shared]
        difference = _difference(layers[place % num_shared], layer)
        if layer_types is not None and layer_types[first] != layer_types[index]:
            difference = f"their type, {layer_types[first]} and {layer_types[index]}"
        if difference is not None:
            raise ValueError(f"`fold` cannot share layers {first} and {index}: they differ in {difference}")
        _check_parameters(layer, index)


def _difference(layer: nn.Module, other: nn.Module) -> str | None:
    """What keeps two layers from having the same computation with other numbers."""
    difference = first_difference(layer, other)
    if difference is not None:
        return difference
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    other_shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    for name in shapes | other_shapes:
        if shapes.get(name) != other_shapes.get(name):
            return name
    buffers = dict(other.named_buffers())
    return next((name for name, buffer in layer.named_buffers() if not torch.equal(buffer, buffers[name])), None)


def _check_parameters(layer: nn.Module, index: int) -> None:
    refuse_adapter(layer, "it is folded")
    for module_name, module in layer.named_modules():
        is_linear = isinstance(module, nn.Linear)
        vectors = vector_parameter_names(module)
        for name, parameter in module.named_parameters(recurse=False):
            if not is_plain(parameter):
                raise ValueError(f"`fold` needs weights that are not quantized: {module_name}.{name} of layer {index}")
            if name not in vectors and not (is_linear and name == "weight"):
                raise ValueError(
                    f"`fold` cannot share {module_name}.{name} of layer {index}: {type(module).__name__} is neither a "
                    "linear map nor a norm"
                )


def full_rank(layers: Sequence[nn.Module]) -> int:
    """The rank at which per-loop LoRA loses nothing of any linear map in `layers`."""
    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    return max(min(module.in_features, module.out_features) for module in linear)


@torch.no_grad()
def fold_layers(
    layers: Sequence[nn.Module],
    num_loops: int,
    fold: Literal["average", "first"],
    loop_lora: LoopLora | None,
) -> None:
    """Make the first of `layers` the shared ones, and `loop_lora` what every layer has beyond its shared one.

    Args:
        layers (`Sequence[nn.Module]`): the core's layers, which passed [`check_foldable`]. The first
            `len(layers) / num_loops` are changed; the others are not needed afterwards.
        num_loops (`int`): how many of them each shared layer stands for.
        fold (`str`): whether a shared weight is the `"average"` of the originals or the `"first"` of them.
        loop_lora (`LoopLora`, *optional*): filled; its rank is where the decomposition is cut. Without it the
            differences are lost.
    """
    num_shared = len(layers) // num_loops
    # minutes for a large model: the decompositions
    for core_index in tqdm(range(num_shared), desc="folding", disable=None):
        originals = layers[core_index::num_shared]
        for name, shared in originals[0].named_parameters():
            dtype = torch.promote_types(shared.dtype, torch.float32)
            weights = torch.stack([layer.get_parameter(name).to(shared.device, dtype) for layer in originals])
            value = weights.mean(0) if fold == "average" else weights[0]
            shared.copy_(value)
            if loop_lora is not None:
                # from the shared weight as it is stored, rounded
                _store_differences(loop_lora[core_index], name, weights - shared.to(dtype))


def _store_differences(updates: LayerLoopLora, name: str, differences: torch.Tensor) -> None:
    """Write `differences` `[R, ...]` of one parameter into what `updates` has for it, if anything."""
    module_name, _, parameter_name = name.rpartition(".")
    if (module_name, parameter_name) in updates.vector_names:
        getattr(updates, parameter_key(module_name, parameter_name)).copy_(differences)
    elif module_name in updates.linear_names:
        lora_A = getattr(updates, parameter_key(module_name, "A"))
        lora_B = getattr(updates, parameter_key(module_name, "B"))
        rank = lora_A.shape[1]
        left, singular_values, right = torch.linalg.svd(differences, full_matrices=False)
        lora_A.copy_(right[:, :rank])
        lora_B.copy_(left[:, :, :rank] * singular_values[:, None, :rank])
