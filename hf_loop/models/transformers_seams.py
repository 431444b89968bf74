# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private or unstable parts of transformers.

Each is a named function with a short test against the installed release (tests/models/test_transformers_seams.py), so
that a new release is adapted to here and nowhere else. `module_seams.py`, `compile_seams.py`, `decoding_seams.py` and
`peft_seams.py` do the same for torch, accelerate, compiling, a decoding method and PEFT. No other file uses private
names of these libraries, apart from hooks for subclasses (`_init_weights`, `_tied_weights_keys`, `_tp_plan`, ...);
tests/test_seams.py checks it.
"""

import copy
import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_utils,
)
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_bidirectional_mask,
    create_masks_for_generate,
    sliding_window_overlay,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .class_facts import class_fact


RELEASE: str = transformers.__version__

# name of the cache in the installed release: "past_key_values" up to 5.23, "cache" since 5.24
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
# both names, of which a call may use either
CACHE_NAMES = ("cache", "past_key_values")
# the rotary embedding of GPT-J and CodeGen: part of the decoder since 5.24, before that of every attention layer
GPTJ_ROTARY = "rotary_emb" if CACHE_NAME == "cache" else None
# argument names under which a layer may take the cache, in order of preference
_LAYER_CACHE_NAMES = (CACHE_NAME, "cache", "past_key_values", "layer_past")


def takes_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a `forward` with a `cache` argument so that it also takes it as `past_key_values`.

    Releases of transformers pass one name or the other, and code on the Hub must work with both.

    Raises:
        ValueError: if a call passes both.
    """
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    old_name = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - 1, old_name)

    def call(*args, **kwargs):
        # up to 5.23 continuous batching passes its own paged cache as `cache`
        if CACHE_NAME == "past_key_values" and not isinstance(kwargs.get("cache"), Cache | None):
            kwargs["paged_cache"] = kwargs.pop("cache")
        if kwargs.get("past_key_values") is not None and kwargs.get("cache") is not None:
            raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them")
        if "past_key_values" in kwargs:
            past_key_values = kwargs.pop("past_key_values")
            kwargs["cache"] = kwargs.get("cache") if past_key_values is None else past_key_values
        return forward(*args, **kwargs)

    wrapper: Any = functools.wraps(forward)(call)
    wrapper.__signature__ = signature.replace(parameters=parameters)
    return wrapper


def named_cache(cache: Any) -> dict[str, Any]:
    """Return `cache` as a keyword argument, under the name of the installed release."""
    return {CACHE_NAME: cache}


def cache_of(outputs: Any) -> Any:
    """Return the cache of a transformers output, without the warning about its older name."""
    return getattr(outputs, CACHE_NAME)


class CacheNames:
    """Mixin for output classes that adds the cache's name of newer releases."""

    if CACHE_NAME == "past_key_values":
        past_key_values: Any

        @property
        def cache(self) -> Any:
            return self.past_key_values


@class_fact
def layer_cache_name(layer_class: type[nn.Module]) -> str:
    """Return the name of the argument under which a layer class takes the cache."""
    parameters = inspect.signature(layer_class.forward).parameters
    # a layer that names none passes its keywords on to its attention
    return next((name for name in _LAYER_CACHE_NAMES if name in parameters), CACHE_NAME)


class _InTheBackbone(nn.Module):
    """A class without instances: the outputs are recorded by the backbone, whose own class names the modules."""


def recordable(*names: str) -> dict[str, OutputRecorder]:
    """Return `_can_record_outputs` for a model whose backbone records the outputs `names`.

    Such a model has no layers of its own: transformers finds the modules to record through the backbone's class.
    """
    return {name: OutputRecorder(_InTheBackbone) for name in names}


