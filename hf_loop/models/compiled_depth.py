# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A looped schedule that runs as three compiled graphs: the prelude, one pass of the core, and the coda. In
decoding, the head is a fourth.

The graph of the core is called once per loop, and whatever differs between loops is an input of it: the state, the
cache layers of the loop's slots, the index of the loop's LoRA update. So all numbers of loops run on the same three
graphs, and compiling takes as long for 2 loops as for 32.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import Cache, CompileConfig
from transformers.cache_utils import StaticLayer

from .backbone import compute_logits
from .compile_seams import RecordingBackend, compile_apart, has_hooks, records_outputs
from .layer_calls import LayerInputs
from .repeated_graph import RepeatedGraph, loop_tensors, repeat_graph
from .schedules import Call, LoopedDepth, RunCall
from .transformers_seams import cache_of


# keywords by which layers find a cache that they are not given
FOREIGN_CACHES = ("cache", "block_table")


class SharedInputs(NamedTuple):
    """The fields of [`LayerInputs`] without the cache, of which every graph gets its own layers."""

    position_ids: torch.Tensor
    position_embeddings: Any
    masks: Any
    use_cache: bool
    kwargs: dict[str, Any]


class CompiledParts:
    """The compiled functions of a model. torch compiles each when it is first called.

    Args:
        options: options of `torch.compile`.
    """

    def __init__(self, **options: Any):
        self.options = options
        of_graph = {name: options[name] for name in ("backend", "mode", "options", "dynamic") if name in options}
        self.backend = RecordingBackend(**of_graph)
        others = {name: options[name] for name in options if name not in ("backend", "mode", "options")}
        self.run_prelude, self.run_core, self.run_coda, self.compute_logits = (
            compile_apart(part, backend=self.backend, **others)
            for part in (run_prelude, run_core, run_coda, compute_logits)
        )

    def __reduce__(self):
        # compiled functions cannot be copied or saved
        return _compile_parts, (self.options,)


def _compile_parts(options: dict[str, Any]) -> CompiledParts:
    return CompiledParts(**options)


class GenerationParts:
    """The compiled functions with which a model and its views generate, as they were last asked for."""

    def __init__(self):
        self.config: CompileConfig | None = None
        self.parts: CompiledParts | None = None

    def with_config(self, config: CompileConfig) -> CompiledParts:
        """Return the functions compiled by `config`."""
        if self.parts is None or self.config != config:
            self.config, self.parts = copy.copy(config), CompiledParts(**config.to_dict())
        return self.parts


