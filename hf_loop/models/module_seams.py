# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private parts of torch and accelerate: views of modules, and accelerate's hooks around a forward."""

import functools
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


# as torch has it: this file is read before an engine makes a model
_register_parameter = nn.Module.register_parameter


@contextmanager
def parameters_here() -> Generator[None]:
    """Let modules keep their parameters where they are made.

    While vLLM and SGLang make a model, they have every module move its parameters to the device "meta".
    """
    register = nn.Module.register_parameter
    nn.Module.register_parameter = _register_parameter
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def module_view(
    module: nn.Module,
    children: dict[str, nn.Module] | None = None,
    parameters: dict[str, torch.Tensor] | None = None,
    is_lenient: bool = False,
) -> nn.Module:
    """Make a view of a module: a shallow copy that shares its parameters, buffers and hooks.

    `torch.func.functional_call` does not serve: it changes the module itself while it runs, which other threads see,
    and it cannot replace a child.

    Args:
        module (`nn.Module`): the module.
        children (`dict[str, nn.Module]`, *optional*): children to replace, by name.
        parameters (`dict[str, torch.Tensor]`, *optional*): parameters to replace, by name.
        is_lenient (`bool`, *optional*, defaults to `False`): whether to keep a replaced `forward` that cannot be
            rebound to the view.

    Raises:
        ValueError: if the module's `forward` was replaced by a function that cannot be rebound to the view.
    """
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    # `module.compile()` compiled the original's call
    view.__dict__["_compiled_call_impl"] = None
    if children is not None:
        view.__dict__["_modules"] = {**module._modules, **children}
    if parameters is not None:
        view.__dict__["_parameters"] = {**module._parameters, **parameters}
    # device maps and kernels set these on the instance, bound to the original module
    for name in ("forward", "_old_forward"):
        if name in module.__dict__:
            try:
                view.__dict__[name] = _rebind(module.__dict__[name], module, view)
            except ValueError:
                if not is_lenient:
                    raise
    return view


def _rebind(function: Any, module: nn.Module, view: nn.Module) -> Callable[..., Any]:
    """Rebind `function` from `module` to `view`."""
    if isinstance(function, types.MethodType) and function.__self__ is module:
        return types.MethodType(function.__func__, view)
    if isinstance(function, functools.partial) and function.args and function.args[0] is module:
        return functools.partial(function.func, view, *function.args[1:], **function.keywords)
    raise ValueError(
        f"the per-loop LoRA cannot reach the modules inside {type(module).__name__}, whose forward was replaced by "
        f"{function!r}"
    )


def child_module(module: nn.Module, name: str) -> nn.Module | None:
    """Return a child of a module, `None` if the module only passes the name on to what it wraps."""
    return module._modules.get(name)


def own_parameter(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return a parameter of a module, `None` if the module only passes the name on to what it wraps."""
    return module._parameters.get(name)


def is_hooked(module: nn.Module) -> bool:
    """Return whether accelerate put hooks around a module's forward, as offloading does."""
    return "_old_forward" in module.__dict__


def inner_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's forward without accelerate's hooks, which load its weights."""
    return module.__dict__.get("_old_forward", module.forward)


def replace_forward(view: nn.Module, forward: Callable[..., Any], inside_hooks: bool = False) -> nn.Module:
    """Replace the forward of a module view, together with accelerate's hooks or inside of them."""
    view.__dict__["_old_forward" if inside_hooks and is_hooked(view) else "forward"] = forward
    return view


def drops_cache(layer: nn.Module) -> bool:
    """Return whether a layer would drop its cache because it is checkpointed, although no gradient is recorded.

    Releases up to 5.23 do so.
    """
    return layer.training and getattr(layer, "gradient_checkpointing", False) and not torch.is_grad_enabled()


def without_checkpointing(layer: nn.Module) -> nn.Module:
    """Make a view of a layer without gradient checkpointing."""
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
    "parameters_here",
    "replace_forward",
    "without_checkpointing",
]
