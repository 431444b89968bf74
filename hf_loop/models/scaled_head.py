# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A language-model head that learns a scale for the logit of every token, as nGPT's and Dory's do
(https://huggingface.co/papers/2410.01131, section 2.1)."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init


class ScaledHead(nn.Linear):
    """A linear map without bias, whose logits are multiplied by one learned number per token, in float32.

    The scale is one when it is initialized. It is stored as `initializer_range`, and divided by it on use, under the
    name that transformers' `dory` has.

    Args:
        config (`PreTrainedConfig`): configuration of the decoder.
    """

    def __init__(self, config: Any):
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.initial_scale: float = config.initializer_range
        self.logit_scale = nn.Parameter(torch.full((config.vocab_size,), self.initial_scale))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float() * (self.logit_scale.float() * (1 / self.initial_scale))

    def reset_scale(self) -> None:
        init.constant_(self.logit_scale, self.initial_scale)

    def resize(self, weight: Any) -> None:
        """Take the linear map `weight` `[V, D]` of another vocabulary; the scale of a new token is one."""
        num_new = len(weight) - len(self.logit_scale)
        scale = nn.functional.pad(self.logit_scale.detach(), (0, num_new), value=self.initial_scale)
        self.logit_scale = nn.Parameter(scale, requires_grad=self.logit_scale.requires_grad)
        self.weight, self.out_features = weight, len(weight)


__all__ = ["ScaledHead"]
