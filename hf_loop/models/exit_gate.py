# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The gate of a looped model that tells after every loop how probable it is that a token needs no further loop."""

from contextlib import nullcontext
from typing import Any

import torch

from .backbone import Backbone


class ExitGateMixin:
    """The part of `LoopedModel` that asks its `exit_gate`."""

    def exit_gate_logits(self: Any, state: torch.Tensor, trains_norm: bool = True) -> torch.Tensor:
        """Return the logits of [`exit_gate_probability`], in float32; with `trains_norm=False` no gradient reaches the
        norm before the gate."""
        if not self.config.exit_gate:
            raise ValueError("`exit_gate` of the configuration must be True for exits by the gate, got False")
        # CODEPATH: Ouro's loop ends with the final norm; other models apply it here
        if self.config.loop_norm != "final":
            with nullcontext() if trains_norm else torch.no_grad():
                state = Backbone(self).norm(state)
        return self.exit_gate(state).squeeze(-1).float()

    def exit_gate_probability(self: Any, state: torch.Tensor) -> torch.Tensor:
        """Compute the probability that a token which has come to the end of a loop exits there.

        This is `lambda_t` of https://huggingface.co/papers/2510.25741: the exit is after loop t with probability
        `lambda_t (1 - lambda_1) ... (1 - lambda_{t-1})`, and after the last loop with the rest.

        Args:
            state (`torch.Tensor` of shape `[..., D]`): the state after a loop, as `run_loop` of the schedule returns.

        Returns:
            `torch.Tensor` of shape `[...]`: the probability, in float32.

        Raises:
            ValueError: if the model has no gate.
        """
        return self.exit_gate_logits(state).sigmoid()


__all__ = ["ExitGateMixin"]
