# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The causal language modelling loss with a weight for every token."""

import torch
from torch import nn


def weighted_causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    r"""
    `sum(weight * cross_entropy) / count` over the labelled tokens, in float32.

    Everything but the weights follows transformers' loss of causal language models, to which it is equal where all
    weights are 1: position t predicts the label at t + 1, and the sum is divided by `num_items_in_batch`. The count is
    that of the labelled tokens and not the sum of the weights: halving all weights halves the loss, and a batch whose
    answers are few weighs as much as its tokens, whatever the number of micro-batches it is split into.

    Args:
        logits (`torch.Tensor` of shape `[B, T, V]`):
            Scores of the next token.
        labels (`torch.Tensor` of shape `[B, T]`):
            Token ids, not shifted; `ignore_index` where there is none.
        loss_weights (`torch.Tensor` of shape `[B, T]`):
            The weight of predicting the label at the same position. Those without a label are not read.
        vocab_size (`int`):
            V.
        num_items_in_batch (`torch.Tensor` or `int`, *optional*):
            Labelled tokens of the whole optimizer step. By default those of this batch.
        ignore_index (`int`, *optional*, defaults to -100):
            The label of a token that is not scored.
        shift_labels (`torch.Tensor` of shape `[B, T]`, *optional*):
            Labels that are shifted already: the one at t is predicted by position t. The weights are shifted here
            all the same.

    Returns:
        `torch.Tensor`: A scalar.

    Raises:
        ValueError: if `loss_weights` has another shape than `labels`.
    """
    if loss_weights.shape != labels.shape:
        raise ValueError(
            f"`loss_weights` must have the shape of `labels` {list(labels.shape)}, got {list(loss_weights.shape)}"
        )
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    weights = nn.functional.pad(loss_weights, (0, 1))[..., 1:].reshape(-1).to(logits.device, torch.float32)
    losses = nn.functional.cross_entropy(
        logits.float().view(-1, vocab_size), targets, ignore_index=ignore_index, reduction="none"
    )
    is_labelled = targets != ignore_index
    # whatever stands where nothing is scored, even an infinity, must not reach the sum
    total = (losses * weights.masked_fill(~is_labelled, 0.0)).sum()
    count = is_labelled.sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if torch.is_tensor(count) else count)


__all__ = ["weighted_causal_lm_loss"]
