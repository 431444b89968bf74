# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The state of a looped model before its first loop."""

from typing import Any

import torch

from .state_noise import example_seeds, positions_in_example, sine_normal, truncated_normal


def state_std(config: Any) -> float:
    """Return `config.state_std`, by default `sqrt(2 / (5 hidden_size))` as for Huginn's weights (2502.05171)."""
    # CODEPATH: Huginn and its retrofits start from another standard deviation than the default
    if config.state_std is not None:
        return config.state_std
    return (2.0 / (5.0 * config.hidden_size)) ** 0.5


def noise_inputs(
    inputs: Any, position_ids: torch.Tensor, per_example: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what the noise of every token is computed from: its position, and the seed of its example if examples get
    different noise; neither depends on padding or on other examples."""
    input_ids, mask = inputs.input_ids, inputs.attention_mask
    is_padding = isinstance(mask, torch.Tensor) and mask.ndim == 2
    if is_padding:
        position_ids = positions_in_example(mask, position_ids.shape[-1])
    if not per_example or input_ids is None:
        return position_ids, None
    return position_ids, example_seeds(input_ids, position_ids, mask if is_padding else None)


class InitialStateMixin:
    """The part of `LoopedModel` that makes the first state."""

    def first_state(
        self: Any, encoded: torch.Tensor, inputs: Any, position_ids: torch.Tensor, noise_per_example: bool = False
    ) -> torch.Tensor:
        """Make the state before the first loop of a pass, `[B, T, D]`, from the prelude's output `[B, T, D]`."""
        # CODEPATH: Huginn starts from noise, Ouro and others do not
        if not self.config.starts_from_noise:
            return self.make_initial_state(encoded)
        return self.make_initial_state(encoded, *noise_inputs(inputs, position_ids, noise_per_example))

    def make_initial_state(
        self: Any, encoded: torch.Tensor, position_ids: torch.Tensor | None = None, seeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make the state before the first loop, `[B, T, D]`.

        Args:
            encoded (`torch.Tensor` of shape `[B, T, D]`): the prelude's output.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`, *optional*): positions, which noise is
                computed from.
            seeds (`torch.LongTensor` of shape `[B, T]` or `[B, 1]`, *optional*): seeds of this noise, by default 0.

        Raises:
            ValueError: if the state is noise and there are no positions.
        """
        state_init = self.config.state_init
        if state_init == "input":
            return encoded
        if state_init == "zeros":
            return torch.zeros_like(encoded)
        if state_init == "learned":
            return self.initial_state.to(encoded.dtype).expand_as(encoded)
        if position_ids is None:
            raise ValueError(f"`state_init={state_init!r}` needs `position_ids`, from which its noise is computed")
        seeds = position_ids.new_zeros(1, 1) if seeds is None else seeds
        return make_noise(self.config, seeds, position_ids, encoded)


def make_noise(config: Any, seeds: torch.Tensor, position_ids: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
    """Make the noise of `config.state_init`, as large as `encoded` `[B, T, D]`, from the seeds and the positions."""
    num_channels, std = encoded.shape[-1], state_std(config)
    # CODEPATH: LoopedLM's models are evaluated with the noise of a hash of their authors
    if config.state_init == "sine_normal":
        noise = sine_normal(seeds, position_ids, num_channels, std, encoded.dtype, config.state_seed)
    else:
        noise = truncated_normal(seeds, position_ids, num_channels, std, encoded.dtype)
    return noise.expand_as(encoded)


__all__ = ["InitialStateMixin", "make_noise", "noise_inputs", "state_std"]
