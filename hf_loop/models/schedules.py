# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Depth schedules: the layer calls of one pass over tokens, and the cache slot of each call.

A time schedule (plain causal, feedback blocks, sleep windows, puzzle segments) decides which tokens are run when, and
supplies `run_call`, which runs one layer. A depth schedule decides what happens between the calls. Slots are numbered
only here: caches, configurations, unrolling and cost models ask `calls`.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """One call of a layer.

    Args:
        layer (`int`): index of the layer in the backbone, by which its module, layer type and mask are found.
        slot (`int`): index of the call's cache slot, and of its memory or fast weights.
        loop (`int`, *optional*): index of the loop, from 0; `None` outside of loops.
    """

    layer: int
    slot: int
    loop: int | None = None


# runs one layer call on hidden states `[B, T, D]` and returns those after it. Of decoders whose layers pass on more
# than that, these are states `[B, T, S * D]` of several vectors per token, see `block_states.py`
RunCall = Callable[[Call, torch.Tensor], torch.Tensor]


def run_calls(hidden_states: torch.Tensor, run_call: RunCall, calls: Iterable[Call]) -> torch.Tensor:
    """Run `calls` one after the other on hidden states `[B, T, D]`."""
    for call in calls:
        hidden_states = run_call(call, hidden_states)
    return hidden_states


