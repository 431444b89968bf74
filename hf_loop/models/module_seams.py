# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Copies of modules that share everything but a part, and what accelerate puts around a forward.

These touch private parts of torch, accelerate and transformers, as `transformers_seams.py` does.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def module_view(
    module: nn.Module,
    children: dict[str, nn.Module] | None = None,
    parameters: dict[str, torch.Tensor] | None = None,
    is_lenient: bool = False,
) -> nn.Module:
    """A copy of a module that shares parameters, buffers and hooks with it, save the children and parameters given.

    With `is_lenient`, a function that someone put in the place of the forward stays as it is.

    `torch.func.functional_call` would put the parameters into the module itself while it runs, where other threads
    meet them, and cannot replace a child.

    Raises:
        ValueError: if something put a forward on the module that a copy cannot be made to run.
    """
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    # `module.compile()` compiled the original's call
    view.__dict__["_compiled_call_impl"] = None
    if children is not None:
        view.__dict__["_modules"] = {**module._modules, **children}
    if parameters is not None:
        view.__dict__["_parameters"] = {**module._parameters, **parameters}
    # bound to the original, whose children would be run: device maps and kernels put such functions on the instance
    for name in ("forward", "_old_forward"):
        if name in module.__dict__:
            try:
                view.__dict__[name] = _rebind(module.__dict__[name], module, view)
            except ValueError:
                if not is_lenient:
                    raise
    return view


def _rebind(function: Any, module: nn.Module, view: nn.Module) -> Callable[..., Any]:
    """`function`, which calls `module`, so that it calls `view`."""
    if isinstance(function, types.MethodType) and function.__self__ is module:
        return types.MethodType(function.__func__, view)
    if isinstance(function, functools.partial) and function.args and function.args[0] is module:
        return functools.partial(function.func, view, *function.args[1:], **function.keywords)
    raise ValueError(
        f"the per-loop LoRA cannot reach what is inside {type(module).__name__}, whose forward was replaced by "
        f"{function!r}"
    )


def child_module(module: nn.Module, name: str) -> nn.Module | None:
    """The child of a module under a name of its own; none of what a wrapper hands through."""
    return module._modules.get(name)


def own_parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """The parameter of a module under a name of its own; none of what a wrapper hands through."""
    return module._parameters.get(name)


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate put hooks around the forward of a module, as offloading does."""
    return "_old_forward" in module.__dict__


def inner_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module without the hooks that accelerate put around it, which bring its weights."""
    return module.__dict__.get("_old_forward", module.forward)


def replace_forward(view: nn.Module, forward: Callable[..., Any], inside_hooks: bool = False) -> nn.Module:
    """Let a module view run `forward`, in place of accelerate's hooks or inside of them."""
    view.__dict__["_old_forward" if inside_hooks and is_hooked(view) else "forward"] = forward
    return view


def drops_cache(layer: nn.Module) -> bool:
    """Whether a layer would drop its cache where nothing is differentiated, because it is checkpointed in training.

    Releases up to 5.23 do that; later ones keep it.
    """
    return layer.training and getattr(layer, "gradient_checkpointing", False) and not torch.is_grad_enabled()


def without_checkpointing(layer: nn.Module) -> nn.Module:
    """A view of a layer that runs as it is."""
    view = module_view(layer)
    view.__dict__["gradient_checkpointing"] = False
    return view


__all__ = [
    "child_module",
    "drops_cache",
    "inner_forward",
    "is_hooked",
    "module_view",
    "own_parameter",
    "replace_forward",
    "without_checkpointing",
]
