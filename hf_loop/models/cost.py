# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a forward pass and a training step cost: parameters times the tokens that they are applied to.

Applying a parameter to a token takes two floating-point operations, and the backward pass four more where gradient
flows (https://huggingface.co/papers/2001.08361). A layer that is called six times costs six times as much, and a loop
without gradient a third of one with. Left out are what attention computes from the length of the text, embeddings
(which are looked up), and what activation checkpointing runs again.

A [`Measure`] says what is added up, the models' `count_work` and `count_steps` over what. That of
`evaluation/flops.py` adds up matrix products, attention by length among them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Span(NamedTuple):
    """The queries of one text that a layer call takes at once.

    Args:
        num_queries (`int`): rows of hidden states.
        num_keys (`int`): keys that each of them is compared with, those that a mask hides included.
        num_cached (`int`): how many of the keys are in a cache in which layers with a sliding window keep their window
            only.
    """

    num_queries: int
    num_keys: int
    num_cached: int = 0


class Measure:
    """What is counted: here the parameters that rows of hidden states are multiplied with."""

    # whether attention and fast weights are counted, by the lengths of texts
    by_length = False

    def module(self, module: nn.Module, config: Any = None) -> int:
        """Count what a module does with one row, of a decoder with configuration `config`."""
        return used_parameters(module, config)

    def attention(self, backbone: Backbone, index: int, spans: Sequence[Span]) -> int:
        """Count what layer `index` computes between the rows of spans."""
        return 0

    def inserted(self, module: nn.Module, spans: Sequence[Span]) -> int:
        """Count what a module that is inserted after a layer computes between the rows of spans."""
        return 0

    def entry(self, backbone: Backbone, index: int) -> int:
        """Count what layer `index` saves in the backward pass over one row if its input carries no gradient, in units
        of the forward pass."""
        return 0


PARAMETERS = Measure()


def floating_point_ops(model: Any, inputs: Mapping[str, Any]) -> int:
    """Count the floating-point operations of a training step: `6 x tokens x (parameters times their calls)`.

    Args:
        model (`RecurrentPreTrainedModel`): a model, with or without a head; its weights may be on the meta device.
        inputs (`Mapping`): the arguments of `forward`, with the numbers of loops, passes or segments of this step
            where they differ from the configuration's. Without tokens among them the result is 0.
    """
    return count_work(model, inputs).operations if num_positions(inputs) else 0


def forward_parameters(model: Any, num_tokens: int = 1, **depth: Any) -> int:
    """Count parameters times their calls in a forward pass over one text, or one segment of a puzzle.

    Args:
        model (`RecurrentPreTrainedModel`): as in [`floating_point_ops`].
        num_tokens (`int`, *optional*, defaults to 1): length of the text. Memories and sleep take part from the second
            block or window on.
        depth: arguments of `forward` such as `num_loops` or `num_sleep_passes`.
    """
    input_ids = torch.empty((1, num_tokens), dtype=torch.long, device="meta")
    return count_work(model, {"input_ids": input_ids, **depth}).applied


def count_work(model: Any, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
    """Count the work of a forward pass of a model with or without a head, given the arguments of `forward`."""
    count = getattr(model, "count_work", None)
    return work_with_head(model, inputs, measure) if count is None else count(inputs, measure)


def work_with_head(model: Any, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
    """Count the work of a forward pass of a model with a head, which is applied at every position."""
    return model.base_model.count_work(inputs, measure) + head_work(model, measure) * num_positions(inputs)


def head_work(model: Any, measure: Measure = PARAMETERS) -> Work:
    """Count the work of the heads of a model on one row."""
    size = sum(measure.module(module) for module in model.children() if module is not model.base_model)
    return Work(size, size)


def steps_work(model: Any, depth: dict[str, Any], steps: Sequence[int], measure: Measure = PARAMETERS) -> Work:
    """Count the work of a decoder or a model with a depth schedule, without a head, on one text.

    Args:
        model (`PreTrainedModel`): the model.
        depth (`dict`): arguments of the depth schedule.
        steps (`Sequence[int]`): numbers of tokens that one forward pass after the other reads, with a cache.
        measure (`Measure`, *optional*): what to count.
    """
    per_row = pass_work(model, depth, measure=measure) + norm_work(model, measure)
    return per_row * sum(steps) + attention_work(model, depth, text_spans(steps), measure)


def text_spans(steps: Iterable[int]) -> list[Span]:
    """List the spans of a text that is read in `steps` tokens, with a cache of all tokens before."""
    spans, num_past = [], 0
    for num_tokens in steps:
        spans.append(Span(num_tokens, num_past + num_tokens, num_past))
        num_past += num_tokens
    return spans


def num_positions(inputs: Mapping[str, Any]) -> int:
    """Return the number of positions in a batch, padding included, 0 without tokens."""
    num_rows, length = text_shape(inputs)
    return num_rows * length


def text_shape(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of rows and positions of a batch, 0 and 0 without tokens."""
    if not isinstance(inputs, Mapping):
        # the rows that TRL's GRPO trainer is about to sample from
        return 0, 0
    tokens = inputs.get("input_ids")
    tokens = inputs.get("inputs_embeds") if tokens is None else tokens
    return (0, 0) if tokens is None else (tokens.shape[0], tokens.shape[1])


def given_depth(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the depth schedule among the inputs, checked as `forward` checks them."""
    names = ("num_loops", "num_backprop_loops")
    return model.depth_arguments(**{name: inputs.get(name) for name in names})


def pass_work(
    model: Any,
    depth: dict[str, Any],
    calls: Sequence[Call] | None = None,
    inserted: Mapping[int, nn.Module] | None = None,
    measure: Measure = PARAMETERS,
) -> Work:
    """Count one pass over one token on a depth schedule, without the final norm and the head, and without attention.

    Args:
        model (`RecurrentModel`): the model without its head.
        depth (`dict`): arguments of the depth schedule.
        calls (`Sequence[Call]`, *optional*): the layer calls to count, by default those of a whole pass with what runs
            between them.
        inserted (`Mapping[int, nn.Module]`, *optional*): modules that run after every call of a layer, by its index.
        measure (`Measure`, *optional*): what to count.
    """
    backbone = Backbone(model)
    schedule = backbone.depth
    sizes = [measure.module(layer, backbone.config) for layer in backbone.layers]
    sizes_after = {layer: measure.module(module) for layer, module in (inserted or {}).items()}

    def size(call: Call) -> int:
        update = 0 if backbone.outer is None else backbone.outer.update_size(call)
        return update + sizes[call.layer] + sizes_after.get(call.layer, 0)

    work = _sum_calls(schedule, depth, calls, size)
    if calls is not None:
        return work
    between = [(measure.module(module), is_trained) for module, is_trained in schedule.calls_between(**depth)]
    # half of a backward pass is the gradient of the input
    saved = sum(measure.entry(backbone, call.layer) for call in schedule.calls_from_constants(**depth)) // 2
    return work + Work(
        sum(size for size, _ in between), sum(size for size, is_trained in between if is_trained) - saved
    )


def attention_work(
    model: Any,
    depth: dict[str, Any],
    spans: Sequence[Span],
    measure: Measure,
    calls: Sequence[Call] | None = None,
    inserted: Mapping[int, nn.Module] | None = None,
) -> Work:
    """Count what a pass computes between the tokens of a text.

    Args:
        model, depth, calls, inserted, measure: as in [`pass_work`].
        spans (`Sequence[Span]`): the queries and keys of the layer calls.
    """
    if not measure.by_length:
        return Work()
    backbone = Backbone(model)
    sizes = [measure.attention(backbone, index, spans) for index in range(len(backbone.layers))]
    for index, module in (inserted or {}).items():
        sizes[index] += measure.inserted(module, spans)
    return _sum_calls(backbone.depth, depth, calls, lambda call: sizes[call.layer])


def _sum_calls(
    schedule: Any, depth: dict[str, Any], calls: Sequence[Call] | None, size: Callable[[Call], int]
) -> Work:
    """Add up the sizes of `calls`, by default those of a whole pass and those that gradient reaches."""
    if calls is not None:
        total = sum(map(size, calls))
        return Work(total, total)
    counts = {name: value for name, value in depth.items() if name != "num_backprop_loops"}
    return Work(sum(map(size, schedule.calls(**counts))), sum(map(size, schedule.trained_calls(**depth))))


def norm_work(model: Any, measure: Measure = PARAMETERS) -> Work:
    """Count the final norm of one token, unless a pass of `model` ends with it."""
    backbone = Backbone(model)
    size = 0 if backbone.depth.ends_with_norm else measure.module(backbone.final_norm)
    return Work(size, size)


def used_parameters(module: nn.Module, config: Any = None, matrices_only: bool = False) -> int:
    """Count the parameters of a module that one token is applied to: no embeddings, and of routed experts only those
    that the router picks, by `config.num_experts_per_tok`. With `matrices_only` norms and biases are left out."""
    # not by `getattr`, which is slow for what a module does not have
    attributes = vars(module)
    # an MLP along the positions is applied to features, not to tokens
    per_token = attributes.get("parameters_per_token")
    if per_token is not None or isinstance(module, nn.Embedding):
        return per_token or 0
    num_experts, num_picked = attributes.get("num_experts"), getattr(config, "num_experts_per_tok", None)
    total = sum(used_parameters(child, config, matrices_only) for child in module.children())
    for name, parameter in module.named_parameters(recurse=False):
        if matrices_only and (parameter.ndim < 2 or name.endswith("bias")):
            continue
        is_routed = num_picked and parameter.ndim == 3 and parameter.shape[0] == num_experts
        total += parameter.numel() * num_picked // num_experts if is_routed else parameter.numel()
    return total


__all__ = ["Measure", "Span", "Work", "floating_point_ops", "forward_parameters"]
