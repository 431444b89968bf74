# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Checks that a family can run a decoder, beyond the loops and the cache that `backbone_check.py` tests.

For an architecture that the tests do not cover, the family's schedule is tried on a small twin: with all blocks kept,
or with one window for all tokens, the model must equal the base model, and a memory must neither look ahead nor lose
what it has read.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig

from .backbone import Backbone
from .backbone_check import CACHE_TOLERANCE, describe
from .backbone_parts import BackboneSpec
from .backbone_specs import LOOPED_BACKBONES, find_spec, is_tested
from .backbone_twin import NoTwinError, fingerprint, make_twin, twin_context


NUM_TOKENS = 11
# smallest difference that counts as an effect, not as rounding
VISIBLE = 1e-5

# (purpose, configuration, entry) -> the first difference, or None
_RESULTS: dict[Any, str | None] = {}


def check_blocks(config: Any, backbone: Backbone, model_class: type[nn.Module]) -> None:
    """Refuse decoders that cannot be run in blocks, or whose layers cannot take memory queries.

    Args:
        config (`FeedbackConfig`): the model's configuration.
        backbone (`Backbone`): its backbone.
        model_class (`type`): the class [`FeedbackModel`].

    Raises:
        ValueError: if one of the two is the case, with the reason.
    """
    decoder, spec = config.decoder_config, backbone.spec
    if spec.counts_columns:
        raise ValueError(
            f"`backbone_config.model_type` {decoder.model_type!r} cannot have blocks: its layers depend on the "
            "columns of their cache, which is a ring buffer here"
        )
    if config.feedback_length:
        _check_memory_queries(config, spec, backbone.layers)
    if not _is_covered(decoder):
        _try("have blocks", decoder, lambda twin: _blocks_difference(twin, model_class))


def _check_memory_queries(config: Any, spec: BackboneSpec, layers: Any) -> None:
    model_type = config.decoder_config.model_type
    if spec.layers_take_token_ids:
        raise ValueError(
            f"`feedback_length` must be 0 for a {model_type} backbone, got {config.feedback_length}: its layers embed "
            "tokens too, and a memory has none"
        )
    if config.zero_first_residual and not all(hasattr(layer, spec.layer_entry) for layer in layers):
        raise ValueError(
            f"`zero_first_residual` must be False for a {model_type} backbone: its layers have no {spec.layer_entry} "
            "beside the residual, got True"
        )


def check_sleep(decoder: PreTrainedConfig, model_class: type[nn.Module]) -> None:
    """Refuse decoders that cannot sleep.

    Args:
        decoder (`PreTrainedConfig`): the decoder's configuration.
        model_class (`type`): the class [`SleepModel`].

    Raises:
        ValueError: if the decoder cannot sleep, with the reason.
    """
    spec = find_spec(decoder)
    reason = None
    if spec.layers_take_token_ids:
        reason = "its layers embed tokens themselves, and later passes have none"
    elif spec.adds_positions:
        reason = "it adds positions to the embeddings, where they cannot be counted within a window"
    if reason is not None:
        raise ValueError(f"`backbone_config.model_type` {decoder.model_type!r} cannot sleep: {reason}")
    has_states = "linear_attention" in (getattr(decoder, "layer_types", None) or [])
    if not _is_covered(decoder) or (has_states and not spec.keeps_fast_weights):
        _try("sleep", decoder, lambda twin: _sleep_difference(twin, model_class))


def check_both_directions(decoder: PreTrainedConfig, model_class: type[nn.Module]) -> None:
    """Refuse decoders whose layers cannot attend in both directions.

    Args:
        decoder (`PreTrainedConfig`): the decoder's configuration.
        model_class (`type`): the class [`HierarchicalPuzzleModel`].

    Raises:
        ValueError: if the decoder's layers cannot attend in both directions.
    """
    _try("run in both directions", decoder, lambda twin: _direction_difference(twin, model_class))


def _is_covered(decoder: PreTrainedConfig) -> bool:
    """Return whether tests cover the decoder; one that loops by itself has no twin, and is covered too."""
    return is_tested(decoder) or decoder.model_type in LOOPED_BACKBONES


def _try(purpose: str, decoder: PreTrainedConfig, find_difference: Callable[[Any], str | None]) -> None:
    key = (purpose, fingerprint(decoder), find_spec(decoder))
    if key not in _RESULTS:
        _RESULTS[key] = _on_a_twin(purpose, decoder, find_difference)
    if _RESULTS[key] is not None:
        raise ValueError(f"`backbone_config.model_type` {decoder.model_type!r} cannot {purpose}: {_RESULTS[key]}")


