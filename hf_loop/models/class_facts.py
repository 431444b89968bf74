# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Facts about classes of modules that are looked up in every layer call."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn


Fact = TypeVar("Fact")


def class_fact(function: Callable[[type[nn.Module]], Fact]) -> Callable[[type[nn.Module]], Fact]:
    """Decorate a function of a class, which is then called once per class and is a constant of compiled graphs.

    torch would trace through `functools.cache`, with a warning.

    Args:
        function (`Callable`): the function, whose result never changes.
    """
    cached = functools.cache(function)

    @torch.compiler.assume_constant_result
    @functools.wraps(function)
    def look_up(cls: type[nn.Module]) -> Fact:
        return cached(cls)

    return look_up


__all__ = ["class_fact"]
