# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""How a looped model is given an objective of `exit_losses.py`, and what a step with one costs."""

from collections.abc import Mapping
from typing import Any

import torch

from .backbone import Backbone
from .cost import (
    PARAMETERS,
    Measure,
    Work,
    given_depth,
    norm_work,
    num_positions,
    pass_work,
    used_parameters,
    work_with_head,
)
from .exit_losses import ExitObjective, ExitObjectiveKind, exit_loss, scored_tokens
from .puzzle_loss import IGNORE_INDEX


class ExitTrainingMixin:
    """The part of `LoopedForCausalLM` that computes the loss of an `exit_objective`."""

    def objective_arguments(
        self: Any, exit_objective: ExitObjective | ExitObjectiveKind, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the arguments of `forward` that an objective sets.

        Args:
            exit_objective (`ExitObjective` or `str`): the objective, or its kind.
            kwargs (`dict`): the other arguments.

        Raises:
            ValueError: if the labels are missing, or the gate that the objective uses.
        """
        objective: Any = exit_objective
        # not by the class `ExitObjective`: code that came with a checkpoint has one of its own
        if isinstance(objective, str):
            objective = ExitObjective(objective)
        objective.check(self.config, kwargs.get("labels"))
        return {"exit_objective": objective, "output_loop_hidden_states": True, "output_loop_states": True}

    def compute_loss(
        self: Any,
        outputs: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None,
        kwargs: dict[str, Any],
        exit_objective: ExitObjective | None = None,
        **own,
    ) -> torch.Tensor:
        """Compute the loss of the objective, without one that of the last loop."""
        if exit_objective is None:
            return super().compute_loss(outputs, logits, labels, loss_weights, kwargs)
        tokens = scored_tokens(labels, logits.device, loss_weights, **kwargs)
        loss = exit_loss(self, exit_objective, outputs, tokens)
        if exit_objective.uses_gate:
            return loss
        return super().compute_loss(outputs, logits, labels, loss_weights, kwargs) + loss

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        """Count the work of a forward pass, given the arguments of `forward`."""
        objective = inputs.get("exit_objective")
        if objective is None:
            return work_with_head(self, inputs, measure)
        if measure is not PARAMETERS:
            raise ValueError(f"`exit_objective` must be None, got {objective}: only its parameters can be counted")
        return work_with_exits(self, objective, inputs)


def work_with_exits(model: Any, objective: ExitObjective | str, inputs: Mapping[str, Any]) -> Work:
    """Count the work of a forward pass with an objective, as `cost.py` counts that of others.

    Args:
        model (`LoopedForCausalLM`): the model.
        objective (`ExitObjective` or `str`): the objective, or its kind.
        inputs (`Mapping`): the arguments of `forward`.
    """
    kind = objective if isinstance(objective, str) else objective.kind
    body, labels = model.model, inputs.get("labels")
    depth = given_depth(body, inputs)
    schedule, num_loops = Backbone(body).depth, depth["num_loops"]
    num_tokens, head = num_positions(inputs), used_parameters(model.lm_head)
    num_scored = num_tokens if labels is None else int((labels[:, 1:] != IGNORE_INDEX).sum())
    before_coda = sum(used_parameters(module) for module in schedule.modules_before_coda())
    readout = pass_work(body, depth, schedule.coda_calls()) + Work(before_coda, before_coda) + norm_work(body)
    # the pass and its logits, and the coda after every loop but the last
    work = body.count_work(inputs) + readout * ((num_loops - 1) * num_tokens)
    if kind == "distillation":
        heads = Work(head * num_loops, head * (num_loops - 1)) * num_scored
        return work + Work(head, head) * num_tokens + heads
    norm = 0 if body.config.loop_norm == "final" else used_parameters(schedule.norm)
    gate = used_parameters(body.exit_gate)
    work += Work(head) * num_tokens
    if kind == "gain":
        return work.without_gradient() + Work(head + norm + gate, gate) * (num_loops * num_scored)
    return work + Work(head + norm + gate, head + norm + gate) * (num_loops * num_scored)


__all__ = ["ExitTrainingMixin", "work_with_exits"]
