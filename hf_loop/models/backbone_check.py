# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Compares the entry of an architecture with its base model. Only checked entries are used.

One loop over all layers must equal the causal model bit for bit, with padding on the left, and at two loops a cache
must not change the logits. When a model is made, both are tested on a small twin of its configuration with random
weights; `retrofit` also tests the first on the pretrained model itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from .backbone_parts import BackboneSpec, missing_parts
from .backbone_specs import PUZZLE_BACKBONES, REFUSED_BACKBONES, REGISTERED_BACKBONES, TWO_STACK_BACKBONES
from .backbone_twin import NoTwinError, fingerprint, make_twin, twin_context
from .evaluation_mode import evaluation_mode
from .schedules import Call


# largest difference of logits in single precision that counts as rounding
CACHE_TOLERANCE = 1e-4
NUM_TOKENS = 9
# padding of the first of two sequences
NUM_PADDED = 3

# (configuration, entry) -> the first difference, or None
_RESULTS: dict[Any, str | None] = {}


class BackboneCheck(NamedTuple):
    """The result of a comparison with the base model.

    Args:
        difference (`str`, *optional*): the first difference, `None` if there is none.
        num_layers (`int`): number of layers of the twin.
        cache_difference (`float`, *optional*): largest difference between logits with and without a cache.
    """

    difference: str | None
    num_layers: int = 0
    cache_difference: float | None = None


def check_entry(
    config: PreTrainedConfig,
    spec: BackboneSpec,
    open_backbone: Callable[..., Any],
    causal_class: type[PreTrainedModel] | None = None,
) -> None:
    """Refuse an architecture whose entry differs from its base model. Results are kept for the process.

    Args:
        config (`PreTrainedConfig`): the decoder's configuration.
        spec (`BackboneSpec`): the entry.
        open_backbone (`Callable`): the class [`Backbone`].
        causal_class (`type`, *optional*): class of its causal language models, by default that of the Auto classes.

    Raises:
        ValueError: if there is a difference; the message names it.
    """
    key = (fingerprint(config), spec)
    if key not in _RESULTS:
        _RESULTS[key] = check_twin(config, spec, open_backbone, causal_class).difference
    difference = _RESULTS[key]
    if difference is not None:
        raise ValueError(f"`backbone_config.model_type` {config.model_type!r} cannot be opened: {difference}")


def check_refusal(config: PreTrainedConfig) -> None:
    """Refuse a decoder that no entry can describe, without a test.

    Raises:
        ValueError: if it is one; the message says why.
    """
    reason = refusal(config)
    if reason is not None:
        raise ValueError(f"`backbone_config.model_type` {config.model_type!r} cannot be opened: {reason}")


def refusal(config: PreTrainedConfig) -> str | None:
    """Return why no entry can describe a decoder, `None` if one may. An entry that the user registered is tested."""
    return None if config.model_type in REGISTERED_BACKBONES else REFUSED_BACKBONES.get(config.model_type)


def check_twin(
    config: PreTrainedConfig,
    spec: BackboneSpec,
    open_backbone: Callable[..., Any],
    causal_class: type[PreTrainedModel] | None = None,
) -> BackboneCheck:
    """Compare an entry with a small twin of the configuration, independently of the current device and dtype."""
    if config.model_type in PUZZLE_BACKBONES:
        return BackboneCheck("its layers see all positions, as HierarchicalForPuzzle runs them")
    if config.model_type in TWO_STACK_BACKBONES:
        return BackboneCheck("it has two stacks, which HierarchicalConfig runs")
    reason = refusal(config)
    if reason is not None:
        return BackboneCheck(reason)
    with twin_context():
        try:
            twin = make_twin(config, causal_class)
        except NoTwinError as error:
            return BackboneCheck(str(error))
        difference = _check_structure(twin, spec) or check_one_loop(twin, spec, open_backbone)
        num_layers = twin.config.num_hidden_layers
        if difference is not None:
            return BackboneCheck(difference, num_layers)
        return _check_cache(twin, spec, open_backbone, num_layers)


