# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Refuses keywords of a forward pass that no part of the model reads.

Every forward in transformers accepts `**kwargs`. Without this check a misspelt `num_loop=8`, or another model's
`num_steps=32`, would be ignored, and a sweep over depths would measure one depth.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import TransformersKwargs

from .checks import LOOPS_ELSEWHERE, nearest
from .transformers_seams import attention_function


# keywords that callers send to any language model, with the reasons
ALLOWED_KEYWORDS: dict[str, str] = {
    **dict.fromkeys(TransformersKwargs.__annotations__, "transformers lists them for every model"),
    "return_dict": "every caller in transformers; its decorators take it",
    "use_cache": "transformers' decorators set it from the configuration, even for a model without a cache",
    "debug_io": "transformers' tracing of a forward pass, which its decorators do",
    "debug_io_dir": "as `debug_io`",
    "prune_layers": "as `debug_io`",
    "token_type_ids": "tokenizers write them, PEFT sets them to None; a causal decoder has no use for them",
    "shift_labels": "Trainer under sequence parallelism: labels for the loss that are shifted already",
    "ignore_index": "transformers' losses: the label to ignore",
    "skip_logits": "Liger and TRL with it: saves memory and changes no result",
    "kernel_options": "flex attention",
    "block_sequence_ids": "transformers' masks: tokens that see each other in both directions",
    "and_mask_function": "transformers' masks: a further condition on what a token sees",
    "paged_cache": "continuous batching: its cache, which `takes_cache` gives this name up to transformers 5.23",
    "block_table": "continuous batching",
    "cache_seqlens": "continuous batching: tokens in a block table",
    "read_index": "continuous batching",
    "write_index": "continuous batching",
    "logits_indices": "continuous batching",
    "logits_processor_args": "continuous batching",
    "attention_instances": "the transformers back-ends of vLLM and SGLang: their attention, by layer index",
    "forward_batch": "the transformers back-end of SGLang: inputs of its attention",
}
ENGINE_KEYWORDS = ("attention_instances", "forward_batch")
# set by the model for every layer call: from a caller they would have no effect, or collide
_SET_FOR_LAYERS = frozenset(
    ("hidden_states", "attention_mask", "position_embeddings", "position_ids", "use_cache", "cache", "token_ids")
    + ("past_key_values", "layer_past", "cycle_offset")
)
# keywords of models with a head, as suggestions for a misspelt one
_HEAD_KEYWORDS = ("labels", "logits_to_keep", "output_loop_logits", "exit_objective", "loss_weights") + (
    *("num_segments", "output_segments"),
)
_PASSES_ELSEWHERE = ("num_passes", "sleep_passes", "n_passes")
_OUTPUTS = {
    "output_hidden_states": "hidden_states",
    "output_attentions": "attentions",
    "output_router_logits": "router_logits",
}


def layer_keywords(backbone: nn.Module) -> frozenset[str]:
    """Return the keywords that a backbone's layers, or the modules they pass keywords to, name."""
    names = set()
    for module_class in {type(module) for module in backbone.modules()} - {type(backbone)}:
        parameters = inspect.signature(module_class.forward).parameters.values()
        # a module without `**kwargs` gets no keywords from outside: its layer names all arguments
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            names |= {parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
    return frozenset(names) - _SET_FOR_LAYERS - {"self"}


def known_keywords(backbone: nn.Module, refused: dict[str, str]) -> frozenset[str]:
    """Return the keywords that `check_keywords` always accepts.

    Args:
        backbone (`nn.Module`): the backbone.
        refused (`dict[str, str]`): keywords that the model cannot take, with the reasons.
    """
    return (layer_keywords(backbone) | ALLOWED_KEYWORDS.keys()) - refused.keys()


def check_keywords(model: Any, kwargs: dict[str, Any]) -> None:
    """Check the keywords of a forward pass that its signature does not name.

    Args:
        model (`PreTrainedModel`): a model without a head, with `known_keywords`, `refused_keywords` and a `backbone`.
        kwargs (`dict[str, Any]`): the keywords.

    Raises:
        TypeError: if no part of the model names a keyword.
        ValueError: if the model cannot take a keyword, or an output is requested that its backbone does not record.
    """
    known = model.known_keywords
    for name in kwargs:
        # None means not given
        if name not in known and kwargs[name] is not None:
            _check_rare_keyword(model, name)
    for flag in _OUTPUTS:
        if kwargs.get(flag):
            _check_recorded(model, flag)
    if "output_attentions" not in kwargs and model.config.output_attentions:
        _check_recorded(model, "output_attentions")


def _check_rare_keyword(model: Any, name: str) -> None:
    if name in model.refused_keywords:
        raise ValueError(
            f"`{name}` does not work with a {model.config.model_type} model: {model.refused_keywords[name]}"
        )
    if not _attention_names(attention_function(model.backbone.config), name):
        # the search for a similar name cannot be compiled
        hint = "" if torch.compiler.is_compiling() else _hint(model, name)
        raise TypeError(f"`{name}` is no keyword of a {model.config.model_type} model{hint}")


@torch.compiler.assume_constant_result
def _attention_names(implementation: str, name: str) -> bool:
    """Return whether an attention function, which a user may have registered, names a keyword."""
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    return function is not None and name in inspect.signature(function).parameters


def _hint(model: Any, name: str) -> str:
    if name in LOOPS_ELSEWHERE or nearest(name, ["num_loops"], 0.8) is not None:
        return model.about_loops
    if name == "cache_position":
        return ": positions follow from the cache, or are given as `position_ids`"
    keywords = [*inspect.signature(model.forward).parameters, *_HEAD_KEYWORDS]
    fields = [field for field in model.config.__dataclass_fields__ if not field.startswith("_")]
    if name in _PASSES_ELSEWHERE and "num_sleep_passes" in keywords:
        return "; did you mean `num_sleep_passes`?"
    if name in fields:
        return f": `{name}` is a field of its configuration"
    best = nearest(name, [keyword for keyword in keywords if keyword != name])
    if best is not None:
        return f"; did you mean `{best}`?"
    best = nearest(name, fields)
    return "" if best is None else f"; did you mean `{best}`, a field of its configuration?"


def _check_recorded(model: Any, flag: str) -> None:
    # an output that the class does not record from its backbone is made by the model itself
    output = _OUTPUTS[flag]
    if output in type(model)._can_record_outputs and output not in model._can_record_outputs:
        kind = model.backbone.config.model_type
        raise ValueError(f"`{flag}` must be False: a {kind} backbone does not record them")


__all__ = ["ALLOWED_KEYWORDS", "check_keywords", "known_keywords", "layer_keywords"]
