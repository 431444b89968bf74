# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The causal language modelling loss with a weight for every token."""

import torch
from torch import nn

from .puzzle_loss import IGNORE_INDEX


def weighted_causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    r"""
    Compute `sum(weight * cross_entropy) / count` over the labelled tokens, in float32.

    With weights of 1 this is transformers' loss of causal language models: position t predicts the label at t + 1, and
    the sum is divided by `num_items_in_batch`. The count is the number of labelled tokens, not the sum of the weights:
    halving all weights halves the loss, and the loss does not depend on how a batch is split into micro-batches.

    Args:
        logits (`torch.Tensor` of shape `[B, T, V]`):
            Logits of the next token.
        labels (`torch.Tensor` of shape `[B, T]`):
            Token ids, not shifted; `ignore_index` for none.
        loss_weights (`torch.Tensor` of shape `[B, T]`):
            Weights of the labels at the same positions.
        vocab_size (`int`):
            V.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Number of labelled tokens in the optimizer step, by default in this batch.
        ignore_index (`int`, *optional*, defaults to -100):
            The label to ignore.
        shift_labels (`torch.Tensor` of shape `[B, T]`, *optional*):
            Labels that are shifted already: position t predicts the one at t. `loss_weights` must not be shifted.

    Returns:
        `torch.Tensor`: the loss, a scalar.

    Raises:
        ValueError: if `loss_weights` has another shape than `labels`.
    """
    targets, weights = next_token_targets(labels, loss_weights, ignore_index, shift_labels)
    targets, weights = targets.to(logits.device), weights.to(logits.device)
    losses = nn.functional.cross_entropy(
        logits.float().view(-1, vocab_size), targets, ignore_index=ignore_index, reduction="none"
    )
    total = (losses * weights).sum()
    count = (targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


def next_token_targets(
    labels: torch.Tensor,
    loss_weights: torch.Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what every position predicts, and with which weight.

    Args:
        labels, loss_weights, ignore_index, shift_labels: as in [`weighted_causal_lm_loss`]; weights are 1 by default.

    Returns:
        `tuple(torch.Tensor, torch.Tensor)`: the targets and their weights in float32, each of shape `[B * T]`. What
        has no label has the weight 0.

    Raises:
        ValueError: if `loss_weights` has another shape than `labels`.
    """
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1)
    if loss_weights is None:
        return targets, (targets != ignore_index).float()
    if loss_weights.shape != labels.shape:
        raise ValueError(
            f"`loss_weights` must have the shape of `labels` {list(labels.shape)}, got {list(loss_weights.shape)}"
        )
    weights = nn.functional.pad(loss_weights, (0, 1))[..., 1:].reshape(-1).to(targets.device, torch.float32)
    # weights without a label may be anything, even infinite
    return targets, weights.masked_fill(targets == ignore_index, 0.0)


__all__ = ["next_token_targets", "weighted_causal_lm_loss"]
