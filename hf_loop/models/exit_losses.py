# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Losses that train a looped model, or its exit gate, to leave the loop early.

After loop t of T the gate gives the probability `lambda_t` that a token exits there. The exit is after loop t with
probability `p_t = lambda_t (1 - lambda_1) ... (1 - lambda_{t-1})`, and after loop T with the rest. `CE_t` is the
cross-entropy of the next token read out after loop t.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .puzzle_loss import IGNORE_INDEX
from .weighted_loss import next_token_targets


ExitObjectiveKind = Literal["expected", "batch_average", "gain", "distillation"]
# tokens times loops whose logits are in memory at once
READOUTS_PER_CHUNK = 1024


@dataclass(frozen=True)
class ExitObjective:
    """What a looped model is trained for, instead of the loss after its last loop alone.

    - `"expected"`: the expected loss over exits, with the entropy of every token's exits against collapse to one loop:
      `sum_t p_t CE_t - entropy_weight H(p)` (stage I of Ouro, https://huggingface.co/papers/2510.25741).
    - `"batch_average"`: the same with the entropy of the average exit distribution, so that tokens may differ:
      `sum_t p_t CE_t + entropy_weight KL(mean p || uniform)` (https://huggingface.co/papers/2610.09013). The mean is
      over the labelled tokens of one call: of a micro-batch, whose term has the weight of its share of the tokens. A
      smaller micro-batch is a stricter demand; with a single token it is the demand of `"expected"`.
    - `"gain"`: the gate alone, which after loop t learns whether loop t + 1 gains: the binary cross-entropy of
      `1 - lambda_t` and `sigmoid(gain_slope (max(0, CE_t - CE_{t+1}) - gain_threshold))`, averaged over the loops but
      the last (stage II of Ouro). The paper's formula gives this target to the gate after the loop that gained, which
      would leave the first gate untrained and train the last, which is never asked; here it belongs to the gate that
      decides whether the loop runs.
    - `"distillation"`: `CE_T + distillation_weight mean_{t<T} KL(after loop T || after loop t)`: what the model
      predicts after few loops is pulled towards what it predicts after all, which takes no gradient from it.

    Args:
        kind (`str`): one of these names.
        entropy_weight (`float`, *optional*, defaults to 0.05): weight of the entropy, 0.1 and later 0.05 in Ouro.
        gain_slope (`float`, *optional*, defaults to 50.0): how sharply a gain counts as one.
        gain_threshold (`float`, *optional*, defaults to 0.005): the gain, in nats, that is worth a loop.
        distillation_weight (`float`, *optional*, defaults to 1.0): weight of the divergence.

    Raises:
        ValueError: if there is no such kind.
    """

    kind: ExitObjectiveKind
    entropy_weight: float = 0.05
    gain_slope: float = 50.0
    gain_threshold: float = 0.005
    distillation_weight: float = 1.0

    def __post_init__(self):
        if self.kind not in get_args(ExitObjectiveKind):
            kinds = ", ".join(get_args(ExitObjectiveKind))
            raise ValueError(f"`exit_objective` must be one of {kinds}, got {self.kind!r}")

    @property
    def uses_gate(self) -> bool:
        """Whether the loss reads the exit gate."""
        return self.kind != "distillation"

    def check(self, config: Any, labels: torch.Tensor | None) -> None:
        """Refuse to compute the loss without labels, or one that uses the gate of a model without.

        Args:
            config (`LoopedConfig`): the model's configuration.
            labels (`torch.Tensor`, *optional*): the labels.

        Raises:
            ValueError: if something is missing.
        """
        if labels is None:
            # `Trainer` takes them out of the batch to smooth them
            raise ValueError(f"`exit_objective` {self.kind!r} needs `labels`, which the model must get, got None")
        if self.uses_gate and not config.exit_gate:
            raise ValueError(f"`exit_objective` {self.kind!r} needs a model with `exit_gate=True`, got False")


