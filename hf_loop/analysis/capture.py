"""Every state of a forward pass, addressed by loop and layer.

Module hooks, and the tools built on them, cannot tell one loop from another. Here a state has the address of its layer
call: `(loop, layer)`, with `None` for the loop outside of loops; where a stack runs several times in a slow cycle of a
hierarchical model, its cache slot tells the calls apart.

    captured = capture(model, input_ids, num_loops=8)
    captured.state(loop=3, layer=1)     # [B, T, D]
    captured.loop_states                # the state after every loop

`captured.calls` is everything in the order of time: a feedback model runs every call once for every block, a sleep
model once for every window and again in every pass of sleep. `state` joins the blocks or windows as they were read;
the rows of a feedback memory are kept apart in `CapturedCall.memory`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..models.checks import check_positive_int
from ..models.evaluation_mode import evaluation_mode
from ..models.family import family_of
from ..models.schedules import Call
from .interventions import Intervention, check_interventions
from .places import Place
from .watching import CallEvent, watch_calls


@dataclass
class CapturedCall:
    """The result of one layer call.

    Args:
        call (`Call`): layer, cache slot and loop.
        place (`Place`): the block or window that it ran on.
        state (`torch.Tensor` of shape `[B, n, D]`): the layer's output at the tokens, after the fast-weight layer that
            follows the call, if any.
        memory (`torch.Tensor` of shape `[B, m, D]`, *optional*): its output at the rows of a feedback memory.
    """

    call: Call
    place: Place
    state: torch.Tensor
    memory: torch.Tensor | None = None


@dataclass
class Captured:
    """The states of one forward pass.

    Args:
        calls (`list[CapturedCall]`): all layer calls, in the order of time.
        loop_ends (`list[CapturedCall]`): the states after every loop, in the order of time: what the next loop starts
            from, after the update and the norm between loops; the slow state of a hierarchical model.
        loop_starts (`list[CapturedCall]`): of a looped core, the state before the first loop, of every block or
            window.
        logits (`torch.Tensor` of shape `[B, T, V]`, *optional*): the model's logits, if it has a head.
        is_token (`torch.BoolTensor` of shape `[B, T]`, *optional*): which positions are no padding; `None` if all are.
    """

    calls: list[CapturedCall] = field(default_factory=list)
    loop_ends: list[CapturedCall] = field(default_factory=list)
    loop_starts: list[CapturedCall] = field(default_factory=list)
    logits: torch.Tensor | None = None
    is_token: torch.Tensor | None = None

    def state(self, loop: int | None, layer: int, slot: int | None = None) -> torch.Tensor:
        """Return the state after a layer call at all tokens, `[B, T, D]`.

        Args:
            loop (`int`, *optional*): the loop or slow cycle, from 0; `None` for a layer outside of loops.
            layer (`int`): the layer in the backbone.
            slot (`int`, *optional*): the cache slot, where one layer runs several times in a loop.

        Raises:
            ValueError: if there is no such call, or there are several and no `slot` is given.
        """
        found = [item for item in self.calls if item.call[::2] == (layer, loop) and slot in (None, item.call.slot)]
        slots = sorted({item.call.slot for item in found})
        if len(slots) != 1:
            what = f"slots {', '.join(map(str, slots))}" if slots else "no such call"
            raise ValueError(f"layer {layer} in loop {loop} must be one call, got {what}")
        return _join(found)

    @cached_property
    def loop_states(self) -> list[torch.Tensor]:
        """The state after every loop at all tokens, each `[B, T, D]`; empty if the model has no loops."""
        num_loops = 1 + max((item.call.loop or 0 for item in self.loop_ends), default=-1)
        return [_join([item for item in self.loop_ends if item.call.loop == loop]) for loop in range(num_loops)]

    @cached_property
    def start_state(self) -> torch.Tensor | None:
        """The state before the first loop at all tokens `[B, T, D]`; `None` if the core is not looped."""
        return _join(self.loop_starts) if self.loop_starts else None

    def at(self, call: Call, place: Place) -> torch.Tensor:
        """Return the state of a layer call at its tokens, `[B, n, D]`, by the call and the place."""
        return self._by_address[call.slot, *place[:2]]

    def loop_end_at(self, loop: int, place: Place) -> torch.Tensor:
        """Return the state after a loop at the tokens of a place, `[B, n, D]`."""
        return self._ends_by_address[loop, *place[:2]]

    def tokens_of(self, states: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return the states `[N, D]` of the tokens among states `[B, n, D]` from the position `start` on: those of
        padding are of no input, and no statistic should have them."""
        if self.is_token is None:
            return states.flatten(0, 1)
        return states[self.is_token[:, start : start + states.shape[1]]]

    @cached_property
    def _by_address(self) -> dict[tuple[int, ...], torch.Tensor]:
        return {(item.call.slot, *item.place[:2]): item.state for item in self.calls}

    @cached_property
    def _ends_by_address(self) -> dict[tuple[Any, ...], torch.Tensor]:
        return {(item.call.loop, *item.place[:2]): item.state for item in self.loop_ends}


def _join(calls: list[CapturedCall]) -> torch.Tensor:
    """Join the states of a call over blocks or windows, as they were read, to `[B, T, D]`."""
    return torch.cat([item.state for item in calls if item.place.sleep_pass == 0], dim=1)


