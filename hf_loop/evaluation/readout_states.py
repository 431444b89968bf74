"""Runs the loops of a model in another order or number, and returns the states that its head reads.

The controls of a model of R loops, as in the Depth Control Protocol (https://huggingface.co/papers/2609.19934):

    prefix(k)   loops 1 to k: the naive cut
    repeat(k)   loops 1 to k, then loop k again on the state it has made, until R loops have run
    suffix(k)   the last k loops only, on the first state
    frozen(k)   loops 1 to k, then what loop k has added to the state is added again, R - k times (not of the paper)

A loop keeps its own index wherever it runs, and with it whatever is its own, which in this library is a low-rank
update of the weights (`loop_lora_rank`). Loops that share all weights differ through the state alone: running loop k
again *is* loop k + 1, so that repeat(k) is the whole model and suffix(k) is prefix(k), and the protocol has no such
control for them. For these `frozen(k)` tells what the model loses if nothing new is computed after loop k and the
state moves on as it last did.

A loop keeps its share of a damped update, too: prefix(k) of a model with `loop_update="damped"` takes steps of 1/R,
where `num_loops=k` would take steps of 1/k.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from ..models import family_of
from ..models.adapters import refuse_adapter
from ..models.modeling_recurrent import ForwardPass, ModelInputs


Control = Literal["prefix", "repeat", "suffix", "frozen"]
# a slow and a fast state, or one alone
State = tuple[torch.Tensor, ...]


class Plan(NamedTuple):
    """A control at one depth.

    Args:
        control (`str`): `"prefix"`, `"repeat"`, `"suffix"` or `"frozen"`.
        loops (`int`): k, from 1 to the loops of the whole model.
    """

    control: Control
    loops: int

    def order(self, num_loops: int) -> list[int]:
        """List the loops that run, by their index from 0, in a model of `num_loops`."""
        if self.control == "suffix":
            return list(range(num_loops - self.loops, num_loops))
        repeats = num_loops - self.loops if self.control == "repeat" else 0
        return [*range(self.loops), *[self.loops - 1] * repeats]


class PlannedLoops:
    """Runs a causal language model by plans instead of its own schedule, without a cache.

    Args:
        model (`PreTrainedModel`): a looped or hierarchical causal language model over a decoder.
        num_loops (`int`): R, the loops of the whole model.

    Raises:
        ValueError: if the model is another, has an adapter or is compiled.
    """

    def __init__(self, model: Any, num_loops: int):
        refuse_adapter(model, "its depth is controlled")
        family = family_of(model.config)
        name = type(model).__name__ if family is None else f"a {family.name} model"
        is_known = family is not None and family.name in ("looped", "hierarchical") and model.can_generate()
        if not is_known:
            raise ValueError(f"controls of depth need a looped or hierarchical causal language model, got {name}")
        self.headless: Any = model.base_model
        if getattr(self.headless, "parts", None) is not None:
            raise ValueError("controls of depth cannot run a compiled model; load the model again")
        self.model, self.num_loops = model, num_loops
        self.runner = _Looped if family.name == "looped" else _Cycles

    @property
    def shares_loops(self) -> bool:
        """Whether all loops compute the same function of the state."""
        return len({self.kind(loop) for loop in range(self.num_loops)}) == 1

    def kind(self, loop: int) -> int | None:
        """Return the index of the weights that are a loop's own; loops of one kind are the same function."""
        loop_lora = getattr(self.headless, "loop_lora", None)
        return 0 if loop_lora is None else loop_lora.update_index(loop)

    def states(self, batch: Mapping[str, torch.Tensor], plans: Sequence[Plan]) -> dict[Plan, torch.Tensor]:
        """Return what the head reads under each plan, `[B, T, D]`.

        What two plans have in common runs once.

        Args:
            batch (`Mapping[str, torch.Tensor]`): `input_ids` and, where there is padding, `attention_mask`.
            plans (`Sequence[Plan]`): the plans.
        """
        mask = batch.get("attention_mask")
        inputs = ModelInputs(batch["input_ids"], mask, None, None, None, False)
        depth = self.headless.depth_arguments(num_loops=self.num_loops)
        forward_pass = self.headless.start_pass(inputs, depth, makes_cache=False)
        runner = self.runner(self.headless, inputs, forward_pass)
        # by the kinds of the loops that were run
        known: dict[tuple[int | None, ...], State] = {(): runner.start()}
        read: dict[tuple[int | None, ...], torch.Tensor] = {}
        found: dict[Plan, torch.Tensor] = {}
        orders = {plan: plan.order(self.num_loops) for plan in plans}
        frozen = [plan for plan in plans if plan.control == "frozen"]
        targets = [*orders.values(), *(orders[plan][:-1] for plan in frozen)]
        for order in sorted(targets, key=len):
            self._run(runner, order, known)
        for plan, order in orders.items():
            key = self._key(order)
            if plan.control == "frozen" and plan.loops < self.num_loops:
                state, previous = known[key], known[key[:-1]]
                found[plan] = runner.read(runner.continued(state, previous, self.num_loops - plan.loops))
                continue
            if key not in read:
                read[key] = runner.read(known[key])
            found[plan] = read[key]
        return found

    def _key(self, order: Sequence[int]) -> tuple[int | None, ...]:
        return tuple(self.kind(loop) for loop in order)

    def _run(self, runner: Any, order: list[int], known: dict[tuple[int | None, ...], State]) -> None:
        key = self._key(order)
        done = next(length for length in range(len(key), -1, -1) if key[:length] in known)
        state = known[key[:done]]
        for loop in order[done:]:
            state = runner.step(loop, state, self.num_loops)
        known[key] = state


