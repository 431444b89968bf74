# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Noise for the initial state that does not depend on batching, padding, caching or compilation, and other draws.

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
# the largest prime below 2**24, so that the phases that follow from it are exact in fp32, and two factors that mix
_PHASE_MODULUS = 16_777_213
_EXAMPLE_FACTOR, _SEED_FACTOR = 104_729, 130_363


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    # torch's shift copies the sign bit: clear the copies
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = x + _GOLDEN_GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def positions_in_example(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Return the positions `[B, T]` of the last `length` tokens of a padded batch, in which padding takes none."""
    return ((attention_mask != 0).long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]


def example_seeds(
    input_ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute a seed for every example from its tokens, so that a resumed run draws the same noise.

    Args:
        input_ids (`torch.LongTensor` of shape `[B, T]`): the tokens.
        positions (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token in its example. Without a
            mask, a new example starts wherever they do not increase by one.
        attention_mask (`torch.Tensor` of shape `[B, T]`, *optional*): 0 at padding, which changes no seed.

    Returns:
        `torch.LongTensor` of shape `[B, T]` or `[B, 1]`: the seed of every token's example.
    """
    hashes = _splitmix64(_splitmix64(positions) ^ input_ids)
    if attention_mask is not None:
        return torch.where(attention_mask != 0, hashes, 0).sum(dim=1, keepdim=True)
    is_first = torch.nn.functional.pad(positions.diff(dim=1) != 1, (1, 0))
    number = is_first.long().cumsum(dim=1).expand_as(input_ids)
    return torch.zeros_like(hashes).scatter_add(1, number, hashes).gather(1, number)


def trajectory_seeds(seeds: torch.Tensor, num_trajectories: int, seed: int) -> torch.Tensor:
    """Compute a seed for every trajectory `[B, N]` of examples with `seeds` `[B, 1]`, given the seed of the run."""
    of_run = _splitmix64(torch.tensor(seed, device=seeds.device))
    return _splitmix64(_splitmix64(seeds ^ of_run) ^ torch.arange(num_trajectories, device=seeds.device))


def random_integers(seeds: torch.Tensor, most: int) -> torch.Tensor:
    """Draw an integer for every seed: 0 half of the time, else uniformly from 0 to `most`."""
    bits = _splitmix64(seeds)
    # the sign is one bit, the integer comes from the others
    return torch.where(bits < 0, _shift_right(bits, 1) % (most + 1), 0)


def truncated_normal(
    seeds: torch.Tensor, positions: torch.Tensor, num_channels: int, std: float, dtype: torch.dtype
) -> torch.Tensor:
    """Draw normal noise that is truncated at three standard deviations.

    Args:
        seeds (`torch.LongTensor` of shape `[B, T]`, `[B, 1]` or `[1, 1]`): seed of every token's example.
        positions (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
        num_channels (`int`): number of channels of the state, D.
        std (`float`): standard deviation before truncation.
        dtype (`torch.dtype`): dtype of the result; the noise is computed in fp32.

    Returns:
        `torch.Tensor` of shape `[B, T, D]`: the noise.
    """
    channels = torch.arange(num_channels, device=positions.device)
    keys = _splitmix64(_splitmix64(seeds) ^ positions)[..., None]
    bits = _splitmix64(keys ^ channels)
    # 23 random bits as a number strictly between -1 and 1, exact in fp32
    uniform = (_shift_right(bits, 41).to(torch.float32) + 0.5) / 2**22 - 1.0
    # erfinv maps uniform numbers in (-erf(3 / sqrt 2), erf(3 / sqrt 2)) to a standard normal truncated at 3
    return (math.sqrt(2.0) * std * torch.erfinv(uniform * math.erf(3.0 / math.sqrt(2.0)))).to(dtype)


def sine_normal(
    seeds: torch.Tensor, positions: torch.Tensor, num_channels: int, std: float, dtype: torch.dtype, state_seed: int
) -> torch.Tensor:
    """Compute the normal noise with which the LoopedLM models are evaluated (ifm-ai/xllm-loop, `looped.py`).

    A channel `c` at position `p` has the uniform number `u = fract(43758.5453123 sin(x))` with
    `x = 0.013579 c + 0.021713 p + phase + 0.123457`, and the noise `sqrt(2) std erfinv(2 u - 1)`. The phase mixes the
    seed of the example and that of the state; it is 0 where both are. The last bits of the sine decide about `u`, so
    that it differs in the third digit between devices.

    Args:
        seeds (`torch.LongTensor` of shape `[B, T]`, `[B, 1]` or `[1, 1]`): seed of every token's example.
        positions (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
        num_channels (`int`): number of channels of the state, D.
        std (`float`): standard deviation.
        dtype (`torch.dtype`): dtype of the result; the noise is computed in fp32.
        state_seed (`int`): seed of the state.

    Returns:
        `torch.Tensor` of shape `[B, T, D]`: the noise.
    """
    mixed = seeds % _PHASE_MODULUS * _EXAMPLE_FACTOR + state_seed % _PHASE_MODULUS * _SEED_FACTOR
    phases = (mixed % _PHASE_MODULUS).float() * (2 * math.pi / _PHASE_MODULUS)
    channels = torch.arange(num_channels, device=positions.device).float()
    # in the order of the source, on which the rounding depends
    angles = channels * 0.013579 + (positions.float() * 0.021713)[..., None] + phases[..., None] + 0.123457
    scaled = angles.sin() * 43758.5453123
    uniform = (scaled - scaled.floor()).clamp(1e-6, 1 - 1e-6)
    return (torch.erfinv(uniform * 2 - 1) * (math.sqrt(2.0) * std)).to(dtype)
