# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Noise for the initial state that does not depend on batching, padding, caching or compilation.

With noise from the global generator, outputs would not be reproducible, and cached decoding would differ from the full
forward pass. Here each number is a hash of (seed of the example, position, channel), mapped to a truncated normal
distribution by its inverse distribution function, so that any slice can be computed by itself.
"""

import math

import torch


# splitmix64 (Steele, Lea and Flood 2014), as signed 64-bit integers, whose products wrap around
_GOLDEN_GAMMA = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    # torch's shift copies the sign bit: clear the copies
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = x + _GOLDEN_GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def example_seeds(input_ids: torch.Tensor) -> torch.Tensor:
    """Compute one seed per example `[B]` from its tokens `[B, T]`, so that a resumed run draws the same noise."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return _splitmix64(_splitmix64(positions) ^ input_ids).sum(dim=1)


def truncated_normal(
    seeds: torch.Tensor, positions: torch.Tensor, num_channels: int, std: float, dtype: torch.dtype
) -> torch.Tensor:
    """Draw normal noise that is truncated at three standard deviations.

    Args:
        seeds (`torch.LongTensor` of shape `[B]` or `[1]`): one seed per example.
        positions (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
        num_channels (`int`): number of channels of the state, D.
        std (`float`): standard deviation before truncation.
        dtype (`torch.dtype`): dtype of the result; the noise is computed in fp32.

    Returns:
        `torch.Tensor` of shape `[B, T, D]`: the noise.
    """
    channels = torch.arange(num_channels, device=positions.device)
    keys = _splitmix64(_splitmix64(seeds[:, None]) ^ positions)[..., None]
    bits = _splitmix64(keys ^ channels)
    # 23 random bits as a number strictly between -1 and 1, exact in fp32
    uniform = (_shift_right(bits, 41).to(torch.float32) + 0.5) / 2**22 - 1.0
    # erfinv maps uniform numbers in (-erf(3 / sqrt 2), erf(3 / sqrt 2)) to a standard normal truncated at 3
    return (math.sqrt(2.0) * std * torch.erfinv(uniform * math.erf(3.0 / math.sqrt(2.0)))).to(dtype)