class _Looped:
    """Steps of a looped model; arguments as of [`PlannedLoops.states`]."""

    def __init__(self, headless: Any, inputs: ModelInputs, forward_pass: ForwardPass):
        self.headless, self.inputs, self.forward_pass = headless, inputs, forward_pass
        self.schedule: Any = forward_pass.backbone.depth
        self.run_call = headless.layer_calls(forward_pass, inputs.attention_mask, None).run_call

    def start(self) -> State:
        """Run the prelude and return the state before the first loop."""
        self.encoded = self.schedule.run_prelude(self.forward_pass.hidden_states, self.run_call)
        return (self.headless.first_state(self.encoded, self.inputs, self.forward_pass.inputs.position_ids),)

    def step(self, loop: int, state: State, num_loops: int) -> State:
        """Run one loop."""
        return (self.schedule.run_loop(loop, state[0], self.encoded, self.run_call, num_loops),)

    def continued(self, state: State, previous: State, count: int) -> State:
        """Add the last step `count` times more, with the norm that ends a loop."""
        (moved,), (before,) = state, previous
        step = moved - before
        for _ in range(count):
            moved = self.schedule.norm_loop(moved + step)
        return (moved,)

    def read(self, state: State) -> torch.Tensor:
        """Run the coda and the final norm."""
        return self.schedule.finish(self.schedule.run_coda(state[0], self.run_call))


class _Cycles:
    """Steps of a hierarchical model; arguments as of [`PlannedLoops.states`]."""

    def __init__(self, headless: Any, inputs: ModelInputs, forward_pass: ForwardPass):
        self.headless, self.inputs, self.forward_pass = headless, inputs, forward_pass
        self.schedule: Any = forward_pass.backbone.depth

    def start(self) -> State:
        """Run the prelude and return the states before the first cycle."""
        self.encoded = self.schedule.run_prelude(self.forward_pass.hidden_states, self.forward_pass.run_call)
        return self.headless.first_states(self.encoded, self.inputs, self.forward_pass.inputs.position_ids)

    def step(self, loop: int, state: State, num_loops: int) -> State:
        """Run one slow cycle; cycles have nothing of their own."""
        return self.schedule.run_cycles(state, self.encoded, self.forward_pass.run_call, num_loops=1)

    def continued(self, state: State, previous: State, count: int) -> State:
        """Add the last step `count` times more, with the norm that ends a stack call."""
        moved: list[Any] = list(state)
        steps = [None if now is None else now - before for now, before in zip(state, previous, strict=True)]
        for _ in range(count):
            moved = [None if now is None else self._norm(now + step) for now, step in zip(moved, steps, strict=True)]
        return tuple(moved)

    def _norm(self, state: torch.Tensor) -> torch.Tensor:
        if self.schedule.stack_norm == "weightless":
            return self.headless.stack_norm(state)
        return self.schedule.norm(state) if self.schedule.stack_norm == "final" else state

    def read(self, state: State) -> torch.Tensor:
        """Run the coda and the final norm on the slow state."""
        return self.schedule.finish(self.schedule.run_coda(state[0], self.forward_pass.run_call))