class CompiledDepth(LoopedDepth):
    """A looped schedule whose parts are compiled. Made for one forward pass.

    Args:
        parts (`CompiledParts`): the compiled functions.
        calls (`LoopCalls`): the layer calls of the pass. Other layer calls run uncompiled.
    """

    def __init__(self, parts: CompiledParts, calls: Any):
        self.__dict__.update(calls.backbone.depth.__dict__)
        self.parts, self.calls, self.backbone = parts, calls, calls.backbone
        inputs: LayerInputs = calls.inputs
        self.cache: Any = inputs.cache
        # the graph of the loop before, where it can be called again without looking for it
        self.repeated: RepeatedGraph | None = None
        self.inputs = SharedInputs(
            inputs.position_ids, inputs.position_embeddings, inputs.masks, inputs.use_cache, inputs.kwargs
        )

    def is_own(self, run_call: RunCall) -> bool:
        """Return whether `run_call` makes the layer calls that were compiled, and not others, as exits do."""
        return getattr(run_call, "__self__", None) is self.calls

    def run_prelude(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        layers = self.cache_layers(self.prelude_calls())
        return self.parts.run_prelude(self.backbone, hidden_states, self.inputs, layers)

    def run_loop(
        self, loop: int, state: torch.Tensor, encoded: torch.Tensor, run_call: RunCall, num_loops: int
    ) -> torch.Tensor:
        if not self.is_own(run_call):
            return super().run_loop(loop, state, encoded, run_call, num_loops)
        first = self.first_slot(loop)
        layers = None if self.cache is None else self.cache.layers[first : first + self.num_core]
        update = self.update_index(loop, state.device)
        if self.repeated is not None:
            own = loop_tensors(state, layers, update)
            if self.repeated.takes(own):
                return self.repeated.run(own)
        state, encoded = alike_in_all_loops(state, encoded)
        own = loop_tensors(state, layers, update)
        # a number would be a constant of the graph, and a tensor is an input; the whole update is computed otherwise
        share: Any = self.update_share(num_loops)
        count: Any = 1 if share == 1 else torch.tensor(float(num_loops), device=state.device)
        with self.parts.backend.recorded_calls() as graph_calls:
            updated = self.parts.run_core(self.backbone, state, encoded, self.inputs, layers, count, update)
        if self.can_repeat(layers):
            self.repeated = repeat_graph(graph_calls, own, updated)
        return updated

    def can_repeat(self, layers: list[Any] | None) -> bool:
        """Return whether a loop does nothing but what is in its graph: there is no gradient, and no Python to run."""
        if torch.is_grad_enabled() or not all(type(layer) is StaticLayer for layer in layers or []):
            return False
        core = self.backbone.layers[self.num_prelude : self.num_prelude + self.num_core]
        return not has_hooks(core)

    def run_coda(self, state: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        if not self.is_own(run_call):
            return super().finish(super().run_coda(state, run_call))
        return self.parts.run_coda(self.backbone, state, self.inputs, self.cache_layers(self.coda_calls()))

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # the coda ends with it
        return hidden_states

    def cache_layers(self, calls: list[Call]) -> list[Any] | None:
        """Return the cache layers of some layer calls, `None` without a cache."""
        return None if self.cache is None else [self.cache.layers[call.slot] for call in calls]

    def update_index(self, loop: int, device: torch.device) -> torch.Tensor | None:
        """Return the index of the LoRA update of a loop, `None` if it has none."""
        lora = self.model.loop_lora
        index = None if lora is None else lora.update_index(loop)
        return None if index is None else torch.tensor([index], device=device)


def alike_in_all_loops(state: torch.Tensor, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a loop's inputs with the properties that a graph depends on equal in all loops.

    Before the first loop the state may be `encoded` itself, or have strides of zero; without gradient, later states
    require none although `encoded` does; and the first state after loops without gradient requires none.
    """
    if not torch.is_grad_enabled():
        return state.detach().contiguous(), encoded.detach()
    if encoded.requires_grad and not state.requires_grad:
        state = state.detach().requires_grad_()
    return (state.view_as(state) if state is encoded else state.contiguous()), encoded


def choose_schedule(parts: CompiledParts | None, calls: Any) -> Any:
    """Return the schedule of a pass: compiled, or that of the backbone if there is something that graphs do not take.

    Args:
        parts (`CompiledParts`, *optional*): the compiled functions, if the model is compiled.
        calls (`LoopCalls`): the layer calls of the pass.
    """
    inputs: LayerInputs = calls.inputs
    takes_graphs = (
        parts is not None
        # inside of someone else's graph
        and not torch.compiler.is_compiling()
        # a growing cache would be compiled anew for every length, and an empty one is made in the first pass
        and (inputs.cache is None or is_fixed(inputs.cache))
        and calls.later_inputs is inputs
        # whose slots the parts of a pass count from 0
        and calls.backbone.slots is None
        and not any(name in inputs.kwargs for name in FOREIGN_CACHES)
        and not records_outputs()
    )
    return CompiledDepth(parts, calls) if parts is not None and takes_graphs else calls.backbone.depth


def choose_head(parts: CompiledParts | None, outputs: Any) -> Callable[..., torch.Tensor]:
    """Return the function that computes logits of the outputs of a pass: compiled if the model decodes on graphs.

    Args:
        parts (`CompiledParts`, *optional*): the compiled functions, if the model is compiled.
        outputs (`LoopedModelOutputWithPast`): the outputs.
    """
    if parts is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return compute_logits
    return parts.compute_logits if is_fixed(cache_of(outputs)) else compute_logits


def is_fixed(cache: Any) -> bool:
    """Return whether all layers of a cache have their memory, which does not grow."""
    if not isinstance(cache, Cache) or not cache.is_compileable or getattr(cache, "offloading", False):
        return False
    return all(getattr(layer, "is_initialized", False) for layer in cache.layers)


# The functions that are compiled. Their cache has the layers of their own calls alone, in order.


def run_prelude(
    backbone: Any, hidden_states: torch.Tensor, inputs: SharedInputs, layers: list[Any] | None
) -> torch.Tensor:
    """Run the prelude on the first layer's input `[B, T, D]`."""
    calls = backbone.depth.prelude_calls()
    return backbone.depth.run_prelude(hidden_states, call_runner(backbone, inputs, layers, calls))


def run_core(
    backbone: Any,
    state: torch.Tensor,
    encoded: torch.Tensor,
    inputs: SharedInputs,
    layers: list[Any] | None,
    num_loops: Any,
    update: torch.Tensor | None,
) -> torch.Tensor:
    """Run the core once on a state `[B, T, D]`, with what stands between loops.

    Args:
        backbone (`Backbone`): the backbone.
        state (`torch.Tensor` of shape `[B, T, D]`): the state.
        encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
        inputs (`SharedInputs`): the inputs that all layer calls share.
        layers (`list`, *optional*): the cache layers of the loop.
        num_loops (`torch.Tensor` or `int`): the number of loops of the pass, 1 if it changes nothing.
        update (`torch.Tensor` of shape `[1]`, *optional*): index of the loop's LoRA update.
    """
    run_call = call_runner(backbone, inputs, layers, backbone.depth.core_calls(0), update)
    return backbone.depth.run_loop(0, state, encoded, run_call, num_loops)


def run_coda(backbone: Any, state: torch.Tensor, inputs: SharedInputs, layers: list[Any] | None) -> torch.Tensor:
    """Run the coda on the state after the last loop `[B, T, D]`, and the final norm."""
    depth = backbone.depth
    return depth.finish(depth.run_coda(state, call_runner(backbone, inputs, layers, depth.coda_calls())))


def call_runner(
    backbone: Any, inputs: SharedInputs, layers: list[Any] | None, calls: list[Call], update: Any = None
) -> RunCall:
    """Return a function that runs the calls of one part, whose cache slots begin at 0."""
    cache = None if layers is None else Cache(layers=layers)
    layer_inputs = LayerInputs(
        inputs.position_ids, inputs.position_embeddings, inputs.masks, cache, inputs.use_cache, inputs.kwargs
    )

    def run_call(call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        # a graph knows its loop by the index of the loop's update alone
        own_call = Call(call.layer, call.slot - calls[0].slot, update)
        return backbone.run_call(own_call, hidden_states, layer_inputs)

    return run_call


__all__ = ["CompiledDepth", "CompiledParts", "GenerationParts", "choose_schedule"]
