# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How the prelude's output enters the state before each loop.

`s` is the state, `e` the prelude's output, both `[batch_size, sequence_length, hidden_size]`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_looped import LoopedConfig


# decay of the state in one step at the start, exp(-D A) = sqrt(1/5): https://huggingface.co/papers/2604.12946
DIAGONAL_INITIAL_DECAY = 0.2**0.5


class NoInjection(nn.Module):
    """`s`: the state carries the input by itself (plain looping)."""

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return state


class AddInjection(nn.Module):
    """`s + e`."""

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return state + encoded


class ConcatInjection(nn.Module):
    """`W [s; e]` without bias, as Huginn's adapter (https://huggingface.co/papers/2502.05171).

    `W` starts as `[0 | I]`, so that every loop count gives the result of one loop until it is trained.
    """

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.cat([state, encoded], dim=-1))

    def reset_parameters(self) -> None:
        hidden_size = self.proj.out_features
        # made anew: a weight that was loaded may be one of a quantized or sharded kind, and is left alone by `init`
        init.copy_(self.proj.weight, nn.functional.pad(torch.eye(hidden_size), (hidden_size, 0)))


class DiagonalInjection(nn.Module):
    """`exp(-D A) s + D B norm(e)` with `A = exp(A_log)`, `D = softplus(dt_bias)` (Parcae, 2604.12946).

    The decay stays below one whatever the parameters, which bounds the state over any number of loops. Starts at
    `A = 1`, `B = I` and a decay of `sqrt(1/5)`. None of its parameters takes weight decay. One loop does not equal the
    base model, since the norm and `D` change the scale of `e`.
    """

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(config.hidden_size))
        self.dt_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.B = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
        self.norm = nn.RMSNorm(config.hidden_size, eps=eps)

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        # in fp32: a step of 1e-3 in the decay is lost in bf16
        step = nn.functional.softplus(self.dt_bias.float())
        decay = torch.exp(-step * torch.exp(self.A_log.float()))
        return decay.to(state.dtype) * state + step.to(state.dtype) * self.B(self.norm(encoded))

    def reset_parameters(self) -> None:
        step = -math.log(DIAGONAL_INITIAL_DECAY)
        init.zeros_(self.A_log)
        init.constant_(self.dt_bias, math.log(math.expm1(step)))  # softplus(dt_bias) = step
        init.copy_(self.B.weight, torch.eye(self.B.out_features, dtype=self.B.weight.dtype))
        init.ones_(self.norm.weight)


def make_injection(config: LoopedConfig) -> nn.Module:
    """The injection `config.injection` names."""
    if config.injection == "none":
        return NoInjection()
    if config.injection == "add":
        return AddInjection()
    if config.injection == "concat":
        return ConcatInjection(config)
    return DiagonalInjection(config)
