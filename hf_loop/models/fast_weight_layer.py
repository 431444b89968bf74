# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A fast-weight layer, to be inserted into a decoder that has only attention."""

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_sleep import SleepConfig
from .fast_weights import DECAYING_RULES, fast_weights, l2_normalize


CONV_KERNEL_SIZE = 4


class ShortConvolution(nn.Module):
    """A causal convolution over the last few tokens, channel by channel, followed by SiLU.

    Args:
        num_channels (`int`): channels, convolved one by one.
        kernel_size (`int`): tokens seen, the current one included.
    """

    def __init__(self, num_channels: int, kernel_size: int):
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(num_channels, 1, kernel_size))

    def forward(self, hidden_states: torch.Tensor, past: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve `[B, T, N]` after `past` `[B, N, kernel_size - 1]`, zero if `None`; also returns the next past."""
        states = hidden_states.transpose(1, 2)
        if past is None:
            past = states.new_zeros(*states.shape[:2], self.kernel_size - 1)
        states = torch.cat([past.to(states.dtype), states], dim=-1)
        convolved = nn.functional.conv1d(states, self.weight, groups=states.shape[1])
        return nn.functional.silu(convolved).transpose(1, 2), states[..., states.shape[-1] - self.kernel_size + 1 :]

    def reset_parameters(self) -> None:
        """Initialize as `nn.Conv1d` does."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero; a class of its own, because transformers initializes by the module's class."""

    def reset_parameters(self) -> None:
        init.zeros_(self.weight)


class FastWeightLayer(nn.Module):
    """A residual fast-weight layer, `h + W_o (norm(o) * silu(W_z x))` with `x = norm(h)`.

    `o` are the reads from the fast weights, after `x` was written to them.

    Queries, keys and values pass a short convolution; keys and queries (for Oja's rule, values too) have length one.
    Strength and decay are those of the gated delta net, https://huggingface.co/papers/2412.06464:
    `b = sigmoid(W_b x)`, `g = -exp(A_log) softplus(W_a x + dt_bias)`. `W_o` starts at zero, so that an untrained layer
    leaves the residual stream unchanged, bit for bit.

    Args:
        config (`SleepConfig`): configuration of the model.
    """

    def __init__(self, config: SleepConfig):
        super().__init__()
        hidden_size = config.hidden_size
        self.rule = config.fast_weight_rule
        self.num_heads = config.fast_weight_num_heads or config.num_attention_heads
        self.head_dim = config.fast_weight_head_dim or max(1, hidden_size // self.num_heads)
        self.has_decay = self.rule in DECAYING_RULES
        inner_size = self.num_heads * self.head_dim
        eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
        self.input_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner_size, bias=False)
        self.conv = ShortConvolution(3 * inner_size, CONV_KERNEL_SIZE)
        self.strength_proj = nn.Linear(hidden_size, self.num_heads, bias=False)
        # CODEPATH: the delta rule and Oja's rule forget by overwriting, the other two by a decay
        if self.has_decay:
            self.decay_proj = nn.Linear(hidden_size, self.num_heads, bias=False)
            self.A_log = nn.Parameter(torch.zeros(self.num_heads))
            self.dt_bias = nn.Parameter(torch.zeros(self.num_heads))
        self.gate_proj = nn.Linear(hidden_size, inner_size, bias=False)
        self.output_norm = nn.RMSNorm(self.head_dim, eps=eps)
        self.o_proj = ZeroLinear(inner_size, hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        recurrent_state: torch.Tensor | None = None,
        conv_state: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read, write, and add to the residual stream.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the residual stream.
            recurrent_state (`torch.Tensor` of shape `[B, H, K, V]`, *optional*): the fast weights, zero if `None`.
            conv_state (`torch.Tensor` of shape `[B, 3 H K, 3]`, *optional*): the convolution's past, zero if `None`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: the residual stream, and the fast weights and the
            convolution's past after the last token.
        """
        normed = self.input_norm(hidden_states)
        qkv, conv_state = self.conv(self.qkv_proj(normed), conv_state)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        v = l2_normalize(v) if self.rule == "oja" else v
        reads, recurrent_state = fast_weights(
            self.rule,
            l2_normalize(q),
            l2_normalize(k),
            v,
            self.strength_proj(normed).float().sigmoid(),
            self.decay(normed),
            recurrent_state,
        )
        reads = self.output_norm(reads).flatten(2) * nn.functional.silu(self.gate_proj(normed))
        return hidden_states + self.o_proj(reads), recurrent_state, conv_state

    def decay(self, normed: torch.Tensor) -> torch.Tensor | None:
        """Return the logarithm of the decay before each token `[B, T, H]`, or `None` for rules without one."""
        if not self.has_decay:
            return None
        # in fp32: a decay near one is lost in bf16
        return -self.A_log.float().exp() * nn.functional.softplus(self.decay_proj(normed).float() + self.dt_bias)

    def reset_parameters(self) -> None:
        """Initialize a slow decay, because `N` passes over a window apply its decay `N` times."""
        if self.has_decay:
            init.zeros_(self.A_log)
            # softplus(dt_bias) = step, from 1e-3 to 1e-1 over the heads as in the gated delta net
            step = torch.exp(torch.linspace(math.log(1e-3), math.log(1e-1), self.num_heads))
            init.copy_(self.dt_bias, step + torch.log(-torch.expm1(-step)))


__all__ = ["FastWeightLayer", "ShortConvolution", "ZeroLinear"]