class Depth:
    """Every layer once, as in transformers' decoders; the base class of all depth schedules.

    A schedule owns no module. One that is made without a model can only list its calls.

    Args:
        num_layers (`int`): number of layers of the backbone.
        norm (`Callable`, *optional*): the backbone's final norm.
    """

    # names of the further arguments of `run`; `calls` takes those that change the number of calls
    arguments: tuple[str, ...] = ()

    def __init__(self, num_layers: int, norm: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.num_layers = num_layers
        self.norm: Any = norm

    def calls(self) -> list[Call]:
        """List the layer calls of one pass, in order."""
        return [Call(index, index) for index in range(self.num_layers)]

    def trained_calls(self) -> list[Call]:
        """List those layer calls of one pass that gradient reaches, in order."""
        return self.calls()

    def calls_between(self) -> list[tuple[Any, bool]]:
        """List the modules that run between the layer calls of one pass, and whether gradient reaches each."""
        return []

    def calls_from_constants(self) -> list[Call]:
        """List those trained calls whose input carries no gradient, so that none is computed for it."""
        return []

    @property
    def ends_with_norm(self) -> bool:
        """Whether a pass ends with the final norm."""
        return False

    def run(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """Run one pass over the tokens.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            run_call (`Callable`): runs one layer call.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`: the result of the pass.
        """
        return run_calls(hidden_states, run_call, self.calls())

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the final norm to the result of a pass, unless the pass ended with it; the head reads the output."""
        return hidden_states if self.ends_with_norm else self.norm(hidden_states)


class LoopedDepth(Depth):
    """Prelude layers once, core layers `num_loops` times, coda layers once.

    Args:
        config (`LoopedConfig`): the schedule.
        model (`LoopedModel`, *optional*): the model, for the modules between the calls.
        norm (`Callable`, *optional*): the backbone's final norm.
    """

    arguments = ("num_loops", "num_backprop_loops")

    def __init__(self, config: Any, model: Any = None, norm: Any = None):
        super().__init__(config.decoder_config.num_hidden_layers, norm)
        self.config = config
        self.model = model
        self.num_prelude, self.num_coda = config.num_prelude_layers, config.num_coda_layers
        self.num_core = self.num_layers - self.num_prelude - self.num_coda

    # slots: prelude layer i -> i; coda layer j -> P + j; core layer l in loop r -> P + C + r * n + l.
    # the coda comes before the core so that its slots do not change with the number of loops
    def prelude_calls(self) -> list[Call]:
        """List the calls before the first loop."""
        return [Call(index, index) for index in range(self.num_prelude)]

    def core_calls(self, loop: int) -> list[Call]:
        """List the calls of one loop, counted from 0."""
        first = self.first_slot(loop)
        return [Call(self.num_prelude + index, first + index, loop) for index in range(self.num_core)]

    def first_slot(self, loop: int) -> int:
        """Return the first cache slot of a loop, counted from 0."""
        return self.num_prelude + self.num_coda + loop * self.num_core

    def coda_calls(self) -> list[Call]:
        """List the calls after the last loop."""
        first = self.num_layers - self.num_coda
        return [Call(first + index, self.num_prelude + index) for index in range(self.num_coda)]

    def calls(self, num_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        core = [call for loop in range(num_loops) for call in self.core_calls(loop)]
        return [*self.prelude_calls(), *core, *self.coda_calls()]

    def trained_calls(self, num_loops: int | None = None, num_backprop_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        first = 0 if num_backprop_loops is None else max(0, num_loops - num_backprop_loops)
        core = [call for loop in range(first, num_loops) for call in self.core_calls(loop)]
        # gradient reaches the prelude through the first loop, or through the injection in any
        has_prelude = first == 0 or self.config.injection != "none"
        return [*(self.prelude_calls() if has_prelude else []), *core, *self.coda_calls()]

    def calls_between(
        self, num_loops: int | None = None, num_backprop_loops: int | None = None
    ) -> list[tuple[Any, bool]]:
        config, model = self.config, self.model
        num_loops = config.num_loops if num_loops is None else num_loops
        first = 0 if num_backprop_loops is None else num_loops - num_backprop_loops
        in_loop = [model.injection]
        if config.loop_norm != "none":
            in_loop.append(self.norm if config.loop_norm == "final" else model.loop_norm)
        return [
            *((module, loop >= first) for loop in range(num_loops) for module in in_loop),
            *((module, True) for module in self.modules_before_coda()),
        ]

    def calls_from_constants(self, num_loops: int | None = None, num_backprop_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        first = 0 if num_backprop_loops is None else max(0, num_loops - num_backprop_loops)
        # an injection gives every loop an input with gradient
        return self.core_calls(first)[:1] if first > 0 and self.config.injection == "none" else []

    def modules_before_coda(self) -> list[Any]:
        """List the modules between the last loop and the coda."""
        before_coda = [self.norm] if self.config.coda_norm else []
        return [*before_coda, self.model.state_projection] if self.config.state_projection else before_coda

    @property
    def ends_with_norm(self) -> bool:
        return self.config.loop_norm == "final" and self.num_coda == 0 and not self.config.state_projection

    def run(
        self,
        hidden_states: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> torch.Tensor:
        encoded = self.run_prelude(hidden_states, run_call)
        state = self.model.make_initial_state(encoded)
        state = self.run_loops(state, encoded, run_call, num_loops, num_backprop_loops)
        return self.run_coda(state, run_call)

    def run_prelude(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """Run the prelude on the first layer's input, `[B, T, D]`."""
        return run_calls(hidden_states, run_call, self.prelude_calls())

    def run_loops(
        self,
        state: torch.Tensor,
        encoded: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
        loop_states: list[torch.Tensor] | None = None,
        first_loop: int = 0,
    ) -> torch.Tensor:
        """Run the core, up to and including loop `num_loops`.

        Args:
            state (`torch.Tensor` of shape `[B, T, D]`): the state before the first of these loops.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
            run_call (`Callable`): runs one layer call.
            num_loops (`int`, *optional*): number of loops, by default the configuration's.
            num_backprop_loops (`int`, *optional*): number of last loops with gradient, by default all.
            loop_states (`list`, *optional*): a list to which the state after every loop is appended.
            first_loop (`int`, *optional*, defaults to 0): number of loops that `state` has been through already.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`: the state after the last loop.
        """
        num_loops = self.config.num_loops if num_loops is None else num_loops
        for loop in range(first_loop, num_loops):
            carries_gradient = num_backprop_loops is None or loop >= num_loops - num_backprop_loops
            with nullcontext() if carries_gradient else torch.no_grad():
                state = self.run_loop(loop, state, encoded, run_call, num_loops)
            if loop_states is not None:
                loop_states.append(state)
        return state

    def run_loop(
        self, loop: int, state: torch.Tensor, encoded: torch.Tensor, run_call: RunCall, num_loops: int
    ) -> torch.Tensor:
        """Run the core once, with what stands between loops.

        Args:
            loop (`int`): index of the loop, from 0.
            state (`torch.Tensor` of shape `[B, T, D]`): the state before this loop.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
            run_call (`Callable`): runs one layer call.
            num_loops (`int`): number of loops of the whole pass.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`: the state after this loop.
        """
        previous = state
        state = run_calls(self.model.injection(state, encoded), run_call, self.core_calls(loop))
        return self.end_loop(previous, state, num_loops)

    def end_loop(self, previous: torch.Tensor, state: torch.Tensor, num_loops: int) -> torch.Tensor:
        """Compute the state after a loop from the one before it and the core's output, each `[B, T, D]`."""
        share = self.update_share(num_loops)
        # of the whole update this is f(s): computing s + (f(s) - s) would add rounding
        if isinstance(share, torch.Tensor) or share < 1:
            state = previous + share * (state - previous)
        return self.norm_loop(state)

    def update_share(self, num_loops: int) -> float:
        """Return the share of the core's update that every loop of a pass of `num_loops` loops keeps."""
        if self.config.loop_update == "replace":
            return 1.0
        return 1 / num_loops if self.config.loop_step is None else self.config.loop_step

    def norm_loop(self, state: torch.Tensor) -> torch.Tensor:
        """Apply the norm at the end of a loop, `[B, T, D]`."""
        loop_norm = self.config.loop_norm
        if loop_norm == "none":
            return state
        return self.norm(state) if loop_norm == "final" else self.model.loop_norm(state)

    def run_coda(self, state: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """Run the coda on the state after a loop, `[B, T, D]`."""
        # CODEPATH: Huginn applies its final norm before the coda too; its retrofits do not
        if self.config.coda_norm:
            state = self.norm(state)
        # CODEPATH: Parcae maps the state before its coda
        if self.config.state_projection:
            state = self.model.state_projection(state)
        return run_calls(state, run_call, self.coda_calls())


class HierarchicalDepth(Depth):
    """Prelude layers once, `num_loops` slow cycles, each of `low_cycles` calls of the fast stack and one of the slow
    stack, and coda layers once.

    Args:
        config (`HierarchicalConfig`): the schedule.
        model (`HierarchicalStacks`, *optional*): the model, for the initial states and the norm of a stack call.
        norm (`Callable`, *optional*): the backbone's final norm.
    """

    arguments = ("num_loops", "num_backprop_loops")

    def __init__(self, config: Any, model: Any = None, norm: Any = None):
        super().__init__(config.num_stack_layers, norm)
        self.config = config
        self.model = model
        # read once: reading attributes of configurations in every layer call is slow
        self.low_cycles, self.num_calls, self.stack_norm = config.low_cycles, config.num_calls, config.stack_norm
        self.num_prelude, self.num_coda = config.num_prelude_layers, config.num_coda_layers
        self.injects_always = config.injection == "diagonal"
        self.first_high_layer = self.num_prelude + (0 if config.shared_stack else self.num_layers)

    def prelude_calls(self) -> list[Call]:
        """List the calls before the first cycle."""
        return [Call(index, index) for index in range(self.num_prelude)]

    def coda_calls(self) -> list[Call]:
        """List the calls after the last cycle."""
        first = self.first_high_layer + self.num_layers
        return [Call(first + index, self.num_prelude + index) for index in range(self.num_coda)]

    # slots: prelude layer i -> i; coda layer j -> P + j; layer i of repeat t of stack call c in cycle h ->
    # P + C + ((h * num_calls + c) * repeats + t) * n + i, so that more cycles only add slots at the end; with two
    # states the last call of a cycle is the slow stack's
    def stack_calls(self, cycle: int, call: int) -> list[Call]:
        """List the layer calls of one stack call, with both indices from 0."""
        first_layer = self.first_high_layer if call == self.low_cycles else self.num_prelude
        num_layer_calls = self.num_layers * self.config.stack_repeats
        first_slot = self.num_prelude + self.num_coda + (cycle * self.num_calls + call) * num_layer_calls
        return [
            Call(first_layer + index % self.num_layers, first_slot + index, cycle) for index in range(num_layer_calls)
        ]

    def calls(self, num_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        inner = [
            layer_call
            for cycle in range(num_loops)
            for call in range(self.num_calls)
            for layer_call in self.stack_calls(cycle, call)
        ]
        return [*self.prelude_calls(), *inner, *self.coda_calls()]

    def trained_calls(self, num_loops: int | None = None, num_backprop_loops: int | None = None) -> list[Call]:
        stack_calls = self.stack_calls_with_gradient(num_loops, num_backprop_loops)
        inner = [call for at, is_trained in stack_calls if is_trained for call in self.stack_calls(*at)]
        # gradient reaches the prelude through an injection, or through the slow state from its start
        has_prelude = self.config.injection != "none" or all(
            is_trained for (_, call), is_trained in stack_calls if call == self.num_calls - 1
        )
        return [*(self.prelude_calls() if has_prelude else []), *inner, *self.coda_calls()]

    def calls_between(
        self, num_loops: int | None = None, num_backprop_loops: int | None = None
    ) -> list[tuple[Any, bool]]:
        before = [self.model.stack_injection] if self.injects_always else []
        around = [*before, self.norm] if self.stack_norm == "final" else before
        stack_calls = self.stack_calls_with_gradient(num_loops, num_backprop_loops)
        return [(module, is_trained) for _, is_trained in stack_calls for module in around]

    def calls_from_constants(self, num_loops: int | None = None, num_backprop_loops: int | None = None) -> list[Call]:
        found = []
        is_injected, has_two = self.config.injection == "add", self.num_calls > self.low_cycles
        if self.injects_always:
            return []
        high, low = self.config.state_init in ("input", "sine_normal"), False
        for (cycle, call), is_trained in self.stack_calls_with_gradient(num_loops, num_backprop_loops):
            is_high = not has_two or call == self.low_cycles
            if is_trained and not (high or low or (is_injected and call < self.low_cycles)):
                found += self.stack_calls(cycle, call)[:1]
            high, low = (is_trained, low) if is_high else (high, is_trained)
        return found

    def stack_calls_with_gradient(
        self, num_loops: int | None, num_backprop_loops: int | None
    ) -> list[tuple[tuple[int, int], bool]]:
        """List the stack calls as `(cycle, call)`, and whether each carries gradient."""
        num_loops = self.config.num_loops if num_loops is None else num_loops
        return [
            ((cycle, call), self.config.carries_gradient(num_loops, cycle, call, num_backprop_loops))
            for cycle in range(num_loops)
            for call in range(self.num_calls)
        ]

    @property
    def ends_with_norm(self) -> bool:
        return self.stack_norm == "final" and self.num_coda == 0

    def run(
        self,
        hidden_states: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> torch.Tensor:
        encoded = self.run_prelude(hidden_states, run_call)
        states = self.model.make_initial_states(encoded)
        high, _ = self.run_cycles(states, encoded, run_call, num_loops, num_backprop_loops)
        return self.run_coda(high, run_call)

    def run_prelude(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """Run the prelude on the first layer's input, `[B, T, D]`."""
        return run_calls(hidden_states, run_call, self.prelude_calls())

    def run_coda(self, state: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """Run the coda on the slow state after the last cycle, `[B, T, D]`."""
        return run_calls(state, run_call, self.coda_calls())

    def run_cycles(
        self,
        states: tuple[torch.Tensor, torch.Tensor | None],
        encoded: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run all slow cycles.

        Args:
            states (`tuple[torch.Tensor, torch.Tensor | None]`): the slow and the fast state, each `[B, T, D]`; the
                second is `None` for a single state.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the first stack's input.
            run_call (`Callable`): runs one layer call.
            num_loops (`int`, *optional*): number of slow cycles, by default the configuration's.
            num_backprop_loops (`int`, *optional*): number of last slow cycles that gradient may reach, by default all.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: the states after the last cycle.
        """
        config = self.config
        num_loops = config.num_loops if num_loops is None else num_loops
        is_injected = config.injection == "add"
        high, low = states
        for cycle in range(num_loops):
            for call in range(self.num_calls):
                carries_gradient = config.carries_gradient(num_loops, cycle, call, num_backprop_loops)
                with nullcontext() if carries_gradient else torch.no_grad():
                    # the stacks may be on two devices
                    state = high if low is None else low.to(high.device) + high
                    # CODEPATH: LoopedLM injects into both stacks, HRM adds to the input of the fast one
                    if self.injects_always:
                        state = self.model.stack_injection(state, encoded.to(state.device))
                    if call == self.low_cycles:
                        high = self.run_stack(state, run_call, cycle, call)
                        continue
                    state = state + encoded.to(state.device) if is_injected else state
                    updated = self.run_stack(state, run_call, cycle, call)
                    high, low = (updated, None) if low is None else (high, updated)
        return high, low

    def run_stack(self, state: torch.Tensor, run_call: RunCall, cycle: int, call: int) -> torch.Tensor:
        """Run one stack call on a state `[B, T, D]`."""
        return self.norm_stack(run_calls(state, run_call, self.stack_calls(cycle, call)))

    def norm_stack(self, state: torch.Tensor) -> torch.Tensor:
        """Apply the norm at the end of a stack call, `[B, T, D]`."""
        if self.stack_norm == "weightless":
            return self.model.stack_norm(state)
        return self.norm(state) if self.stack_norm == "final" else state


__all__ = ["Call", "Depth", "HierarchicalDepth", "LoopedDepth", "RunCall", "run_calls"]
