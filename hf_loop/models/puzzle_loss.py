# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a puzzle model is trained on: the loss of every cell, and of the head that says when it is done."""

import torch
from torch import nn


IGNORE_INDEX = -100


def stablemax_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Logarithms of `s(x) / sum(s(x))`, `s(x) = x + 1` from zero up and `1 / (1 - x)` below, in double precision.

    The slope of `s` never vanishes as that of the exponential does (https://huggingface.co/papers/2501.04697).
    """
    logits = logits.double()
    # both branches are computed: each on values that it is meant for, so that no infinity reaches the gradient
    positive, negative = logits.clamp(min=0), logits.clamp(max=0)
    scores = torch.where(logits >= 0, positive + 1, 1 / (1 - negative))
    return torch.log(scores) - torch.log(scores.sum(-1, keepdim=True))


def cell_losses(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Cross entropy of every cell `[B, T]`, zero where there is no label.

    Args:
        logits (`torch.Tensor` of shape `[B, T, V]`): the scores of every cell.
        labels (`torch.LongTensor` of shape `[B, T]`): its token, -100 where none is asked for.
        kind (`str`): `"softmax"` or `"stablemax"`.
    """
    if kind == "softmax":
        losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
        return losses
    log_probabilities = stablemax_log_probabilities(logits)
    is_labelled = labels != IGNORE_INDEX
    picked = log_probabilities.gather(-1, torch.where(is_labelled, labels, 0)[..., None])[..., 0]
    return torch.where(is_labelled, -picked, 0)


def solved_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether every labelled cell of a row is right, `[B]`; a row without a label is not solved."""
    is_labelled = labels != IGNORE_INDEX
    return ((logits.argmax(-1) == labels) | ~is_labelled).all(1) & is_labelled.any(1)


def halting_losses(
    halt_logits: torch.Tensor, is_solved: torch.Tensor, continue_targets: torch.Tensor | None
) -> torch.Tensor:
    """Loss of the halting head for every row `[B]`: is the row solved, and what is going on worth.

    Args:
        halt_logits (`torch.Tensor` of shape `[B, 1]` or `[B, 2]`): the value of halting and, second, of going on.
        is_solved (`torch.BoolTensor` of shape `[B]`): the target of the first.
        continue_targets (`torch.Tensor` of shape `[B]`, *optional*): the target of the second; `None` leaves it out.
    """
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    losses = cross_entropy(halt_logits[:, 0], is_solved.to(halt_logits), reduction="none")
    if continue_targets is not None:
        losses = losses + cross_entropy(halt_logits[:, 1], continue_targets, reduction="none")
    return losses


def puzzle_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    kind: str,
    halt_logits: torch.Tensor | None = None,
    continue_targets: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The mean over rows of a row's mean cell loss, plus half of its halting loss (2506.21734, 2510.04871).

    Args:
        logits, labels, kind: see [`cell_losses`].
        halt_logits, continue_targets (*optional*): see [`halting_losses`]; without them cells alone count.
        num_items_in_batch (`int`, *optional*): the labelled cells of all batches that make one step. Rows then weigh
            as many of these as they have, so that the sum over the batches is the loss of the step.
    """
    counts = (labels != IGNORE_INDEX).sum(1)
    losses = cell_losses(logits, labels, kind).sum(1) / counts.clamp(min=1)
    if halt_logits is not None:
        is_solved = solved_rows(logits, labels)
        losses = losses + 0.5 * halting_losses(halt_logits, is_solved, continue_targets)
    if num_items_in_batch is None:
        return losses.mean().float()
    return (losses * counts / num_items_in_batch).sum().float()


__all__ = ["puzzle_loss", "solved_rows"]