class ScoredTokens(NamedTuple):
    """The positions of a batch that predict a label.

    Args:
        rows (`torch.Tensor` of shape `[N]`): their indices among all `B * T` positions.
        targets (`torch.Tensor` of shape `[N]`): the labels that they predict.
        weights (`torch.Tensor` of shape `[N]`): the weights of these labels.
        count (`torch.Tensor` or `int`): by what the sum over tokens is divided.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    count: torch.Tensor | int

    def select(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Select these positions of the states `[B, T, D]` after every loop, as `[N, num_loops, D]`."""
        # the loops may have run on another device than the head
        rows = [state.flatten(0, 1)[self.rows.to(state.device)] for state in states]
        return torch.stack(rows, dim=1).to(self.rows.device)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of values `[N]`, divided by the count."""
        return (values * self.weights).sum() / self.count


def scored_tokens(
    labels: torch.Tensor,
    device: torch.device,
    loss_weights: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: torch.Tensor | None = None,
    **kwargs,
) -> ScoredTokens:
    """Find the positions that predict a label; the arguments are those of `weighted_causal_lm_loss`."""
    targets, weights = next_token_targets(labels, loss_weights, ignore_index, shift_labels)
    rows = (targets != ignore_index).nonzero().squeeze(1)
    count = rows.numel() if num_items_in_batch is None else num_items_in_batch
    count = count.to(device) if torch.is_tensor(count) else count
    return ScoredTokens(rows.to(device), targets[rows].to(device), weights[rows].to(device), count)


def exit_log_probabilities(gate_logits: torch.Tensor) -> torch.Tensor:
    """Compute the logarithm of the probability of an exit after each loop.

    Args:
        gate_logits (`torch.Tensor` of shape `[N, T]`): the gate's logits after each of T loops; the last is not read.

    Returns:
        `torch.Tensor` of shape `[N, T]`: `log p_t`.
    """
    logits, zeros = gate_logits[:, :-1], gate_logits.new_zeros(len(gate_logits), 1)
    exits = torch.cat([nn.functional.logsigmoid(logits), zeros], dim=1)
    survives = torch.cat([zeros, nn.functional.logsigmoid(-logits).cumsum(1)], dim=1)
    return survives + exits


def exit_loss(model: Any, objective: ExitObjective, outputs: Any, tokens: ScoredTokens) -> torch.Tensor:
    """Compute the loss of an objective, of `"distillation"` the weighted divergence alone.

    Args:
        model (`LoopedForCausalLM`): the model.
        objective (`ExitObjective`): the objective.
        outputs (`LoopedModelOutputWithPast`): the headless model's, with the states after every loop.
        tokens (`ScoredTokens`): the tokens to predict.

    Returns:
        `torch.Tensor`: the loss, a scalar in float32.
    """
    hidden_states = tokens.select(outputs.loop_hidden_states)
    if objective.kind == "distillation":
        divergences = readout_divergences(model.read_logits, hidden_states)
        num_shorter = max(divergences.shape[1], 1)
        return objective.distillation_weight * tokens.mean(divergences.sum(1) / num_shorter)
    states = tokens.select(outputs.loop_states)
    trains_model = objective.kind != "gain"
    with nullcontext() if trains_model else torch.no_grad():
        losses = readout_losses(model.read_logits, hidden_states, tokens.targets)
    states = states if trains_model else states.detach()
    gate_logits = model.model.exit_gate_logits(states, trains_norm=trains_model)
    return gate_loss(objective, losses, gate_logits.to(losses.device), tokens)


def gate_loss(
    objective: ExitObjective, losses: torch.Tensor, gate_logits: torch.Tensor, tokens: ScoredTokens
) -> torch.Tensor:
    """Compute the loss of one of the objectives that use the gate.

    Args:
        objective (`ExitObjective`): the objective.
        losses (`torch.Tensor` of shape `[N, T]`): `CE_t` of every scored token.
        gate_logits (`torch.Tensor` of shape `[N, T]`): the gate's logits after every loop.
        tokens (`ScoredTokens`): the tokens.

    Returns:
        `torch.Tensor`: the loss, a scalar in float32.
    """
    num_loops = losses.shape[1]
    if objective.kind == "gain":
        gains = (losses[:, :-1] - losses[:, 1:]).detach().clamp(min=0)
        goes_on = torch.sigmoid(objective.gain_slope * (gains - objective.gain_threshold))
        errors = nn.functional.binary_cross_entropy_with_logits(-gate_logits[:, :-1], goes_on, reduction="none")
        return tokens.mean(errors.sum(1) / max(num_loops - 1, 1))
    log_probabilities = exit_log_probabilities(gate_logits)
    probabilities = log_probabilities.exp()
    if objective.kind == "expected":
        return tokens.mean((probabilities * (losses + objective.entropy_weight * log_probabilities)).sum(1))
    weight = tokens.weights.sum()
    # where nothing has a weight the average is nothing, and so is the weight of its divergence
    average = (tokens.weights[:, None] * probabilities).sum(0) / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    average = average.clamp(min=torch.finfo(average.dtype).tiny)
    divergence = (average * (average * num_loops).log()).sum()
    return tokens.mean((probabilities * losses).sum(1)) + objective.entropy_weight * divergence * weight / tokens.count


def readout_losses(
    read_logits: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Compute the cross-entropy after every loop. Logits exist for a few tokens at a time, in the backward pass too.

    Args:
        read_logits (`Callable`): the head.
        hidden_states (`torch.Tensor` of shape `[N, T, D]`): what the head reads after each of T loops.
        targets (`torch.Tensor` of shape `[N]`): the tokens to predict.

    Returns:
        `torch.Tensor` of shape `[N, T]`: the losses, in float32.
    """

    def losses(hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        num_loops = hidden_states.shape[1]
        logits = read_logits(hidden_states).float().flatten(0, 1)
        targets = targets.repeat_interleave(num_loops)
        return nn.functional.cross_entropy(logits, targets, reduction="none").view(-1, num_loops)

    return _in_chunks(losses, hidden_states, targets)


def readout_divergences(
    read_logits: Callable[[torch.Tensor], torch.Tensor], hidden_states: torch.Tensor
) -> torch.Tensor:
    """Compute `KL(after loop T || after loop t)` for the loops before the last; no gradient reaches the first of both.

    Args:
        read_logits (`Callable`): the head.
        hidden_states (`torch.Tensor` of shape `[N, T, D]`): what the head reads after each of T loops.

    Returns:
        `torch.Tensor` of shape `[N, T - 1]`: the divergences, in float32.
    """

    def divergences(hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher = read_logits(hidden_states[:, -1:]).float().log_softmax(-1)
        student = read_logits(hidden_states[:, :-1]).float().log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1)

    return _in_chunks(divergences, hidden_states)


def _in_chunks(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """Apply a function to a few rows at a time, and again in the backward pass."""
    size = max(1, READOUTS_PER_CHUNK // tensors[0].shape[1])
    chunks = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(function, *chunk, **options) for chunk in chunks])


__all__ = [
    "ExitObjective",
    "ExitObjectiveKind",
    "ScoredTokens",
    "exit_log_probabilities",
    "exit_loss",
    "gate_loss",
    "scored_tokens",
]
