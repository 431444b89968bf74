# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a forward pass and a training step cost: parameters times the tokens that they are applied to.

Applying a parameter to a token takes two floating-point operations, and the backward pass four more where gradient
flows (https://huggingface.co/papers/2001.08361). A layer that is called six times costs six times as much, and a loop
without gradient a third of one with. Left out are what attention computes from the length of the text, embeddings
(which are looked up), and what activation checkpointing runs again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .backbone import Backbone
from .schedules import Call


@dataclass(frozen=True)
class Work:
    """Parameters times the tokens that they are applied to.

    Args:
        applied (`int`): in the forward pass.
        trained (`int`): those of them that gradient reaches in the backward pass.
    """

    applied: int = 0
    trained: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.applied + other.applied, self.trained + other.trained)

    def __mul__(self, times: int) -> "Work":
        return Work(self.applied * times, self.trained * times)

    def without_gradient(self) -> "Work":
        """Return the same work in a forward pass alone."""
        return Work(self.applied)

    @property
    def operations(self) -> int:
        """Floating-point operations of the forward and the backward pass."""
        return 2 * self.applied + 4 * self.trained


def floating_point_ops(model: Any, inputs: Mapping[str, Any]) -> int:
    """Count the floating-point operations of a training step: `6 x tokens x (parameters times their calls)`.

    Args:
        model (`RecurrentPreTrainedModel`): a model, with or without a head; its weights may be on the meta device.
        inputs (`Mapping`): the arguments of `forward`, with the numbers of loops, passes or segments of this step
            where they differ from the configuration's. Without tokens among them the result is 0.
    """
    return _work(model, inputs).operations if num_positions(inputs) else 0


def forward_parameters(model: Any, num_tokens: int = 1, **depth: Any) -> int:
    """Count parameters times their calls in a forward pass over one text, or one segment of a puzzle.

    Args:
        model (`RecurrentPreTrainedModel`): as in [`floating_point_ops`].
        num_tokens (`int`, *optional*, defaults to 1): length of the text. Memories and sleep take part from the second
            block or window on.
        depth: arguments of `forward` such as `num_loops` or `num_sleep_passes`.
    """
    input_ids = torch.empty((1, num_tokens), dtype=torch.long, device="meta")
    return _work(model, {"input_ids": input_ids, **depth}).applied


def _work(model: Any, inputs: Mapping[str, Any]) -> Work:
    return model.count_work(inputs) if hasattr(model, "count_work") else work_with_head(model, inputs)


def work_with_head(model: Any, inputs: Mapping[str, Any]) -> Work:
    """Count the work of a forward pass of a model with a head, which is applied at every position."""
    body = model.base_model
    heads = [module for module in model.children() if module is not body]
    size = sum(map(used_parameters, heads))
    return body.count_work(inputs) + Work(size, size) * num_positions(inputs)


def num_positions(inputs: Mapping[str, Any]) -> int:
    """Return the number of positions in a batch, padding included, 0 without tokens."""
    if not isinstance(inputs, Mapping):
        # the rows that TRL's GRPO trainer is about to sample from
        return 0
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"].numel()
    embeddings = inputs.get("inputs_embeds")
    return 0 if embeddings is None else embeddings.shape[:-1].numel()


def given_depth(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the depth schedule among the inputs, checked as `forward` checks them."""
    names = ("num_loops", "num_backprop_loops")
    return model.depth_arguments(**{name: inputs.get(name) for name in names})


def pass_work(
    model: Any,
    depth: dict[str, Any],
    calls: Sequence[Call] | None = None,
    inserted: Mapping[int, nn.Module] | None = None,
) -> Work:
    """Count one pass over one token on a depth schedule, without the final norm and the head.

    Args:
        model (`RecurrentModel`): the model without its head.
        depth (`dict`): arguments of the depth schedule.
        calls (`Sequence[Call]`, *optional*): the layer calls to count, by default those of a whole pass with what runs
            between them.
        inserted (`Mapping[int, nn.Module]`, *optional*): modules that run after every call of a layer, by its index.
    """
    backbone = Backbone(model)
    schedule = backbone.depth
    counts = {name: value for name, value in depth.items() if name != "num_backprop_loops"}
    sizes = [used_parameters(layer, backbone.config) for layer in backbone.layers]
    sizes_after = {layer: used_parameters(module) for layer, module in (inserted or {}).items()}

    def count(some: Sequence[Call]) -> int:
        updates = 0 if backbone.outer is None else sum(map(backbone.outer.update_size, some))
        return updates + sum(sizes[call.layer] + sizes_after.get(call.layer, 0) for call in some)

    if calls is not None:
        return Work(count(calls), count(calls))
    between = [(used_parameters(module), is_trained) for module, is_trained in schedule.calls_between(**depth)]
    return Work(
        count(schedule.calls(**counts)) + sum(size for size, _ in between),
        count(schedule.trained_calls(**depth)) + sum(size for size, is_trained in between if is_trained),
    )


def norm_work(model: Any) -> Work:
    """Count the final norm of one token, unless a pass of `model` ends with it."""
    backbone = Backbone(model)
    size = 0 if backbone.depth.ends_with_norm else used_parameters(backbone.final_norm)
    return Work(size, size)


def used_parameters(module: nn.Module, config: Any = None) -> int:
    """Count the parameters of a module that one token is applied to: no embeddings, and of routed experts only those
    that the router picks, by `config.num_experts_per_tok`."""
    # not by `getattr`, which is slow for what a module does not have
    attributes = vars(module)
    # an MLP along the positions is applied to features, not to tokens
    per_token = attributes.get("parameters_per_token")
    if per_token is not None or isinstance(module, nn.Embedding):
        return per_token or 0
    num_experts, num_picked = attributes.get("num_experts"), getattr(config, "num_experts_per_tok", None)
    total = sum(used_parameters(child, config) for child in module.children())
    for parameter in module.parameters(recurse=False):
        is_routed = num_picked and parameter.ndim == 3 and parameter.shape[0] == num_experts
        total += parameter.numel() * num_picked // num_experts if is_routed else parameter.numel()
    return total


__all__ = ["Work", "floating_point_ops", "forward_parameters"]
