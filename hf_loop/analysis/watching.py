"""Calls a function after every layer call of a forward pass, and after every loop, which may change the state there.

This is `hook_calls` with what it does not tell: the block or window, the state before a loop (before the injection)
and after it (after the norm between loops), and the fast-weight layers that a sleep model inserts after a call.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..models.backbone import Backbone
from ..models.call_hooks import hook_calls
from ..models.schedules import Call
from .places import CallClock, Place


@dataclass(frozen=True)
class CallEvent:
    """A layer call that has just run.

    Args:
        call (`Call`): the call; its loop is `None` outside of loops.
        place (`Place`): the block or window that it ran on.
        before (`torch.Tensor` of shape `[B, R, D]`): the layer's input. The rows are those of the tokens, in a
            feedback model with those of the memory around them, see [`Place`].
        loop_start (`torch.Tensor` of shape `[B, R, D]`, *optional*): in a looped core, the state before the loop.
        ends_loop (`bool`): whether the call is the last of its loop.
    """

    call: Call
    place: Place
    before: torch.Tensor
    loop_start: torch.Tensor | None
    ends_loop: bool


# takes a state `[B, R, D]` and returns the one to go on with
Change = Callable[[CallEvent, torch.Tensor], torch.Tensor]


def keep(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
    """Return the state as it is."""
    return state


class Watch:
    """What happens at the calls of one forward pass, see [`watch_calls`]."""

    def __init__(
        self,
        model: Any,
        clock: CallClock,
        num_loops: int | None,
        after_call: Change,
        after_loop: Change,
        layers_from: Callable[[int], int],
    ):
        self.backbone = Backbone(model.base_model)
        self.depth: Any = self.backbone.depth
        self.clock, self.after_call, self.after_loop = clock, after_call, after_loop
        self.layers_from = layers_from
        self.num_loops = model.config.num_loops if num_loops is None and model.config.has_loops else num_loops
        self.last_slots = {call.loop: call.slot for call in clock.calls if call.loop is not None}
        config = model.config
        is_sleep = config.model_type == "sleep_lm"
        self.inserted = {call.slot for call in config.inserted_calls(clock.calls)} if is_sleep else set()
        self.loop_start: torch.Tensor | None = None
        # what waits for the module that follows a call: a fast-weight layer, or the norm at the end of a loop
        self.waits_for_layer: CallEvent | None = None
        self.waits_for_norm: CallEvent | None = None

    def run_call(self, call: Call, layer: Any, hidden_states: torch.Tensor, run_layer: Any) -> torch.Tensor:
        """The hook of `hook_calls`."""
        if call.loop is not None and (source := self.layers_from(call.loop)) != call.loop:
            layer = self.backbone.layer_of(call._replace(loop=source))
        state = run_layer(layer, hidden_states)
        start = self.loop_start if call.loop is not None else None
        ends_loop = self.last_slots.get(call.loop) == call.slot
        event = CallEvent(call, self.clock.place(call), hidden_states, start, ends_loop)
        if call.slot in self.inserted:
            self.waits_for_layer = event
            return state
        return self.end_call(event, state)

    def end_call(self, event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        """Handle the state after a call `[B, R, D]`, its fast-weight layer included."""
        state = self.after_call(event, state)
        if not event.ends_loop:
            return state
        if self.end_norm is not None:
            self.waits_for_norm = event
            return state
        share = getattr(self.depth, "update_share", lambda num_loops: 1.0)(self.num_loops)
        if share == 1:
            return self.after_loop(event, state)
        # the schedule moves the state by this share only: give it what leads to the state that is wanted
        start: Any = event.loop_start
        end = start + share * (state - start)
        changed = self.after_loop(event, end)
        return state if changed is end else start + (changed - start) / share

    @property
    def end_norm(self) -> Any:
        """The norm at the end of a loop, `None` if there is none."""
        model = self.depth.model
        is_looped = hasattr(model.config, "loop_norm")
        kind = model.config.loop_norm if is_looped else model.config.stack_norm
        if kind in ("none", "final"):
            return None if kind == "none" else self.backbone.final_norm
        return model.loop_norm if is_looped else model.stack_norm

    def on_injection(self, module: Any, inputs: Any) -> None:
        """Keep the state before a loop."""
        self.loop_start = inputs[0]

    def on_inserted_layer(self, module: Any, inputs: Any, output: Any) -> Any:
        """Handle the state after a fast-weight layer."""
        event: Any = self.waits_for_layer
        self.waits_for_layer = None
        return (self.end_call(event, output[0]), *output[1:])

    def on_norm(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Handle the state after a loop, where it is the norm's output."""
        event, self.waits_for_norm = self.waits_for_norm, None
        return output if event is None else self.after_loop(event, output)


@contextmanager
def watch_calls(
    model: Any,
    num_tokens: int,
    after_call: Change = keep,
    after_loop: Change = keep,
    num_loops: int | None = None,
    num_sleep_passes: int | None = None,
    layers_from: Callable[[int], int] = int,
) -> Generator[None]:
    """Call functions at every layer call of the one forward pass inside the `with` block.

    The pass must have no cache and no early exits, and rows of equal length without padding if the model has a time
    schedule. A feedback or sleep model runs every block or window through all loops before the next.

    Args:
        model (`PreTrainedModel`): a model of any family, with or without a head, that is not compiled.
        num_tokens (`int`): tokens of every row of the batch.
        after_call (`Callable`, *optional*): takes a [`CallEvent`] and the state after the call `[B, R, D]`, and
            returns the one to go on with.
        after_loop (`Callable`, *optional*): the same with the state after a loop, as the next loop gets it: after the
            update and the norm at its end. In a hierarchical model it is the slow state after a slow cycle.
        num_loops (`int`, *optional*): number of loops of the pass, by default that of the configuration.
        num_sleep_passes (`int`, *optional*): passes of a sleep model, by default its configuration's.
        layers_from (`Callable`, *optional*): takes a loop and returns the one whose layers run in it, for a model
            with an update per loop; by default its own.

    Raises:
        ValueError: as [`hook_calls`] does.
    """
    clock = CallClock(model, num_tokens, num_loops, num_sleep_passes)
    watch = Watch(model, clock, num_loops, after_call, after_loop, layers_from)
    depth_model = watch.depth.model if watch.num_loops is not None else None
    with ExitStack() as stack:
        stack.enter_context(hook_calls(model, watch.run_call))

        def remove_later(hook: Any) -> None:
            stack.callback(hook.remove)

        if hasattr(depth_model, "injection"):
            remove_later(depth_model.injection.register_forward_pre_hook(watch.on_injection))
        if depth_model is not None and watch.end_norm is not None:
            remove_later(watch.end_norm.register_forward_hook(watch.on_norm))
        for layer in getattr(model.base_model, "memory_layers", []):
            remove_later(layer.register_forward_hook(watch.on_inserted_layer))
        yield


__all__ = ["CallEvent", "Change", "watch_calls"]
