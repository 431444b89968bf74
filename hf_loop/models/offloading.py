# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Support for models with offloaded weights.

accelerate (`cpu_offload`, `disk_offload`, a device map with "cpu" or "disk") puts hooks around the forward of the
module that owns a weight. Outside of this forward the weight is a tensor on the device "meta", without values.
"""

from itertools import chain

import torch
from torch import nn

from .layer_views import read_weight


def check_weights_are_here(module: nn.Module, name: str) -> None:
    """Refuse a model with weights that have no values, before they are copied or saved.

    Args:
        module (`nn.Module`): the model, or a part of it.
        name (`str`): the argument that has the module, for the message.

    Raises:
        ValueError: if a parameter or buffer is on the device "meta".
    """
    missing = [key for key, tensor in chain(module.named_parameters(), module.named_buffers()) if tensor.is_meta]
    if missing:
        raise ValueError(
            f"`{name}` has {len(missing)} weights that are offloaded or were never loaded, such as {missing[0]!r}: "
            "load it without a `device_map` that offloads, or remove accelerate's hooks first"
        )


def is_saved_offloaded(module: nn.Module) -> bool:
    """Return whether transformers' `save_pretrained` gathers the offloaded weights of a model, by its device map."""
    devices = set(getattr(module, "hf_device_map", {}).values())
    return len(devices) > 1 and not devices.isdisjoint({"cpu", "disk"})


def weight_values(module: nn.Module, name: str) -> torch.Tensor:
    """Return the values of a weight by its dotted name, loaded from where it is offloaded to.

    Raises:
        ValueError: if the weight was never loaded.
    """
    owner, _, own_name = name.rpartition(".")
    value = read_weight(module.get_submodule(owner), own_name).detach()
    if value.is_meta:
        raise ValueError(f"the weight {name!r} was never loaded")
    return value


__all__ = ["check_weights_are_here", "is_saved_offloaded", "weight_values"]
