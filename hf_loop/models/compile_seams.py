# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private parts of torch and transformers around compiling."""

import threading
import types
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import CompileConfig
from transformers.utils import output_capturing

from .single_row import replace_single_rows


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


class GraphCall(NamedTuple):
    """One call of a compiled graph, by the function that torch put in its place."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    outputs: Any


class RecordingBackend:
    """A backend of `torch.compile` whose graphs tell with what they are called.

    What inductor puts around the kernels of a graph is compiled too (`cpp_wrapper`), where it takes longer than the
    kernels: on a CPU, without gradient, unless there are options.

    Args:
        backend (`str` or `Callable`): the backend that compiles.
        mode, options, dynamic: as for `torch.compile`.
    """

    def __init__(self, backend: Any = "inductor", mode: Any = None, options: Any = None, dynamic: Any = None):
        self.wraps_in_cpp = backend == "inductor" and not options
        if backend == "inductor":
            self.compile_graph: Any = torch._TorchCompileInductorWrapper(mode, options, dynamic)
        else:
            self.compile_graph = torch._TorchCompileWrapper(backend, mode, options, dynamic)
        # of each thread, because several may run one model
        self.local = threading.local()

    def __call__(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        patches: Any = {}
        if self.wraps_in_cpp and not torch.is_grad_enabled() and all_on_cpu(inputs):
            patches = {"config_patches": {"cpp_wrapper": True}}
            replace_single_rows(graph)
        function = self.compile_graph(graph, inputs, **patches)

        def run_graph(*args: Any) -> Any:
            outputs = function(*args)
            calls = getattr(self.local, "calls", None)
            if calls is not None:
                calls.append(GraphCall(function, args, outputs))
            return outputs

        return run_graph

    @contextmanager
    def recorded_calls(self) -> Generator[list[GraphCall]]:
        """Append the calls of graphs inside the `with` block to the list that it gives."""
        self.local.calls = []
        try:
            yield self.local.calls
        finally:
            self.local.calls = None


def all_on_cpu(inputs: list[Any]) -> bool:
    """Return whether the tensors among the inputs of a graph are all on the CPU."""
    return all(tensor.device.type == "cpu" for tensor in inputs if isinstance(tensor, torch.Tensor))


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Return whether a module or a module inside of it has hooks around its forward, which may run any Python."""
    return any(inner._forward_hooks or inner._forward_pre_hooks for module in modules for inner in module.modules())


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


__all__ = [
    "CompiledGeneration",
    "GraphCall",
    "RecordingBackend",
    "compile_apart",
    "compile_on_any_device",
    "has_hooks",
    "records_outputs",
]