def _on_a_twin(purpose: str, decoder: PreTrainedConfig, find_difference: Callable[[Any], str | None]) -> str | None:
    with twin_context():
        try:
            twin = make_twin(decoder)
        except NoTwinError as error:
            return str(error)
        # making the model of the twin would start this check again
        of_twin = (purpose, fingerprint(twin.config), find_spec(decoder))
        known = of_twin in _RESULTS
        _RESULTS.setdefault(of_twin, None)
        try:
            return find_difference(twin)
        except Exception as error:  # layers of an unknown architecture may raise anything
            return describe(error)
        finally:
            if not known:
                del _RESULTS[of_twin]


def _make(model_class: Any, twin: Any, **fields: Any) -> Any:
    """Make a family's model with the twin as backbone."""
    model = model_class(model_class.config_class(backbone_config=twin.config, **fields)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.backbone = twin.base_model
    return model


def _draw_ids(twin: Any) -> torch.Tensor:
    vocab_size = twin.config.vocab_size
    generator = torch.Generator().manual_seed(2)
    return torch.randint(min(3, vocab_size - 1), vocab_size, (2, NUM_TOKENS), generator=generator)


def _changed(input_ids: torch.Tensor, index: int, twin: Any) -> torch.Tensor:
    changed = input_ids.clone()
    changed[:, index] = (changed[:, index] + 1) % twin.config.vocab_size
    return changed


def _states(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(input_ids, **kwargs).last_hidden_state


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Describe the difference of two results, `None` if it is rounding."""
    difference, size = (found - expected).abs().max().item(), expected.abs().max().item()
    return None if difference <= CACHE_TOLERANCE * max(1.0, size) else f"{difference:.2g} (the largest is {size:.2g})"


def _cached(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    pieces = input_ids.split([6, 2] + [1] * (NUM_TOKENS - 8), dim=1)
    return torch.cat([_states(model, piece, cache=cache) for piece in pieces], dim=1)


def _blocks_difference(twin: Any, model_class: type[nn.Module]) -> str | None:
    input_ids = _draw_ids(twin)
    expected = _states(twin.base_model, input_ids, use_cache=False)
    model = _make(model_class, twin, block_size=4, num_memory_segments=None, feedback_length=0)
    difference = _differ(_states(model, input_ids, use_cache=False), expected)
    if difference is not None:
        return f"with all blocks kept and no memory, its states differ from the base model's by {difference}"
    if find_spec(twin.config).layers_take_token_ids:
        return None
    fields = {"block_size": 4, "num_memory_segments": 0, "feedback_length": 2, "zero_first_residual": False}
    model = _make(model_class, twin, **fields)
    states = _states(model, input_ids, use_cache=False)
    late = _states(model, _changed(input_ids, 6, twin), use_cache=False)
    if (late - states)[:, :6].abs().max() > CACHE_TOLERANCE:
        return "with a memory, tokens depend on later ones"
    difference = _differ(_cached(model, input_ids), states)
    return None if difference is None else f"with a memory, a cache changes its states by {difference}"


def _sleep_difference(twin: Any, model_class: Any) -> str | None:
    input_ids = _draw_ids(twin)
    expected = _states(twin.base_model, input_ids, use_cache=False)
    model = model_class(model_class.config_class(backbone_config=twin.config, sleep_window=NUM_TOKENS)).eval()
    model.backbone = twin.base_model
    for layer in model.memory_layers:
        layer.reset_parameters()
    difference = _differ(_states(model, input_ids, use_cache=False), expected)
    if difference is not None:
        return f"in one window, its states differ from the base model's by {difference}"
    model = _make(model_class, twin, sleep_window=4, num_sleep_passes=2)
    states = _states(model, input_ids, use_cache=False)
    difference = _differ(_cached(model, input_ids), states)
    if difference is not None:
        return f"over several windows, a cache changes its states by {difference}"
    # layers that do not continue from a recurrent state alone forget earlier windows
    other = _states(model, _changed(input_ids, 1, twin), use_cache=False)
    if (other - states)[:, 4:].abs().max() <= VISIBLE:
        return "a window has no effect on the next one"
    return None


def _direction_difference(twin: Any, model_class: type[nn.Module]) -> str | None:
    input_ids = _draw_ids(twin)
    model = _make(model_class, twin, num_loops=1, low_cycles=1, shared_stack=True)
    states = _states(model, input_ids)
    for changed, seen_at in ((NUM_TOKENS - 1, 0), (0, NUM_TOKENS - 1)):
        other = _states(model, _changed(input_ids, changed, twin))
        if (other - states)[:, seen_at].abs().max() <= VISIBLE:
            return f"position {changed} has no effect on position {seen_at}"
    return None


__all__ = ["check_blocks", "check_both_directions", "check_sleep"]
