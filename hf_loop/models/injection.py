# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Injections of the prelude's output `e` into the state `s` before each loop.

Both are of shape `[batch_size, sequence_length, hidden_size]`, unless a token's state is several vectors.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_looped import LoopedConfig


# of the squared length, in `UnitAddInjection`
UNIT_EPS = 1e-6
# of the squared length, in `OrthogonalInjection`
ORTHOGONAL_EPS = 1e-6
# initial decay of the state in one loop, exp(-D A) = sqrt(1/5): https://huggingface.co/papers/2604.12946
DIAGONAL_INITIAL_DECAY = 0.2**0.5


class NoInjection(nn.Module):
    """No injection, `s` (plain looping)."""

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return state


class AddInjection(nn.Module):
    """Addition, `s + e`."""

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return state + encoded


class UnitAddInjection(nn.Module):
    """The sum of directions, `s / |s| + e / |e|`, for layers that keep states at length one.

    It is that of transformers' `dory`, a looped nGPT (https://huggingface.co/papers/2410.01131). One loop does not
    equal the base model, because the length of `e` changes.
    """

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return _to_unit_length(state) + _to_unit_length(encoded)


class MessageInjection(nn.Module):
    """The prelude's output itself, beside what the loop before has left for messages, for transformers'
    `inkling2_loop`.

    Every loop starts again from `e`. From the second on, the layers of the core receive messages, which they compute
    from the block states that the loop before has added after its first, which is `e`'s, and from its hidden states.
    States are of several vectors per token, see `block_states.py`; the one before the first loop is `e`.
    """

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.hidden_size = config.hidden_size

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        if state.shape[-1] == encoded.shape[-1]:
            return encoded
        block_states = state[..., encoded.shape[-1] + self.hidden_size :]
        return torch.cat([encoded, block_states, state[..., : self.hidden_size]], dim=-1)


class ConcatInjection(nn.Module):
    """A linear map `W [s; e]` as Huginn's adapter (https://huggingface.co/papers/2502.05171), by default without bias.

    `W` is initialized as `[0 | I]`: until it is trained, any number of loops gives the result of one loop.
    """

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.injection_bias)

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.cat([state, encoded], dim=-1))

    def reset_parameters(self) -> None:
        hidden_size = self.proj.out_features
        # not in place: `init` skips loaded weights, which may be quantized or sharded
        init.copy_(self.proj.weight, nn.functional.pad(torch.eye(hidden_size), (hidden_size, 0)))
        if self.proj.bias is not None:
            init.zeros_(self.proj.bias)


class DiagonalInjection(nn.Module):
    """A diagonal recurrence `exp(-D A) s + D B norm(e)` with `A = exp(A_log)`, `D = softplus(dt_bias)` (2604.12946).

    The decay is always below one, which bounds the state over any number of loops. It is initialized as `sqrt(1/5)`,
    with `A = 1` and `B = I`. Its parameters take no weight decay. One loop does not equal the base model, because the
    norm and `D` change the scale of `e`. Without `config.injection_norm` it is `exp(-D A) s + D B e`, that of
    ifm-ai/xllm-loop.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(config.hidden_size))
        self.dt_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.B = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
        # CODEPATH: Parcae norms what it injects, most of LoopedLM does not
        self.norm: Any = nn.RMSNorm(config.hidden_size, eps=eps) if config.injection_norm else None

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        decayed, injected = self.decay_and_inject(state, encoded)
        return decayed + injected

    def decay_and_inject(self, state: torch.Tensor, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute `exp(-D A) s` and `D B norm(e)`, each `[B, T, D]`."""
        # in fp32, because bf16 would lose a step of 1e-3 in the decay
        step = nn.functional.softplus(self.dt_bias.float())
        decay = torch.exp(-step * torch.exp(self.A_log.float()))
        normed = encoded if self.norm is None else self.norm(encoded)
        return decay.to(state.dtype) * state, step.to(state.dtype) * self.B(normed)

    def reset_parameters(self) -> None:
        step = -math.log(DIAGONAL_INITIAL_DECAY)
        init.zeros_(self.A_log)
        init.constant_(self.dt_bias, math.log(math.expm1(step)))  # softplus(dt_bias) = step
        init.copy_(self.B.weight, torch.eye(self.B.out_features, dtype=self.B.weight.dtype))
        if self.norm is not None:
            init.ones_(self.norm.weight)


class OrthogonalInjection(DiagonalInjection):
    """The diagonal injection `d + u` whose decayed state `d` loses its component along `u`: `d - (d.u / u.u) u + u`.

    It is `OrthoInj` of ifm-ai/xllm-loop, `xllm/models/looped.py`.
    """

    def forward(self, state: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        decayed, injected = self.decay_and_inject(state, encoded)
        along = injected.float()
        share = (decayed.float() * along).sum(-1, keepdim=True) / (along.pow(2).sum(-1, keepdim=True) + ORTHOGONAL_EPS)
        return (decayed.float() - share * along).to(decayed.dtype) + injected


def _to_unit_length(hidden_states: torch.Tensor) -> torch.Tensor:
    in_float = hidden_states.float()
    return (in_float * torch.rsqrt(in_float.pow(2).sum(-1, keepdim=True) + UNIT_EPS)).type_as(hidden_states)


def make_injection(config: LoopedConfig) -> nn.Module:
    """Make the injection `config.injection`."""
    if config.injection == "none":
        return NoInjection()
    if config.injection == "add":
        return AddInjection()
    if config.injection == "unit_add":
        return UnitAddInjection()
    if config.injection == "messages":
        return MessageInjection(config)
    if config.injection == "concat":
        return ConcatInjection(config)
    return OrthogonalInjection(config) if config.injection == "orthogonal" else DiagonalInjection(config)
