# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Exit rules: after which loop a token needs no more.

A rule is called after every loop with a [`LoopStep`] and its own memory of the earlier ones, and tells which tokens
are done. It owns no state, so that rows may leave a batch, come back in another, or stand at different loops.

Rules that look at logits read them through the coda, whose attention sees the other tokens of the pass at the same
loop. If the model has a coda, their decisions therefore depend on how many tokens are in a pass: a prompt that is read
at once may exit at other loops than token by token. The other rules look at the token alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .checks import check_count, nearest


class LoopStep(NamedTuple):
    """What a rule may look at after a loop.

    Args:
        loops (`torch.LongTensor` of shape `[B]`): number of loops that each row has been through.
        state (`torch.Tensor` of shape `[B, T, D]`): the state after the loop.
        previous (`torch.Tensor` of shape `[B, T, D]`): the state before it.
        read_logits (`Callable`): computes the logits `[B, T, V]` of the state, through the coda.
        gate (`Callable`): computes the probability `[B, T]` of the model's learned gate to exit after this loop.
    """

    loops: torch.Tensor
    state: torch.Tensor
    previous: torch.Tensor
    read_logits: Callable[[], torch.Tensor]
    gate: Callable[[], torch.Tensor]


# what a rule remembers of earlier loops, `[B, T, ...]`; `None` before the first and of a rule that remembers nothing
Memory = torch.Tensor | None


class ExitRule(ABC):
    """Base class of exit rules.

    Args:
        threshold (`float`): when a token is done.

    Raises:
        ValueError: if the threshold is out of range.
    """

    # the argument `exit_criterion` by which the rule is known
    name = ""
    # smallest and largest threshold
    bounds = (0.0, math.inf)
    default_threshold: float = 0.0
    needs_logits = False
    needs_gate = False

    def __init__(self, threshold: float | None = None):
        threshold = self.default_threshold if threshold is None else threshold
        low, high = self.bounds
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        # written so that NaN is refused too
        if not (is_number and low <= threshold <= high):
            raise ValueError(
                f"`exit_threshold` must be from {low:g} to {high:g} with `exit_criterion={self.name!r}`, got "
                f"{threshold!r}"
            )
        self.threshold = threshold

    @abstractmethod
    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        """Tell which tokens are done after a loop.

        Args:
            step (`LoopStep`): the loop.
            memory (`torch.Tensor` of shape `[B, T, ...]`, *optional*): what the rule returned after the previous loop.

        Returns:
            `tuple[torch.BoolTensor, torch.Tensor | None]`: the tokens that are done, `[B, T]`, and the new memory.
        """


class StateChange(ExitRule):
    """Done when a loop changes the state by less than a share of its norm, `|s - s'| < threshold |s|`.

    The change is relative because a norm before the head leaves the scale of the state free. Huginn's rule
    "latent-diff" (https://huggingface.co/papers/2502.05171) has a default of 0.03.
    """

    name = "state_change"
    default_threshold = 0.03

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        state, previous = step.state.float(), step.previous.float()
        change = torch.linalg.vector_norm(state - previous, dim=-1)
        return change < self.threshold * torch.linalg.vector_norm(state, dim=-1), None


class Divergence(ExitRule):
    """Done when the prediction changes by less than `threshold` nats from loop to loop, `KL(p_r || p_{r-1})`.

    Huginn's rule "kl" (https://huggingface.co/papers/2502.05171); its paper has a threshold of 5e-4.
    """

    name = "kl"
    default_threshold = 5e-4
    needs_logits = True

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        log_probs = step.read_logits().float().log_softmax(dim=-1)
        if memory is None:
            return _none_done(step), log_probs
        divergence = (log_probs.exp() * (log_probs - memory)).sum(dim=-1)
        return (divergence < self.threshold) & _later_loop(step), log_probs


class StableArgmax(ExitRule):
    """Done when the most probable token has been the same for `threshold` loops in a row.

    Huginn's rule "argmax-stability" (https://huggingface.co/papers/2502.05171) asks for 5 loops.
    """

    name = "stable_argmax"
    bounds = (1.0, math.inf)
    default_threshold = 2.0
    needs_logits = True

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        best = step.read_logits().argmax(dim=-1)
        times = torch.ones_like(best)
        if memory is not None:
            is_same = (best == memory[..., 0]) & _later_loop(step)
            times = torch.where(is_same, memory[..., 1] + 1, times)
        return times >= self.threshold, torch.stack([best, times], dim=-1)


class Entropy(ExitRule):
    """Done when the prediction's entropy is below `threshold` nats."""

    name = "entropy"
    default_threshold = 0.5
    needs_logits = True

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        log_probs = step.read_logits().float().log_softmax(dim=-1)
        return -(log_probs.exp() * log_probs).sum(dim=-1) < self.threshold, None