def model_inputs(model: Any, inputs: torch.Tensor | Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
    """Return the keyword arguments of a forward pass without a cache.

    Args:
        model (`PreTrainedModel`): the model.
        inputs (`torch.Tensor` or `Mapping`): token ids `[B, T]`, or keyword arguments with `input_ids` or
            `inputs_embeds`, as a tokenizer returns them.
        kwargs: further keyword arguments; those that are `None` are left out.

    Raises:
        ValueError: if the model is of no family, a model with a time schedule is given padding, or `num_loops` is no
            positive integer or given to a model without loops.
    """
    if family_of(model.config) is None:
        raise ValueError(f"model must be of a family of hf_loop, got {type(model).__name__}: use `retrofit`")
    if (num_loops := kwargs.get("num_loops")) is not None:
        if not model.config.has_loops:
            raise ValueError(
                f"`num_loops` must be None for a {model.config.model_type} model without loops, got {num_loops!r}"
            )
        kwargs["num_loops"] = check_positive_int("num_loops", num_loops)
    given = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
    mask = given.get("attention_mask")
    if model.config.kind == "time" and mask is not None:
        if not bool(torch.as_tensor(mask).all()):
            raise ValueError(
                f"`attention_mask` must have no padding for a {model.config.model_type} model: rows of different "
                "lengths have their blocks or windows at different places"
            )
        del given["attention_mask"]
    given |= {name: value for name, value in kwargs.items() if value is not None}
    on_device = {name: value.to(model.device) for name, value in given.items() if isinstance(value, torch.Tensor)}
    return {**given, **on_device, "use_cache": False}


def count_tokens(model: Any, inputs: Mapping[str, Any]) -> int:
    """Return the number of tokens of every row of keyword arguments for a forward pass.

    Those of a puzzle model's embedding of the puzzle, which come before the cells, are among them.
    """
    tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return tokens.shape[1] + (model.config.num_puzzle_tokens if model.config.kind == "puzzle" else 0)


def check_has_loops(model: Any) -> None:
    """Refuse a model without loops.

    Raises:
        ValueError: if it has none.
    """
    if not model.config.has_loops:
        raise ValueError(f"model must have loops, got a {model.config.model_type} model without")


def _is_token(mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    """Return which positions are no padding, `[B, T]`, from a mask of a tokenizer; `None` if all are."""
    if mask is None or mask.ndim != 2 or bool(mask.all()):
        return None
    # what a puzzle model puts before its cells is always read
    return torch.nn.functional.pad(mask.bool(), (num_tokens - mask.shape[1], 0), value=True)


def capture(
    model: Any,
    inputs: torch.Tensor | Mapping[str, Any],
    num_loops: int | None = None,
    num_sleep_passes: int | None = None,
    interventions: Sequence[Intervention] = (),
) -> Captured:
    """Run a model once, without a cache and without gradient, and keep the state after every layer call.

    Args:
        model (`PreTrainedModel`): a model of any family, with or without a head, that is not compiled.
        inputs (`torch.Tensor` or `Mapping`): token ids `[B, T]`, or keyword arguments as a tokenizer returns them.
            Only a model without a time schedule takes padding. A puzzle model runs one segment.
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        num_sleep_passes (`int`, *optional*): passes of a sleep model, by default its configuration's.
        interventions (`Sequence[Intervention]`, *optional*): changes of the states, made one after the other, see
            `patching.py`. The states are kept as they are after them.

    Returns:
        `Captured`: the states, on the model's device.

    Raises:
        ValueError: if a model with a time schedule is given padding, the model is compiled, it has no place for an
            intervention, or `num_loops` is no positive integer or given to a model without loops.
    """
    given = model_inputs(model, inputs, num_loops=num_loops, num_sleep_passes=num_sleep_passes)
    num_loops, num_tokens = given.get("num_loops"), count_tokens(model, given)
    captured = Captured(is_token=_is_token(given.get("attention_mask"), num_tokens))
    tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    check_interventions(interventions, model, (len(tokens), num_tokens), num_loops)

    def after_call(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        for intervention in interventions:
            state = intervention.after_call(event, state)
        place = event.place
        rows, parts = place.rows, [state[:, : place.num_lead], state[:, state.shape[1] - place.num_tail :]]
        memory = torch.cat(parts, dim=1) if place.num_lead or place.num_tail else None
        captured.calls.append(CapturedCall(event.call, place, state[:, rows], memory))
        return state

    def after_loop(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        for intervention in interventions:
            state = intervention.after_loop(event, state)
        captured.loop_ends.append(CapturedCall(event.call, event.place, state[:, event.place.rows]))
        if event.call.loop == 0 and event.loop_start is not None:
            start = event.loop_start[:, event.place.rows]
            captured.loop_starts.append(CapturedCall(event.call, event.place, start))
        return state

    def layers_from(loop: int) -> int:
        for intervention in interventions:
            loop = intervention.layers_from(loop)
        return loop

    watch = watch_calls(model, num_tokens, after_call, after_loop, num_loops, num_sleep_passes, layers_from)
    with evaluation_mode(model), watch:
        output = model(**given)
    captured.logits = getattr(output, "logits", None)
    return captured


__all__ = ["Captured", "CapturedCall", "capture"]
