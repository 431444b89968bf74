# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private parts of torch and transformers around compiling."""

import types
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import CompileConfig
from transformers.utils import output_capturing


def compile_apart(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function with graphs of its own.

    torch keeps graphs by code object and makes a limited number of them: two models that compile one function would
    use up each other's.

    Args:
        function (`Callable`): a function without a closure. It is not changed.
        options: options of `torch.compile`.
    """
    original = cast(types.FunctionType, function)
    code = original.__code__.replace()
    copy = types.FunctionType(code, original.__globals__, original.__name__, original.__defaults__)
    return torch.compile(copy, **options)


class CompiledGeneration:
    """Mixin for models that generate with another compiled call than transformers'; comes before `PreTrainedModel`."""

    def make_compiled_call(self: Any, compiled_call: Callable[..., Any], compile_config: Any) -> Any:
        """Return what `generate` calls for the tokens after the prompt where it compiles.

        Args:
            compiled_call (`Callable`): the whole forward pass, compiled.
            compile_config (`CompileConfig`): how it is compiled.
        """
        return compiled_call

    def get_compiled_call(self: Any, compile_config):
        # keeps the configuration, or its default for this device; compiles nothing yet
        compiled_call = cast(Any, super()).get_compiled_call(compile_config)
        return self.make_compiled_call(compiled_call, self._last_compile_config)


def compile_on_any_device() -> CompileConfig:
    """Return a configuration with which `generate` compiles on a CPU too; without one it does on accelerators only."""
    config = CompileConfig()
    config._compile_all_devices = True
    return config


def records_outputs() -> bool:
    """Return whether the forward pass under way records hidden states or attentions, for which hooks run Python."""
    return bool(output_capturing._active_collector.get())


__all__ = ["CompiledGeneration", "compile_apart", "compile_on_any_device", "records_outputs"]
