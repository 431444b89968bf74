# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Refuses unknown fields of configurations, which transformers would set as attributes that nothing reads."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from .checks import LOOPS_ELSEWHERE, make_config, nearest


# names that callers and files give besides the fields of a configuration class, with the reasons
ALLOWED_FIELDS: dict[str, str] = {
    **dict.fromkeys(GenerationConfig().to_dict(), "older files have generation parameters; transformers drops them"),
    "auto_map": "transformers: which classes the code of a checkpoint has",
    "quantization_config": "transformers: how the weights are quantised",
    "unpacked_from": "the library that loaded them: how the weights were quantised before they were unpacked",
    "compression_config": "compressed-tensors, as `quantization_config`",
    "custom_pipelines": "transformers: pipelines that come with a checkpoint",
    "model_type": "written to files beside the class attribute",
    "num_labels": "classification heads",
    "classifier_dropout": "classification heads for tokens",
    "loss_type": "which of transformers' losses a model uses",
    "is_causal": "transformers sets it during a forward pass that is given it",
    "tie_last_hidden_states": "transformers: which hidden state is recorded last",
    "rope_theta": "older files; transformers turns them into `rope_parameters`",
    "rope_scaling": "as `rope_theta`",
    "partial_rotary_factor": "as `rope_theta`",
    "transformers_weights": "transformers: the file with the weights",
    "tokenizer_class": "transformers: which tokenizer belongs to the weights",
    **dict.fromkeys(
        ("is_decoder", "add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "torchscript")
        + ("use_bfloat16", "pruned_heads", "finetuning_task", "task_specific_params", "prefix", "sep_token_id")
        + ("decoder_start_token_id", "tf_legacy_loss", "return_dict_in_generate", "use_return_dict"),
        "fields that every configuration had in older releases of transformers",
    ),
}
# arguments of `from_pretrained` for loading; transformers passes them on to the configuration too
LOADING_KEYWORDS = frozenset(
    ("trust_remote_code", "code_revision", "revision", "subfolder", "token", "cache_dir", "force_download", "proxies")
    + ("local_files_only", "gguf_file", "resume_download", "use_auth_token", "user_agent", "return_unused_kwargs")
    + ("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "torch_dtype", "dtype")
)


def check_fields(config: PreTrainedConfig, given: Iterable[str], other_fields: Iterable[str]) -> None:
    """Check the keywords of a configuration that are not its fields.

    In a file, which another release or library may have written, only likely misspellings are refused.

    Args:
        config (`PreTrainedConfig`): the configuration, with its fields set.
        given (`Iterable[str]`): the keywords.
        other_fields (`Iterable[str]`): fields that the configuration passes on.

    Raises:
        TypeError: if a name is unknown; the message suggests the nearest field.
    """
    own = own_fields(type(config))
    is_file = config.transformers_version is not None
    for name in given:
        if _is_known(type(config), name) or (is_file and nearest(name, own, 0.85) is None):
            continue
        raise TypeError(_message(name, type(config).__name__, (*own, *other_fields), config))


def check_backbone_fields(
    config_class: type[PreTrainedConfig], given: dict[str, Any], outer: PreTrainedConfig
) -> None:
    """Check the dictionary that a backbone's configuration is made from, unless it comes from a saved file.

    Args:
        config_class (`type`): class of the backbone's configuration.
        given (`dict[str, Any]`): the dictionary.
        outer (`PreTrainedConfig`): the configuration that it is part of.

    Raises:
        TypeError: if a name is unknown.
    """
    if outer.transformers_version is not None or "transformers_version" in given:
        return
    unknown = [name for name in given if not _is_known(config_class, name)]
    if unknown:
        # a class may also set attributes that are not fields
        known = {name: value for name, value in given.items() if name not in unknown}
        attributes = vars(make_config(config_class, known, "backbone_config"))
        for name in unknown:
            if name not in attributes:
                fields = (*own_fields(config_class), *own_fields(type(outer)))
                raise TypeError(_message(name, config_class.__name__, fields, outer))


def check_unused(config_class: type[PreTrainedConfig], unused: Iterable[str], is_final: bool) -> None:
    """Check the keywords of `from_pretrained` that the configuration does not use.

    Args:
        config_class (`type`): class of the configuration.
        unused (`Iterable[str]`): the keywords.
        is_final (`bool`): whether nothing else reads them. A model, which may read them, raises for unknown ones.

    Raises:
        TypeError: if a name is unknown.
    """
    own = own_fields(config_class)
    for name in unused:
        if name not in LOADING_KEYWORDS and (is_final or nearest(name, own, 0.85) is not None):
            raise TypeError(_message(name, config_class.__name__, own, None))


def check_attribute(config: PreTrainedConfig, name: str) -> None:
    """Check the name of a new attribute of a configuration.

    Raises:
        AttributeError: if it is a misspelt field.
    """
    best = None if _is_known(type(config), name) else nearest(name, own_fields(type(config)), 0.85)
    if best is not None:
        raise AttributeError(f"{type(config).__name__} has no field `{name}`; did you mean `{best}`?")


@functools.cache
def own_fields(config_class: Any) -> tuple[str, ...]:
    """Return the fields of a configuration class that transformers' base class does not have."""
    return tuple(set(config_class.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))


def _is_known(config_class: type, name: str) -> bool:
    return (
        name.startswith("_")
        or name in ALLOWED_FIELDS
        or hasattr(config_class, name)
        or name in _names_read(config_class)
    )


@functools.cache
def _names_read(config_class: Any) -> frozenset[str]:
    """Return the keywords that a configuration class reads: its fields, and the strings in its constructors."""
    names = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    for base in config_class.__mro__:
        for method in ("__init__", "__post_init__", "convert_rope_params_to_dict"):
            names |= set(_strings(vars(base).get(method)))
    return frozenset(names)


def _strings(function: Callable | None) -> Iterator[str]:
    # the constructors of dataclasses are wrapped several times
    code = getattr(None if function is None else inspect.unwrap(function), "__code__", None)
    yield from (constant for constant in getattr(code, "co_consts", ()) if isinstance(constant, str))


def _message(name: str, owner: str, fields: Collection[str], config: Any) -> str:
    best = "num_loops" if name in LOOPS_ELSEWHERE and "num_loops" in fields else nearest(name, fields)
    if best is not None:
        return f"{owner} has no field `{name}`; did you mean `{best}`?"
    backbone = getattr(config, "backbone_config", None)
    if isinstance(backbone, PreTrainedConfig) and hasattr(backbone, name):
        return f"{owner} has no field `{name}`, but its backbone has: give it in `backbone_config`"
    return f"{owner} has no field `{name}`"


__all__ = ["check_attribute", "check_backbone_fields", "check_fields", "check_unused"]
