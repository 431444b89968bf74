# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Support for PEFT adapters on recurrent models.

PEFT reads target modules, sizes and the class of the base model from the model's configuration, but does not know
`looped_lm` and its fields. `peft_seams.py` makes PEFT call the functions of this file instead.
"""

import json
import os
from typing import Any

from torch import nn
from transformers.utils import logging

from .files import atomic_path
from .peft_seams import adapt_peft, adapted_module


logger = logging.get_logger(__name__)

ADAPTER_CONFIG_FILE = "adapter_config.json"
# fields that set the depth of a model: an adapter belongs to the depth at which it was trained
DEPTH_FIELDS = ("num_loops", "num_sleep_passes")


def is_recurrent(config: Any) -> bool:
    """Return whether a configuration belongs to a recurrent model."""
    # not by its class: code that came with a checkpoint has a class of its own
    return hasattr(config, "remote_classes") and hasattr(config, "backbone_config")


def decoder_config(config: Any) -> Any:
    """Return the configuration of the decoder inside a model."""
    while is_recurrent(config):
        config = config.backbone_config
    return config


def describe_for_adapters(config: Any) -> dict[str, Any]:
    """Return a recurrent model's configuration as PEFT should see it: with the model type of the decoder."""
    decoder = decoder_config(config)
    # our own decoders name one of transformers whose linear maps have the same names
    return config.to_dict() | {"model_type": getattr(decoder, "adapted_like", decoder.model_type)}


def prepare_prompt_learning(model: Any, peft_config: Any) -> None:
    """Set the model's sizes in a configuration of prompt tuning, P-tuning or prefix tuning.

    A prefix has keys and values for every cache slot, so it belongs to one number of loops.

    Args:
        model (`PreTrainedModel`): the recurrent model.
        peft_config (`PeftConfig`): the configuration; sizes that it has already are kept.

    Raises:
        ValueError: if the model does not support prompts, or its layers do not all have keys and values of one shape.
    """
    config, decoder = model.config, decoder_config(model.config)
    peft_type = getattr(peft_config.peft_type, "value", peft_config.peft_type)
    if model.no_prompt_learning:
        raise ValueError(
            f"{peft_type} does not work with a {type(model).__name__}: {model.no_prompt_learning}. Use LoRA"
        )
    num_heads = decoder.num_attention_heads
    token_dim = decoder.hidden_size
    if peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        _check_prefix(decoder, peft_type)
        head_dim = getattr(decoder, "head_dim", None) or decoder.hidden_size // num_heads
        num_heads = getattr(decoder, "num_key_value_heads", None) or num_heads
        token_dim = head_dim * num_heads
    sizes = {"num_layers": config.num_hidden_layers, "token_dim": token_dim, "num_attention_heads": num_heads}
    for name, size in sizes.items():
        if getattr(peft_config, name) is None:
            setattr(peft_config, name, size)


def _check_prefix(decoder: Any, peft_type: str) -> None:
    kinds = set(getattr(decoder, "layer_types", None) or [])
    others = sorted(kind for kind in kinds if not kind.endswith("attention") or kind == "linear_attention")
    if others:
        raise ValueError(
            f"{peft_type} needs layers that all have keys and values, got a {decoder.model_type} backbone with "
            f"{', '.join(others)}"
        )
    stored = decoder.to_dict()
    for name in ("kv_lora_rank", "global_head_dim", "num_global_key_value_heads", "per_layer_config"):
        if stored.get(name):
            raise ValueError(
                f"{peft_type} needs keys and values of one shape, got a {decoder.model_type} backbone in which they "
                f"differ (`{name}`)"
            )


def depth_of(config: Any) -> dict[str, int]:
    """Return the fields of a configuration that set the depth, with their values."""
    return {name: getattr(config, name) for name in DEPTH_FIELDS if hasattr(config, name)}


def complete_adapter_config(folder: str | os.PathLike, config: Any, auto_class: str | None) -> None:
    """Write the Auto class and the depth of the base model into an adapter's `adapter_config.json`.

    PEFT keeps the entry `auto_mapping` from save to load, and reads the class from it if the adapter has no task type.
    An Auto class also loads a model whose code came with its checkpoint.

    Args:
        folder (`str` or `os.PathLike`): folder into which PEFT wrote the adapter.
        config (`PreTrainedConfig`): the model's configuration.
        auto_class (`str`, *optional*): name of the Auto class that loads the model.
    """
    path = os.path.join(folder, ADAPTER_CONFIG_FILE)
    with open(path, encoding="utf-8") as file:
        stored = json.load(file)
    if auto_class is not None:
        stored["auto_mapping"] = {"base_model_class": auto_class, "parent_library": "transformers"}
    stored["auto_mapping"] = (stored.get("auto_mapping") or {}) | depth_of(config)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")


def restore_depth(model: Any, peft_config: Any, has_others: bool) -> None:
    """Set the depth of a model to that at which a loaded adapter was saved.

    Args:
        model (`PreTrainedModel`): the recurrent model, before the adapter is added.
        peft_config (`PeftConfig`): configuration of the adapter; a new one has no depth yet.
        has_others (`bool`): whether the model has other adapters; it then keeps its depth, with a warning.
    """
    recorded = getattr(peft_config, "auto_mapping", None) or {}
    for name, value in depth_of(model.config).items():
        depth = recorded.get(name, value)
        if depth == value:
            continue
        message = f"The adapter was saved at {name}={depth} and the model has {name}={value}"
        if has_others:
            logger.warning(f"{message}, which it keeps, because it has another adapter.")
            continue
        logger.warning(f"{message}, which is set to {depth}. To change it, set `model.config.{name}` afterwards.")
        for module in model.modules():
            config = getattr(module, "config", None)
            if is_recurrent(config) and hasattr(config, name):
                setattr(config, name, depth)


def refuse_adapter(model: nn.Module, action: str) -> None:
    """Refuse a model with an adapter, which wraps some of its weights.

    Args:
        model (`nn.Module`): a model, PEFT's wrapper of one, or the model inside it.
        action (`str`): the refused action, for the message.

    Raises:
        ValueError: if the model has an adapter.
    """
    place = adapted_module(model)
    if place is not None:
        raise ValueError(
            f"`model` carries a PEFT adapter ({place}): merge it before {action}, with `merge_and_unload()` of the "
            "`PeftModel`, or of `peft.AutoPeftModelForCausalLM.from_pretrained(...)` for the folder of an adapter"
        )


adapt_peft(
    is_recurrent=is_recurrent,
    describe=describe_for_adapters,
    prepare_prompt_learning=prepare_prompt_learning,
    restore_depth=restore_depth,
    complete_config=complete_adapter_config,
)
