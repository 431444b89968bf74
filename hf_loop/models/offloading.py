# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Models whose weights are brought to the device layer by layer: what still works, and what refuses them.

accelerate puts hooks around the forward of the module that owns a weight (`cpu_offload`, `disk_offload`, a device map
with "cpu" or "disk"). Outside of it the weight is a tensor on the device "meta", which holds nothing.
"""

from itertools import chain

import torch
from torch import nn

from .layer_views import read_weight


def check_weights_are_here(module: nn.Module, name: str) -> None:
    """Refuse a model with weights that hold nothing, before they are copied or written as if they did.

    Args:
        module (`nn.Module`): the model, or the part of it that is read.
        name (`str`): the argument it was given for, used in the message.

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
    """Whether transformers' `save_pretrained` gathers the offloaded weights of a model itself, by its device map."""
    devices = set(getattr(module, "hf_device_map", {}).values())
    return len(devices) > 1 and not devices.isdisjoint({"cpu", "disk"})


def weight_values(module: nn.Module, name: str) -> torch.Tensor:
    """A weight by its dotted name, brought from where it is offloaded to.

    Raises:
        ValueError: if it was never loaded.
    """
    owner, _, own_name = name.rpartition(".")
    value = read_weight(module.get_submodule(owner), own_name).detach()
    if value.is_meta:
        raise ValueError(f"the weight {name!r} was never loaded")
    return value


__all__ = ["check_weights_are_here", "is_saved_offloaded", "weight_values"]
