"""A decoder with other layers: some dropped, some repeated, each with the settings it had.

Configurations say what is special about a layer by its index: lists with an entry per layer, lists of indices, counts
and periods. `select_layers` carries these over, and `check_same_kind` holds the outcome to the layers themselves, so
that an architecture with a rule nobody thought of is refused and not silently built wrong.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from ..models.backbone import backbone_spec, get_part, set_part


# one entry per layer
PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
# the indices of some layers
INDEX_LISTS = ("value_embedding_layers",)


def select_layers(config: PreTrainedConfig, indices: Sequence[int]) -> PreTrainedConfig:
    """The configuration of a decoder whose layer `i` is layer `indices[i]` of `config`'s; indices may repeat.

    Raises:
        ValueError: the configuration cannot say so, because a rule by layer index would make another kind of layer.
    """
    selected: Any = copy.deepcopy(config)
    if list(indices) == list(range(selected.num_hidden_layers)):
        return selected
    for name in PER_LAYER_LISTS:
        values = getattr(config, name, None)
        # some follow from other fields
        if values is not None and not isinstance(getattr(type(config), name, None), property):
            setattr(selected, name, [values[index] for index in indices])
    for name in INDEX_LISTS:
        chosen = getattr(config, name, None)
        if chosen is not None:
            setattr(selected, name, [new for new, old in enumerate(indices) if old in chosen])
    if getattr(config, "mlp_only_layers", None) is not None:
        # mixtures of experts place dense layers by a period and by a list: the list alone can say any pattern
        dense = [new for new, old in enumerate(indices) if _is_dense(config, old)]
        selected.mlp_only_layers, selected.decoder_sparse_step = dense, 1
    if getattr(config, "max_window_layers", None) is not None and getattr(config, "layer_types", None) is not None:
        # readers without `layer_types` take the layers from this one on for those with a sliding window
        full = [layer_type != "sliding_attention" for layer_type in selected.layer_types]
        selected.max_window_layers = full.index(False) if False in full else len(full)
    if getattr(config, "first_k_dense_replace", None) is not None:
        selected.first_k_dense_replace = sum(index < selected.first_k_dense_replace for index in indices)
    selected.num_hidden_layers = len(indices)
    return selected


def keep_layers(decoder: Any, indices: Sequence[int]) -> None:
    """Drop every layer of `decoder` that `indices` does not name, in place; no weight is copied.

    Args:
        decoder (`PreTrainedModel`): the base model, without its head.
        indices (`Sequence[int]`): the layers to keep, in order.

    Raises:
        ValueError: the architecture cannot do without the others; the decoder is left as it was.
    """
    name = backbone_spec(decoder.config).layers
    layers = get_part(decoder, name)
    if list(indices) == list(range(len(layers))):
        return
    config = select_layers(decoder.config, indices)
    check_same_kind(config, [layers[index] for index in indices], indices)
    kept = nn.ModuleList(layers[index] for index in indices)
    set_part(decoder, name, kept)
    number_layers(kept)
    # attention modules hold the same object and read it when they run
    for key, value in vars(config).items():
        if vars(decoder.config).get(key) != value:
            setattr(decoder.config, key, value)


def number_layers(layers: nn.ModuleList) -> None:
    """Tell every layer, and what is inside it, its index, by which it finds its part of a cache."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010 the type checker knows tensors and modules only


def check_same_kind(config: PreTrainedConfig, layers: Sequence[nn.Module], indices: Sequence[int]) -> None:
    """Refuse a configuration whose layers would not be what `layers` are.

    Args:
        config (`PreTrainedConfig`): the configuration to check.
        layers (`Sequence[nn.Module]`): the layers that are to stand in its decoder, in order.
        indices (`Sequence[int]`): where they come from, for the message.

    Raises:
        ValueError: names the first layer that differs, and what of it does.
    """
    with torch.device("meta"):
        decoder = AutoModel.from_config(config)
    for new, (layer, fresh) in enumerate(zip(layers, get_part(decoder, backbone_spec(config).layers), strict=True)):
        difference = first_difference(layer, fresh)
        if difference is not None:
            raise ValueError(
                f"layer {indices[new]} cannot become layer {new} of a {config.model_type} backbone with "
                f"{len(layers)} layers: {difference} would differ"
            )


def first_difference(layer: nn.Module, fresh: nn.Module) -> str | None:
    """The name of a module or setting in which `layer` is not what `fresh` is, apart from its weights and index."""
    modules = dict(layer.named_modules())
    for name, fresh_module in fresh.named_modules():
        module = modules.get(name)
        if module is None:
            return name
        # quantization and adapters put their own classes in the place of linear maps
        if isinstance(fresh_module, nn.Linear):
            continue
        if type(module) is not type(fresh_module):
            return name or type(module).__name__
        for key, value in vars(fresh_module).items():
            is_setting = isinstance(value, bool | int | float | str) and key not in ("layer_idx", "training")
            if is_setting and getattr(module, key, None) != value:
                return f"{name}.{key}".lstrip(".")
    return None


def _is_dense(config: Any, index: int) -> bool:
    return index in config.mlp_only_layers or (index + 1) % config.decoder_sparse_step != 0
