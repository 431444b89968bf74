# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The loss of puzzle models: that of the cells and that of the halting head."""

import functools

import torch
from torch import nn


IGNORE_INDEX = -100


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64: on its device, or on the CPU if the device has no float64."""
    return tensor.double() if has_float64(tensor.device.type) else tensor.cpu().double()


@functools.cache
def has_float64(device_type: str) -> bool:
    """Return whether a kind of device computes in float64; those of Apple and some of Intel do not."""
    if device_type in ("cpu", "cuda", "meta"):
        return True
    try:
        return bool((torch.ones(1, dtype=torch.float64, device=device_type) + 1).item() == 2)
    except (TypeError, RuntimeError):
        return False


def stablemax_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Compute logarithms of `s(x) / sum(s(x))`, with `s(x) = x + 1` for `x >= 0` and `1 / (1 - x)` below, in float64,
    on the CPU if the device has none.

    Unlike that of the exponential, the slope of `s` does not vanish (https://huggingface.co/papers/2501.04697).
    """
    logits = to_float64(logits)
    # `where` computes both branches: clamping keeps infinities out of the gradient
    positive, negative = logits.clamp(min=0), logits.clamp(max=0)
    scores = torch.where(logits >= 0, positive + 1, 1 / (1 - negative))
    return torch.log(scores) - torch.log(scores.sum(-1, keepdim=True))


def cell_losses(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Compute the cross entropy of every cell `[B, T]`, zero for cells without a label.

    Args:
        logits (`torch.Tensor` of shape `[B, T, V]`): logits of the cells.
        labels (`torch.LongTensor` of shape `[B, T]`): the token of every cell, -100 for cells without a label.
        kind (`str`): `"softmax"` or `"stablemax"`.
    """
    if kind == "softmax":
        return nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")
    log_probabilities = stablemax_log_probabilities(logits)
    labels = labels.to(log_probabilities.device)
    is_labelled = labels != IGNORE_INDEX
    picked = log_probabilities.gather(-1, torch.where(is_labelled, labels, 0)[..., None])[..., 0]
    losses = torch.where(is_labelled, -picked, 0)
    return losses if losses.device == logits.device else losses.float().to(logits.device)


def solved_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return whether all labelled cells of each puzzle are right, `[B]`; a puzzle without labels is not solved."""
    is_labelled = labels != IGNORE_INDEX
    return ((logits.argmax(-1) == labels) | ~is_labelled).all(1) & is_labelled.any(1)


def halting_losses(
    halt_logits: torch.Tensor, is_solved: torch.Tensor, continue_targets: torch.Tensor | None
) -> torch.Tensor:
    """Compute the loss of the halting head for every puzzle `[B]`.

    Args:
        halt_logits (`torch.Tensor` of shape `[B, 1]` or `[B, 2]`): logits of halting and, second, of continuing.
        is_solved (`torch.BoolTensor` of shape `[B]`): targets of the first.
        continue_targets (`torch.Tensor` of shape `[B]`, *optional*): targets of the second, which has no loss without
            them.
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
    """Average the puzzles' losses: the mean loss of the cells plus half of the halting loss (2506.21734, 2510.04871).

    Args:
        logits, labels, kind: see [`cell_losses`].
        halt_logits, continue_targets (`torch.Tensor`, *optional*): see [`halting_losses`]; without `halt_logits` there
            is no halting loss.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*): number of labelled cells in all batches of a step.
            Each puzzle is then weighted by its labelled cells / `num_items_in_batch`, so that the losses of the
            batches sum to the step's loss.
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
