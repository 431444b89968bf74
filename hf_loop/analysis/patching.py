"""Interventions on the loops of a model: patch, ablate, skip, freeze, and the effect of patching every loop and token.

    other = capture(model, other_ids)
    logits = run_patched(model, input_ids, [patch(other, loop=2, positions=[7])])
    logits = run_patched(model, input_ids, [skip(loop=1)])
    table = effect_table(model, clean_ids, corrupted_ids)

A patch of one loop may be undone by the next, which reads the input again: `remaining=True` patches all loops from one
on, as https://huggingface.co/papers/2609.01924 found necessary for Ouro. `capture(..., interventions=...)` returns the
states, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .capture import Captured, CapturedCall, capture, check_has_loops
from .interventions import Intervention, Swap
from .watching import CallEvent


def run_patched(
    model: Any,
    inputs: torch.Tensor | Mapping[str, Any],
    interventions: Sequence[Intervention],
    num_loops: int | None = None,
    num_sleep_passes: int | None = None,
) -> torch.Tensor:
    """Run a model with interventions and return its logits `[B, T, V]`; arguments as in [`capture`].

    Raises:
        ValueError: as [`capture`] does, or if the model has no head.
    """
    logits = capture(model, inputs, num_loops, num_sleep_passes, interventions).logits
    if logits is None:
        raise ValueError(f"model must have a language-model head, got {type(model).__name__}")
    return logits


def patch(source: Captured, loop: int | None = None, layer: int | None = None, **where: Any) -> Intervention:
    """Replace states by those of another run at the same address.

    Args:
        source (`Captured`): the other run, with one row or as many as this one, and as many tokens.
        loop (`int`, *optional*): the loop, from 0; `None` for a layer outside of loops.
        layer (`int`, *optional*): the layer, by default the state after the loop.
        where: `slot`, `remaining` and `positions` as in [`Intervention`].
    """

    def replace(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        found = _state_at(source, event, layer)
        if found.shape[1] != state.shape[1]:
            raise ValueError(f"the run to patch from must have as many tokens, got {found.shape[1]}, {state.shape[1]}")
        if len(found) not in (1, len(state)):
            raise ValueError(f"the run to patch from must have 1 or {len(state)} rows, got {len(found)}")
        return found

    return Intervention(replace, loop, layer, **where)


def ablate(
    kind: Literal["zero", "mean", "resample"],
    loop: int | None = None,
    layer: int | None = None,
    source: Captured | None = None,
    seed: int = 0,
    **where: Any,
) -> Intervention:
    """Replace states by something without their content.

    Args:
        kind (`str`): `"zero"`; `"mean"`, the mean of the state at this address over the rows and tokens of `source`;
            or `"resample"`, for every token the state of a row and token of `source` drawn at random. Padding of
            `source` is in neither.
        loop (`int`, *optional*): the loop, from 0; `None` for a layer outside of loops.
        layer (`int`, *optional*): the layer, by default the state after the loop.
        source (`Captured`, *optional*): a run on other inputs, for the last two kinds.
        seed (`int`, *optional*, defaults to 0): seed of `"resample"`.
        where: `slot`, `remaining` and `positions` as in [`Intervention`].

    Raises:
        ValueError: if there is no such kind, or `source` is not given where it is needed.
    """
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f"`kind` must be zero, mean or resample, got {kind!r}")
    if (source is None) != (kind == "zero"):
        raise ValueError(f"`source` must be a captured run for kind mean or resample only, got kind={kind!r}")

    def replace(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        if source is None:
            return torch.zeros_like(state)
        # of all blocks or windows: those of this run may be others
        known = source.loop_ends if layer is None else source.calls
        same = [item for item in known if _is_same(item, event, layer)]
        if not same:
            raise ValueError(f"`source` must have a state of {event.call}, it has none; was it run with fewer loops?")
        states = torch.cat([source.tokens_of(item.state, item.place.start) for item in same])
        if kind == "mean":
            return states.mean(dim=0)[None, None]
        # seeded by the address, so that two loops do not get the same states
        generator = torch.Generator().manual_seed(hash((seed, event.call.slot, *event.place[:2])))
        drawn = torch.randint(len(states), state.shape[:2], generator=generator)
        return states[drawn.to(states.device)]

    return Intervention(replace, loop, layer, **where)


def skip(loop: int | None = None, layer: int | None = None, **where: Any) -> Intervention:
    """Let the state pass through a loop, or through one layer call, unchanged.

    What is skipped is still run, so that caches and memories are whole, and its result dropped. A whole loop can be
    skipped in a looped core: neither the injection nor the norm at its end then changes the state.

    Args:
        loop (`int`, *optional*): the loop, from 0; `None` for a layer outside of loops.
        layer (`int`, *optional*): the layer, by default the whole loop.
        where: `slot`, `remaining` and `positions` as in [`Intervention`].
    """

    def replace(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        start = event.loop_start if layer is None else event.before
        if start is None:
            raise ValueError("a slow cycle of a hierarchical model cannot be skipped: its fast state has no bypass")
        return start[:, event.place.rows]

    return Intervention(replace, loop, layer, **where)


def freeze(loop: int, positions: Any = None) -> list[Intervention]:
    """Keep the state that tokens have after a loop through all later loops: other tokens still read it.

    Args:
        loop (`int`): the loop, from 0.
        positions (`Sequence[int]` or `torch.BoolTensor`, *optional*): the tokens, by default all.

    Returns:
        `list[Intervention]`: the interventions, for one run.
    """
    kept: dict[tuple[int, int], torch.Tensor] = {}

    def keep(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        kept[event.place[:2]] = state
        return state

    def replace(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        return kept[event.place[:2]]

    return [Intervention(keep, loop), Intervention(replace, loop + 1, remaining=True, positions=positions)]


def swap(first: int, second: int) -> Intervention:
    """Let two loops run each other's layers, in a looped model with a low-rank update per loop.

    Without such an update all loops run the same layers, and there is nothing to swap.

    Args:
        first (`int`): a loop, from 0.
        second (`int`): another.
    """
    return Swap(lambda event, state: state, first, second=second)


def _state_at(source: Captured, event: CallEvent, layer: int | None) -> torch.Tensor:
    loop: Any = event.call.loop
    try:
        return source.loop_end_at(loop, event.place) if layer is None else source.at(event.call, event.place)
    except KeyError:
        raise ValueError(f"the run to patch from has no state of {event.call} at {event.place}") from None


def _is_same(item: CapturedCall, event: CallEvent, layer: int | None) -> bool:
    if layer is None:
        return item.call.loop == event.call.loop
    return item.call.slot == event.call.slot


@dataclass
class EffectTable:
    """The effect of patching the state of one token after one loop, see [`effect_table`].

    Args:
        values (`torch.Tensor` of shape `[R, T]`): the share of the difference between the runs that a patch restores,
            by loop and position: 0 for no effect, 1 for the clean run's answer.
        clean_token (`int`): the clean run's answer.
        corrupted_token (`int`): the corrupted run's answer.
        clean_difference (`float`): the logit of the first minus that of the second, in the clean run.
        corrupted_difference (`float`): the same in the corrupted run.
    """

    values: torch.Tensor
    clean_token: int
    corrupted_token: int
    clean_difference: float
    corrupted_difference: float


def effect_table(
    model: Any,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    *,
    num_loops: int | None = None,
    layer: int | None = None,
    remaining: bool = False,
    clean_token: int | None = None,
    corrupted_token: int | None = None,
    batch_size: int = 32,
) -> EffectTable:
    """Patch states of a clean run into a corrupted one, at every loop and position, and measure what it restores.

    The measure is the logit difference of the two runs' answers at the last position, scaled so that 0 is the
    corrupted and 1 the clean run (activation patching, as in https://huggingface.co/papers/2202.05262 and
    https://huggingface.co/papers/2309.16042).

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        clean (`torch.Tensor` of shape `[1, T]`): the clean prompt.
        corrupted (`torch.Tensor` of shape `[1, T]`): a prompt of as many tokens with another answer.
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        layer (`int`, *optional*): the layer whose output to patch, by default the state after the loop.
        remaining (`bool`, *optional*, defaults to `False`): whether to patch all later loops, too.
        clean_token (`int`, *optional*): the answer to the clean prompt, by default the model's.
        corrupted_token (`int`, *optional*): the answer to the corrupted prompt, by default the model's.
        batch_size (`int`, *optional*, defaults to 32): positions patched in one forward pass.

    Returns:
        `EffectTable`: the effects.

    Raises:
        ValueError: if the prompts are not of one length, or have the same answer, or the model has no loops.
    """
    check_has_loops(model)
    if clean.shape != corrupted.shape or clean.shape[0] != 1:
        raise ValueError(f"clean and corrupted must both be [1, T], got {list(clean.shape)}, {list(corrupted.shape)}")
    num_tokens = clean.shape[1]
    source = capture(model, clean, num_loops)
    base = run_patched(model, corrupted, [], num_loops)
    last: Any = source.logits
    clean_token = int(last[0, -1].argmax()) if clean_token is None else clean_token
    corrupted_token = int(base[0, -1].argmax()) if corrupted_token is None else corrupted_token
    if clean_token == corrupted_token:
        raise ValueError(f"the prompts must have different answers, got token {clean_token} for both")

    def difference(logits: torch.Tensor) -> torch.Tensor:
        logits = logits[:, -1].float()
        return logits[:, clean_token] - logits[:, corrupted_token]

    high, low = float(difference(last)), float(difference(base))
    loops = range(model.config.num_loops if num_loops is None else num_loops)
    values = torch.empty(len(loops), num_tokens)
    for part in torch.eye(num_tokens, dtype=torch.bool).split(batch_size):
        rows = corrupted.expand(len(part), -1)
        (columns,) = part.any(dim=0).nonzero(as_tuple=True)
        for loop in loops:
            change = patch(source, loop, layer, remaining=remaining, positions=part)
            values[loop, columns] = difference(run_patched(model, rows, [change], num_loops)).cpu()
    return EffectTable((values - low) / (high - low), clean_token, corrupted_token, high, low)


__all__ = ["EffectTable", "ablate", "effect_table", "freeze", "patch", "run_patched", "skip", "swap"]
