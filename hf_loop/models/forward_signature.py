# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The signature of a forward pass that passes further arguments on, so that callers see them by name."""

import functools
import inspect
from collections.abc import Callable
from typing import Any


def name_arguments(
    forward: Callable[..., Any], base: Callable[..., Any], of: Callable[..., Any], left_out: frozenset[str]
) -> Callable[..., Any]:
    """Decorate a forward pass, adding to its signature the arguments that it passes on as `**kwargs`.

    `generate` and `Trainer` pass the arguments that the signature names.

    Args:
        forward (`Callable`): the forward pass.
        base (`Callable`): the forward pass of the base class, whose arguments come first, also by position.
        of (`Callable`): what `forward` passes its further arguments on to.
        left_out (`frozenset[str]`): arguments of `of` that `forward` sets itself.
    """
    head = inspect.signature(base).parameters
    names = [name for name, parameter in head.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(forward)
    def call(*args, **kwargs):
        if len(args) > len(names):
            raise TypeError(f"`forward` takes at most {len(names) - 1} arguments by position, got {len(args) - 1}")
        return forward(args[0], **dict(zip(names[1:], args[1:])), **kwargs)

    further = inspect.signature(of).parameters | inspect.signature(forward).parameters
    further = {
        name: parameter.replace(kind=parameter.KEYWORD_ONLY)
        for name, parameter in further.items()
        if name not in head and name not in left_out
    }
    *first, kwargs = head.values()
    wrapper: Any = call
    wrapper.__signature__ = inspect.Signature([*first, *further.values(), kwargs])
    return wrapper


__all__ = ["name_arguments"]