def check_one_loop(model: PreTrainedModel, spec: BackboneSpec, open_backbone: Callable[..., Any]) -> str | None:
    """Return the difference between a causal model and one loop over all of its layers, `None` if there is none."""
    base: Any = model
    vocab_size = model.config.vocab_size
    embeddings: Any = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(min(3, vocab_size - 1), vocab_size, (2, NUM_TOKENS), generator=generator)
    input_ids = input_ids.to(embeddings.weight.device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :NUM_PADDED] = 0
    visible = attention_mask.bool()
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    with evaluation_mode(model):
        expected = base(**inputs, use_cache=False).logits[visible]
        try:
            logits = _run_loops(model, spec, open_backbone, **inputs)[visible]
        except Exception as error:  # an unknown architecture may raise anything
            return f"its layers cannot be run by themselves: {describe(error)}"
        if logits.shape == expected.shape and torch.equal(logits, expected):
            return None
        # kernels of some accelerators are not deterministic
        again = base(**inputs, use_cache=False).logits[visible]
    if logits.shape != expected.shape:
        return f"its logits have the shape {tuple(expected.shape)}, one loop's {tuple(logits.shape)}"
    difference = (logits - expected).abs().max().item()
    noise = (again - expected).abs().max().item()
    if difference <= 2 * noise:
        return None
    size = expected.abs().max().item()
    return (
        f"one loop differs from the base model by up to {difference:.2g} in its logits (the largest is {size:.2g}): "
        "its forward does something around the layers that its entry does not describe"
    )


def _check_structure(model: PreTrainedModel, spec: BackboneSpec) -> str | None:
    base: Any = model
    missing = missing_parts(base.base_model, spec)
    if missing:
        return f"its base model has no {', '.join(missing)}"
    head: Any = model.get_output_embeddings()
    if head is None or base.base_model is base:
        return f"{type(base).__name__} has no head over the vocabulary"
    shape = tuple(getattr(model.config, name, None) for name in ("vocab_size", "hidden_size"))
    if not isinstance(head, nn.Linear) or tuple(head.weight.shape) != shape:
        found = tuple(getattr(head, "weight", torch.empty(0)).shape)
        return f"its head is a {type(head).__name__} of {found}, not a linear map of {shape}"
    if (head.bias is not None) != spec.head_bias:
        return f"its head has {'no' if head.bias is None else 'a'} bias, unlike `head_bias` of its entry"
    return None


def _check_cache(
    model: PreTrainedModel, spec: BackboneSpec, open_backbone: Callable[..., Any], num_layers: int
) -> BackboneCheck:
    generator = torch.Generator().manual_seed(1)
    vocab_size = model.config.vocab_size
    input_ids = torch.randint(min(3, vocab_size - 1), vocab_size, (2, NUM_TOKENS), generator=generator)
    with torch.no_grad():
        expected = _run_loops(model, spec, open_backbone, input_ids, num_loops=2)
        # one slot for every layer call
        cache, second = DynamicCache(config=model.config), DynamicCache(config=model.config)
        cache.layers.extend(second.layers)
        try:
            pieces = [
                _run_loops(model, spec, open_backbone, piece, num_loops=2, cache=cache)
                for piece in input_ids.split([5, 2] + [1] * (NUM_TOKENS - 7), dim=1)
            ]
        except Exception as error:  # an unknown architecture may raise anything
            return BackboneCheck(f"its layers cannot be run with a cache: {describe(error)}", num_layers)
    difference = (torch.cat(pieces, dim=1) - expected).abs().max().item()
    if difference <= CACHE_TOLERANCE * max(1.0, expected.abs().max().item()):
        return BackboneCheck(None, num_layers, difference)
    return BackboneCheck(
        f"at two loops a cache changes the logits by up to {difference:.2g} (the largest is "
        f"{expected.abs().max().item():.2g})",
        num_layers,
        difference,
    )


def _run_loops(
    model: Any,
    spec: BackboneSpec,
    open_backbone: Callable[..., Any],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    num_loops: int = 1,
    cache: Any = None,
) -> torch.Tensor:
    """Compute logits `[B, T, V]` of loops over all layers, with a cache slot for every layer call."""
    backbone = open_backbone(model.base_model, spec)
    inputs_embeds = backbone.embed(input_ids)
    position_ids = backbone.next_positions(inputs_embeds, cache, attention_mask)
    use_cache = cache is not None
    inputs = backbone.prepare(inputs_embeds, attention_mask, position_ids, cache, use_cache, input_ids)
    hidden_states = backbone.enter(inputs_embeds, position_ids)
    num_layers = len(backbone.layers)
    for loop in range(num_loops):
        for index in range(num_layers):
            hidden_states = backbone.run_call(Call(index, loop * num_layers + index, loop), hidden_states, inputs)
    hidden_states = spec.enter_head(model.config, backbone.norm(hidden_states))
    return spec.finish_logits(model.config, model.get_output_embeddings()(hidden_states))


def describe(error: Exception) -> str:
    """Describe an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


__all__ = ["BackboneCheck", "check_entry", "check_one_loop", "check_twin"]