class Gate(ExitRule):
    """Done when the learned gate's probabilities to exit so far add up to more than `threshold`.

    Ouro's rule (https://huggingface.co/papers/2510.25741): with gate `g_r`, the probability to exit after loop r is
    `g_r` times the product of `1 - g` over earlier loops. The sum up to r is 1 minus that product up to r.
    """

    name = "gate"
    bounds = (0.0, 1.0)
    default_threshold = 0.5
    needs_gate = True

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        goes_on = 1 - step.gate().float()
        if memory is not None:
            goes_on = goes_on * torch.where(_later_loop(step), memory, 1.0)
        return 1 - goes_on > self.threshold, goes_on


class GivenExits(ExitRule):
    """Done after a given number of loops: for analysis, such as an oracle that knows where the prediction settles.

    Args:
        exit_loops (`torch.LongTensor` of shape `[B, T]`): loops of every token of the pass.
    """

    name = "given"

    def __init__(self, exit_loops: torch.Tensor):
        super().__init__()
        self.exit_loops = exit_loops

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        # the memory follows the rows that are left
        exit_loops = self.exit_loops if memory is None else memory
        return step.loops[:, None] >= exit_loops, exit_loops


RULES: dict[str, type[ExitRule]] = {rule.name: rule for rule in (StateChange, Divergence, StableArgmax, Entropy, Gate)}


@dataclass(frozen=True)
class Exits:
    """When tokens leave the loop.

    Args:
        rule (`ExitRule`): tells which tokens are done after a loop.
        min_loops (`int`, *optional*, defaults to 1): loops that every token runs.
    """

    rule: ExitRule
    min_loops: int = 1


def make_exits(
    exit_criterion: str | ExitRule | None,
    exit_threshold: float | None,
    min_loops: int | None,
    num_loops: int,
    has_head: bool,
    has_gate: bool,
) -> Exits | None:
    """Make the exits of a call from its arguments.

    Args:
        exit_criterion (`str` or `ExitRule`, *optional*): the name of a rule, or a rule; `None` for no exits.
        exit_threshold (`float`, *optional*): when a token is done, by default the rule's own.
        min_loops (`int`, *optional*): loops that every token runs, by default 1.
        num_loops (`int`): loops after which every token exits.
        has_head (`bool`): whether the call can compute logits.
        has_gate (`bool`): whether the model has a learned gate.

    Raises:
        ValueError: if there is no such rule, the threshold is out of range, `min_loops` is no positive integer or more
            than `num_loops`; one of the other arguments is given without a criterion, or a threshold beside a rule
            that has one; or the rule needs logits or a gate that are not there.
    """
    if exit_criterion is None:
        for name, value in {"exit_threshold": exit_threshold, "min_loops": min_loops}.items():
            if value is not None:
                raise ValueError(f"`{name}` needs an `exit_criterion`, got {name}={value!r} alone")
        return None
    min_loops = 1 if min_loops is None else check_count("min_loops", min_loops)
    if min_loops > num_loops:
        raise ValueError(f"`min_loops` must be at most num_loops={num_loops}, got {min_loops}")
    rule = _make_rule(exit_criterion, exit_threshold)
    if rule.needs_gate and not has_gate:
        raise ValueError(f"`exit_criterion={rule.name!r}` needs a model with `exit_gate=True`")
    if rule.needs_logits and not has_head:
        raise ValueError(f"`exit_criterion={rule.name!r}` needs a model with a language-model head")
    return Exits(rule, min_loops)


def _make_rule(exit_criterion: Any, exit_threshold: float | None) -> ExitRule:
    if isinstance(exit_criterion, str) and exit_criterion in RULES:
        return RULES[exit_criterion](exit_threshold)
    if not callable(exit_criterion):
        meant = nearest(str(exit_criterion), RULES)
        hint = "" if meant is None else f"; did you mean {meant!r}?"
        raise ValueError(f"`exit_criterion` must be one of {', '.join(RULES)}, got {exit_criterion!r}{hint}")
    if exit_threshold is not None:
        raise ValueError(f"`exit_threshold` must be None with a rule of its own threshold, got {exit_threshold!r}")
    return exit_criterion


def _none_done(step: LoopStep) -> torch.Tensor:
    return torch.zeros(step.state.shape[:2], dtype=torch.bool, device=step.state.device)


def _later_loop(step: LoopStep) -> torch.Tensor:
    """Return which rows have been through more than one loop, `[B, 1]`: before that the memory is another token's."""
    return (step.loops > 1)[:, None]


__all__ = ["RULES", "ExitRule", "Exits", "GivenExits", "LoopStep", "Memory", "make_exits"]