def adopt_attention(outer: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Give `outer` the attention function that its backbone chose, which may not be the requested one."""
    # `set_attn_implementation` would check the choice again for the outer class, and warn
    outer.config._attn_implementation_internal = backbone.config._attn_implementation


def attention_function(config: PreTrainedConfig) -> str:
    """Return the name of a model's attention function."""
    return config._attn_implementation or "eager"


def choose_attention_function(config: PreTrainedConfig, name: str) -> None:
    """Set the attention function of a model that will be made of `config`."""
    config._attn_implementation = name


@contextmanager
def as_before_on_error(model: PreTrainedModel) -> Generator[None]:
    """Give a model the attention functions and the modes back that it had, if the block fails.

    `set_attn_implementation` changes one part of a model after the other, of which a later one may refuse. Continuous
    batching chooses another function and evaluation mode before it knows whether it can run the model.
    """
    parts = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    chosen = [pair for config in parts for pair in _chosen(config)]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    except BaseException:
        _choose_again(chosen)
        for module, is_training in modes:
            module.training = is_training
        raise


@contextmanager
def attention_kept(config: PreTrainedConfig) -> Generator[None]:
    """Give a configuration its attention functions back, which transformers takes from it inside of another one."""
    chosen = [(part, name) for part, name in _chosen(config) if name is not None]
    yield
    _choose_again(chosen)


def _chosen(config: PreTrainedConfig) -> list[tuple[PreTrainedConfig, str | None]]:
    """List a configuration and those inside it, with the attention functions chosen for them."""
    inner = [getattr(config, name, None) for name in config.sub_configs]
    own = (config, config._attn_implementation)
    return [own, *(pair for part in inner if part is not None for pair in _chosen(part))]


def _choose_again(chosen: Iterable[tuple[PreTrainedConfig, str | None]]) -> None:
    for config, name in chosen:
        config._attn_implementation_internal = name


class BeforeUpload:
    """Mixin that calls `before_upload` when `push_to_hub` has filled its folder; comes before `PreTrainedModel`."""

    def before_upload(self, folder: str, repo_id: str) -> None:
        """Change the folder before it is uploaded. Its model card is already written."""

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        self.before_upload(working_dir, repo_id)
        return cast(Any, super())._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def keep_logits(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Select the hidden states whose logits are computed, by transformers' function or, up to 5.20, its rule.

    Args:
        hidden_states (`torch.Tensor` of shape `[B, T, D]`): all hidden states.
        logits_to_keep (`int` or `torch.Tensor`): number of last positions (0 for all), or indices of positions.
    """
    slicing = getattr(modeling_utils, "slice_logits_to_keep", None)
    if slicing is not None:
        return slicing(hidden_states, logits_to_keep)
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, kept]


def selected_indices(output_hidden_states: Any, num_hidden_states: int) -> set[int]:
    """Return the indices of the hidden states that `output_hidden_states` selects.

    Args:
        output_hidden_states (`bool`, `int`, `list[int]` or `None`): all, none, or indices, which may be negative.
        num_hidden_states (`int`): number of hidden states; indices out of range select nothing.
    """
    if output_hidden_states is None or isinstance(output_hidden_states, bool):
        return set(range(num_hidden_states)) if output_hidden_states else set()
    chosen = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    return {index % num_hidden_states for index in chosen if -num_hidden_states <= index < num_hidden_states}


class CheckpointsSteps:
    """Mixin for gradient checkpointing of a model's own steps instead of its backbone's layers.

    A checkpointed layer drops the cache, and with it its memory. The mixin comes before `PreTrainedModel`; `steps` is
    the name of the steps in messages.
    """

    steps = "steps"
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def _set_gradient_checkpointing(
        self: Any, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        if enable and every_n_layers != 1:
            raise ValueError(
                f"`every_n_layers` must be 1, because {self.steps} are checkpointed, not layers, got {every_n_layers}"
            )
        options = getattr(gradient_checkpointing_func, "keywords", None) or {}
        if enable and options.get("use_reentrant", False):
            raise ValueError(
                f"`use_reentrant` must be False, because layers run again in each of the {self.steps}, got True"
            )
        for module in self.modules():
            if isinstance(module, CheckpointsSteps):
                module.gradient_checkpointing = enable
                module._gradient_checkpointing_func = gradient_checkpointing_func

    def run_step(self: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function(*args)`, under gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(function, *args)
        return function(*args)


def make_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model with the dtype and attention function of its configuration, as the Auto classes do."""
    return model_class._from_config(config)


def float32_names(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> set[str]:
    """Return the names of the tensors that a model has in float32 even if it is made in half precision."""
    # transformers writes the dtype into the configuration
    with torch.device("meta"):
        model = model_class._from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    return {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}


def prepare_inputs(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Move `inputs` to the device of a `Trainer`."""
    return trainer._prepare_inputs(inputs)


def is_scored_by_trl(model: nn.Module) -> bool:
    """Return whether TRL replaced a model's forward by one that scores tokens with the model without its head."""
    function = model.__dict__.get("forward")
    # it imitates the signature of the model's own forward, and accelerate may wrap it
    while function is not None:
        if "fused_lm_head" in (getattr(function, "__kwdefaults__", None) or {}):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def causal_model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the causal language model class of the Auto classes for a configuration, `None` if there is none."""
    mapping: Any = AutoModelForCausalLM._model_mapping
    return mapping.get(type(config), None)


@contextmanager
def captured_load_report(report: list[str]) -> Generator[None]:
    """Append what `from_pretrained` logs about tensors that do not fit to `report` instead of the log.

    The report is a warning, and is captured even where the log shows none.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    own_level, shown_level = logger.level, logger.getEffectiveLevel()

    def is_no_report(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.msg
        if is_report:
            report.append(record.getMessage())
        return not is_report and record.levelno >= shown_level

    logger.addFilter(is_no_report)
    logger.setLevel(min(shown_level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(own_level)
        logger.removeFilter(is_no_report)


def let_trainer_ask_model() -> None:
    """Have the stock `Trainer`, if it is in use, ask the model for a step's operations, as its docstring says it does.

    By itself it counts every parameter once, however often it is called. A model without a `floating_point_ops` of its
    own is counted as before.
    """
    # not imported: that takes a second, and who trains has done so
    trainer_class: Any = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if trainer_class is None or hasattr(trainer_class.floating_point_ops, "__wrapped__"):
        return
    count_once = trainer_class.floating_point_ops

    @functools.wraps(count_once)
    def floating_point_ops(self, inputs):
        count = getattr(self.model, "floating_point_ops", None)
        return count_once(self, inputs) if count is None else count(inputs)

    trainer_class.floating_point_ops = floating_point_ops


def unconverted_tensors(report: list[str]) -> list[str]:
    """List the weights in a captured report that could not be converted from the tensors of a checkpoint."""
    return [name for text in report for name in re.findall(r"^(\S+) *\| *(?:\x1b\[\d+m)?CONVERSION", text, re.M)]


__all__ = [
    "ALL_MASK_ATTENTION_FUNCTIONS",
    "CACHE_NAME",
    "CACHE_NAMES",
    "GPTJ_ROTARY",
    "RELEASE",
    "BeforeUpload",
    "CacheLayerMixin",
    "CacheNames",
    "CheckpointsSteps",
    "adopt_attention",
    "as_before_on_error",
    "attention_function",
    "attention_kept",
    "cache_of",
    "capture_outputs",
    "captured_load_report",
    "causal_model_class",
    "choose_attention_function",
    "create_bidirectional_mask",
    "create_masks_for_generate",
    "float32_names",
    "is_scored_by_trl",
    "keep_logits",
    "layer_cache_name",
    "let_trainer_ask_model",
    "make_model",
    "merge_with_config_defaults",
    "named_cache",
    "prepare_inputs",
    "recordable",
    "selected_indices",
    "sliding_window_overlay",
    "takes_cache",
    "unconverted_tensors",
]


def auto_class_of(model: PreTrainedModel) -> str | None:
    """Return the name of the Auto class that a model's class is registered with, `None` if there is none."""
    return getattr(type(model), "_auto_class", None)


def saves_adapter_only(model: PreTrainedModel) -> bool:
    """Return whether `save_pretrained` writes only the adapter that the model got from `add_adapter`."""
    return getattr(model, "_hf_peft_config_loaded", False)


def is_prompted(model: PreTrainedModel) -> bool:
    """Return whether PEFT adds a prompt or a prefix when `model` generates."""
    # PEFT then replaces this method on the instance
    return "prepare_inputs_for_generation" in vars(model)
