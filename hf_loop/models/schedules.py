# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Depth schedules: which layer calls make one pass over a set of tokens, and which cache slot each call has.

A time schedule (plain causal, feedback blocks, sleep windows, puzzle segments) says which tokens are passed when and
supplies `run_call`, which runs one layer; a depth schedule says what happens between the calls. Slots are counted here
and nowhere else: caches, configurations, unrolling and cost models ask `calls`.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """One call of a layer.

    Args:
        layer (`int`): index of the layer in the backbone, which decides its module, layer type and mask.
        slot (`int`): index of the call's cache slot, which is also that of its memory or fast weights.
        loop (`int`, *optional*): loop of the call, from 0; `None` outside of a loop.
    """

    layer: int
    slot: int
    loop: int | None = None


# hidden states `[B, T, D]` after one layer call, from the call and those before it
RunCall = Callable[[Call, torch.Tensor], torch.Tensor]


def run_calls(hidden_states: torch.Tensor, run_call: RunCall, calls: Iterable[Call]) -> torch.Tensor:
    """Hidden states `[B, T, D]` after `calls`, one after the other."""
    for call in calls:
        hidden_states = run_call(call, hidden_states)
    return hidden_states


class Depth:
    """Every layer once, as in the decoders of transformers; the base of all depth schedules.

    A schedule is made where it is used and thrown away: it owns no module. Without a model it counts calls only.

    Args:
        num_layers (`int`): layers of the backbone.
        norm (`Callable`, *optional*): the backbone's final norm.
    """

    # the arguments of `run` and `calls`
    arguments: tuple[str, ...] = ()

    def __init__(self, num_layers: int, norm: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.num_layers = num_layers
        self.norm: Any = norm

    def calls(self) -> list[Call]:
        """All layer calls of one pass, in order."""
        return [Call(index, index) for index in range(self.num_layers)]

    def run(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """One pass over the tokens.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            run_call (`Callable`): runs one layer call.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`.
        """
        return run_calls(hidden_states, run_call, self.calls())

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the head reads of a pass's result: through the final norm, unless the pass ended with it."""
        return self.norm(hidden_states)


class LoopedDepth(Depth):
    """Prelude layers once, core layers `num_loops` times, coda layers once.

    Args:
        config (`LoopedConfig`): the schedule.
        model (`LoopedModel`, *optional*): what acts between the calls: injection, norm and map of the state.
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
    # the coda comes before the core so that its slots stay put when the loop count changes
    def prelude_calls(self) -> list[Call]:
        """The calls before the first loop."""
        return [Call(index, index) for index in range(self.num_prelude)]

    def core_calls(self, loop: int) -> list[Call]:
        """The calls of one loop, counted from 0."""
        first = self.num_prelude + self.num_coda + loop * self.num_core
        return [Call(self.num_prelude + index, first + index, loop) for index in range(self.num_core)]

    def coda_calls(self) -> list[Call]:
        """The calls after the last loop."""
        first = self.num_layers - self.num_coda
        return [Call(first + index, self.num_prelude + index) for index in range(self.num_coda)]

    def calls(self, num_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        core = [call for loop in range(num_loops) for call in self.core_calls(loop)]
        return [*self.prelude_calls(), *core, *self.coda_calls()]

    def run(
        self,
        hidden_states: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> torch.Tensor:
        encoded = run_calls(hidden_states, run_call, self.prelude_calls())
        state = self.model.make_initial_state(encoded)
        state = self.run_loops(state, encoded, run_call, num_loops, num_backprop_loops)
        return self.run_coda(state, run_call)

    def run_loops(
        self,
        state: torch.Tensor,
        encoded: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
        loop_states: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The core, `num_loops` times.

        Args:
            state (`torch.Tensor` of shape `[B, T, D]`): the state before the first loop.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
            run_call (`Callable`): runs one layer call.
            num_loops (`int`, *optional*): loops to run, the configuration's number if not given.
            num_backprop_loops (`int`, *optional*): how many of the last loops carry gradient, all if not given.
            loop_states (`list`, *optional*): takes the state after every loop.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`: the state after the last loop.
        """
        num_loops = self.config.num_loops if num_loops is None else num_loops
        is_damped = self.config.loop_update == "damped"
        for loop in range(num_loops):
            carries_gradient = num_backprop_loops is None or loop >= num_loops - num_backprop_loops
            with nullcontext() if carries_gradient else torch.no_grad():
                previous = state
                state = run_calls(self.model.injection(state, encoded), run_call, self.core_calls(loop))
                # with one loop the damped step is a whole one: not spelt as s + (f(s) - s), which would round
                if is_damped and num_loops > 1:
                    state = previous + (state - previous) / num_loops
                state = self.norm_loop(state)
            if loop_states is not None:
                loop_states.append(state)
        return state

    def norm_loop(self, state: torch.Tensor) -> torch.Tensor:
        """The norm at a loop's end, `[B, T, D]`."""
        loop_norm = self.config.loop_norm
        if loop_norm == "none":
            return state
        return self.model.loop_norm(state) if loop_norm == "own" else self.norm(state)

    def run_coda(self, state: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        """The coda over the state after a loop, `[B, T, D]`."""
        # CODEPATH: Huginn applies its final norm before the coda too; its retrofits do not
        if self.config.coda_norm:
            state = self.norm(state)
        # CODEPATH: Parcae maps the state before its coda
        if self.config.state_projection:
            state = self.model.state_projection(state)
        return run_calls(state, run_call, self.coda_calls())

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_normed = self.config.loop_norm == "final" and self.num_coda == 0 and not self.config.state_projection
        return hidden_states if is_normed else self.norm(hidden_states)


class HierarchicalDepth(Depth):
    """`num_loops` slow cycles, each of `low_cycles` calls of the fast stack and one of the slow stack.

    Args:
        config (`HierarchicalConfig`): the schedule.
        model (`HierarchicalStacks`, *optional*): makes the initial states and has the norm of a stack call.
        norm (`Callable`, *optional*): the backbone's final norm.
    """

    arguments = ("num_loops", "num_backprop_loops")

    def __init__(self, config: Any, model: Any = None, norm: Any = None):
        super().__init__(config.num_stack_layers, norm)
        self.config = config
        self.model = model
        # once: attributes of configurations are slow to read for every layer call of every token
        self.low_cycles, self.num_calls, self.stack_norm = config.low_cycles, config.num_calls, config.stack_norm
        self.first_high_layer = 0 if config.shared_stack else self.num_layers

    # slots: layer i of stack call c in cycle h -> (h * num_calls + c) * n + i; with two states the last call of a
    # cycle is the slow stack's. They grow at the end with the number of cycles
    def stack_calls(self, cycle: int, call: int) -> list[Call]:
        """The layer calls of one stack call, both numbers counted from 0."""
        first_layer = self.first_high_layer if call == self.low_cycles else 0
        first_slot = (cycle * self.num_calls + call) * self.num_layers
        return [Call(first_layer + index, first_slot + index, cycle) for index in range(self.num_layers)]

    def calls(self, num_loops: int | None = None) -> list[Call]:
        num_loops = self.config.num_loops if num_loops is None else num_loops
        return [
            layer_call
            for cycle in range(num_loops)
            for call in range(self.num_calls)
            for layer_call in self.stack_calls(cycle, call)
        ]

    def run(
        self,
        hidden_states: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> torch.Tensor:
        states = self.model.make_initial_states(hidden_states)
        return self.run_cycles(states, hidden_states, run_call, num_loops, num_backprop_loops)[0]

    def run_cycles(
        self,
        states: tuple[torch.Tensor, torch.Tensor | None],
        encoded: torch.Tensor,
        run_call: RunCall,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All slow cycles.

        Args:
            states (`tuple`): the slow and the fast state, each `[B, T, D]`; of one state, `None` for the second.
            encoded (`torch.Tensor` of shape `[B, T, D]`): the first layers' input.
            run_call (`Callable`): runs one layer call.
            num_loops (`int`, *optional*): slow cycles to run, the configuration's number if not given.
            num_backprop_loops (`int`, *optional*): how many of the last ones gradient may reach.

        Returns:
            `tuple`: the states after the last cycle.
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
                    if call == self.low_cycles:
                        high = self.run_stack(state, run_call, cycle, call)
                        continue
                    state = state + encoded.to(state.device) if is_injected else state
                    updated = self.run_stack(state, run_call, cycle, call)
                    high, low = (updated, None) if low is None else (high, updated)
        return high, low

    def run_stack(self, state: torch.Tensor, run_call: RunCall, cycle: int, call: int) -> torch.Tensor:
        """One stack call, `[B, T, D]`."""
        state = run_calls(state, run_call, self.stack_calls(cycle, call))
        if self.stack_norm == "weightless":
            return self.model.stack_norm(state)
        return self.norm(state) if self.stack_norm == "final" else state

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self.stack_norm == "final" else self.norm(hidden_states)


__all__ = ["Call", "Depth", "HierarchicalDepth", "LoopedDepth", "RunCall", "run_calls"]
