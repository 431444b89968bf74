# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Every touch of transformers, torch, accelerate and peft that their releases may move.

Each has a name of its own and a short test against the installed release (tests/models/test_transformers_seams.py), so
that a release that moves one is mended here and nowhere else. No other file names a private part of these libraries,
apart from the hooks meant for subclasses (`_init_weights`, `_tied_weights_keys`, `_tp_plan`, ...); tests/test_seams.py
holds that list.
"""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_utils,
)
from transformers.cache_utils import CacheLayerMixin
from transformers.generation import GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_masks_for_generate, sliding_window_overlay
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs


RELEASE: str = transformers.__version__

# what the installed release calls the cache: "past_key_values" up to 5.23, "cache" since 5.24
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
# GPT-J's and CodeGen's rotary embedding: a part of the decoder since 5.24; before, attention layers rotate themselves
GPTJ_ROTARY = "rotary_emb" if CACHE_NAME == "cache" else None
# the names under which a layer may take it, that of the release first
_LAYER_CACHE_NAMES = (CACHE_NAME, "cache", "past_key_values", "layer_past")


def takes_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a `forward` with a `cache` argument so that it takes `past_key_values` for it as well.

    transformers sends the one name or the other, by its release; code on the Hub meets both.

    Raises:
        ValueError: if a call gives both.
    """
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    old_name = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - 1, old_name)

    def call(*args, **kwargs):
        # up to 5.23 continuous batching gives its own paged cache under the name that our layers' cache has now
        if CACHE_NAME == "past_key_values" and not isinstance(kwargs.get("cache"), Cache | None):
            kwargs["paged_cache"] = kwargs.pop("cache")
        if kwargs.get("past_key_values") is not None and kwargs.get("cache") is not None:
            raise ValueError("`cache` and `past_key_values` are two names of one argument: give one of them")
        if "past_key_values" in kwargs:
            past_key_values = kwargs.pop("past_key_values")
            kwargs["cache"] = kwargs.get("cache") if past_key_values is None else past_key_values
        return forward(*args, **kwargs)

    wrapper: Any = functools.wraps(forward)(call)
    wrapper.__signature__ = signature.replace(parameters=parameters)
    return wrapper


def named_cache(cache: Any) -> dict[str, Any]:
    """`cache` under the name that the installed release has for it, for its functions and outputs."""
    return {CACHE_NAME: cache}


def cache_of(outputs: Any) -> Any:
    """The cache of an output of transformers, without the warning about its old name."""
    return getattr(outputs, CACHE_NAME)


class CacheNames:
    """Gives an output the name of the cache that its release does not have; mixed into our output classes."""

    if CACHE_NAME == "past_key_values":
        past_key_values: Any

        @property
        def cache(self) -> Any:
            return self.past_key_values


@functools.cache
def layer_cache_name(layer_class: type[nn.Module]) -> str:
    """The argument under which layers of a class take the cache."""
    parameters = inspect.signature(layer_class.forward).parameters
    # a layer that names none passes its keyword arguments on to its attention
    return next((name for name in _LAYER_CACHE_NAMES if name in parameters), CACHE_NAME)


class _InTheBackbone(nn.Module):
    """No module is one: what it is to record is recorded by the backbone, whose own class says where."""


def recordable(*names: str) -> dict[str, OutputRecorder]:
    """`_can_record_outputs` of a model whose backbone records `names` of what a forward pass is asked for.

    Such a model has no layers of its own: transformers goes down to the backbone and asks its class for the modules.
    """
    return {name: OutputRecorder(_InTheBackbone) for name in names}


def adopt_attention(outer: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Give `outer` the attention function that its backbone settled on, which may refuse the one asked for."""
    # not by `set_attn_implementation`, which would check the choice once more for the outer class and warn
    outer.config._attn_implementation_internal = backbone.config._attn_implementation


def attention_function(config: PreTrainedConfig) -> str:
    """The name of the attention function a model runs."""
    return config._attn_implementation or "eager"


def choose_attention_function(config: PreTrainedConfig, name: str) -> None:
    """Have a model that is made of `config`, with all of its parts, run an attention function."""
    config._attn_implementation = name


class BeforeUpload:
    """Calls `before_upload` when `push_to_hub` has put its folder together; mixed in before `PreTrainedModel`."""

    def before_upload(self, folder: str, repo_id: str) -> None:
        """Add to the folder, whose model card is written already."""

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        self.before_upload(working_dir, repo_id)
        return cast(Any, super())._upload_modified_files(working_dir, repo_id, *args, **kwargs)


def keep_logits(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The hidden states `[B, T, D]` that logits are asked of: transformers' function, or its rule up to 5.20.

    Args:
        hidden_states (`torch.Tensor` of shape `[B, T, D]`): all of them.
        logits_to_keep (`int` or `torch.Tensor`): how many of the last ones (0 for all), or their indices.
    """
    slicing = getattr(modeling_utils, "slice_logits_to_keep", None)
    if slicing is not None:
        return slicing(hidden_states, logits_to_keep)
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden_states[:, kept]


def selected_indices(output_hidden_states: Any, num_hidden_states: int) -> set[int]:
    """Indices of the hidden states that `output_hidden_states` asks for.

    Args:
        output_hidden_states (`bool`, `int` or `list[int]`): all, none, or which, also counted from the last.
        num_hidden_states (`int`): how many there are; indices beyond them select nothing.
    """
    if output_hidden_states is None or isinstance(output_hidden_states, bool):
        return set(range(num_hidden_states)) if output_hidden_states else set()
    chosen = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    return {index % num_hidden_states for index in chosen if -num_hidden_states <= index < num_hidden_states}


class CheckpointsSteps:
    """Gradient checkpointing of steps of a model's own, instead of its backbone's layers.

    A layer that is checkpointed by itself drops the cache, which is where it finds its memory. Mixed in before
    `PreTrainedModel`; `steps` is their name in messages.
    """

    steps = "steps"
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def _set_gradient_checkpointing(
        self: Any, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        if enable and every_n_layers != 1:
            raise ValueError(f"`every_n_layers` must be 1, as {self.steps} are checkpointed, got {every_n_layers}")
        options = getattr(gradient_checkpointing_func, "keywords", None) or {}
        if enable and options.get("use_reentrant", False):
            raise ValueError(
                f"`use_reentrant` must be False, as every layer runs once in each of {self.steps}, got True"
            )
        for module in self.modules():
            if isinstance(module, CheckpointsSteps):
                module.gradient_checkpointing = enable
                module._gradient_checkpointing_func = gradient_checkpointing_func

    def run_step(self: Any, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, whose activations are not kept where checkpointing is on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(function, *args)
        return function(*args)


def make_model(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model of a class of ours, with the dtype and attention function of its configuration, as the Auto classes make
    one."""
    return model_class._from_config(config)


def prepare_inputs(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` on the device of a `Trainer`."""
    return trainer._prepare_inputs(inputs)


class GenerationHooks(GenerationMixin):
    """The steps of `generate` that our models change, under names of our own."""

    if CACHE_NAME == "past_key_values":

        def generate(self, *args, **kwargs):
            # later releases take either name themselves
            if isinstance(kwargs.get("cache"), Cache):
                kwargs["past_key_values"] = kwargs.pop("cache")
            return super().generate(*args, **kwargs)

    def generation_settings(
        self: Any, generation_config: GenerationConfig | None, *args, **kwargs
    ) -> tuple[Any, dict[str, Any]]:
        """The configuration of a call to `generate`, and what of its arguments goes to the forward pass."""
        return super()._prepare_generation_config(generation_config, *args, **kwargs)

    def make_generation_cache(self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args, **kwargs) -> Any:
        """Put the cache that a call to `generate` starts from into `model_kwargs`."""
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def next_model_kwargs(self: Any, outputs: Any, model_kwargs: dict[str, Any], *args, **kwargs) -> dict[str, Any]:
        """What the forward pass of the next token is given."""
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def make_candidate_generator(self: Any, generation_config: Any, model_kwargs: dict[str, Any], **kwargs) -> Any:
        """What proposes tokens in assisted generation, from the settings of this model's own call."""
        kwargs |= {"generation_config": generation_config, "model_kwargs": model_kwargs}
        return super()._get_candidate_generator(**kwargs)

    # transformers calls these by position or by name, as its releases please
    def _prepare_generation_config(self, generation_config, *args, **kwargs):
        return self.generation_settings(generation_config, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        return self.make_generation_cache(generation_config, model_kwargs, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        return self.next_model_kwargs(outputs, model_kwargs, *args, **kwargs)

    def _get_candidate_generator(self, **kwargs):  # ty: ignore[incompatible-method-override]
        return self.make_candidate_generator(**kwargs)


def is_scored_by_trl(model: nn.Module) -> bool:
    """Whether TRL put a forward on a model that scores tokens by running the model without its head."""
    function = model.__dict__.get("forward")
    # its signature is made to look like that of the model's own; accelerate may wrap it once more
    while function is not None:
        if "fused_lm_head" in (getattr(function, "__kwdefaults__", None) or {}):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def causal_model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of causal language models that the Auto classes have for a configuration, `None` if they have none."""
    mapping: Any = AutoModelForCausalLM._model_mapping
    return mapping.get(type(config), None)


@contextmanager
def captured_load_report(report: list[str]) -> Generator[None]:
    """Within it, what `from_pretrained` logs about tensors that do not fit goes into `report` and not to the log."""

    def is_no_report(record: logging.LogRecord) -> bool:
        is_report = "LOAD REPORT" in record.msg
        if is_report:
            report.append(record.getMessage())
        return not is_report

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def unconverted_tensors(report: list[str]) -> list[str]:
    """The weights in a captured report that could not be put together from the tensors of a checkpoint."""
    return [name for text in report for name in re.findall(r"^(\S+) *\| *(?:\x1b\[\d+m)?CONVERSION", text, re.M)]


__all__ = [
    "ALL_MASK_ATTENTION_FUNCTIONS",
    "CACHE_NAME",
    "GPTJ_ROTARY",
    "RELEASE",
    "BeforeUpload",
    "CacheLayerMixin",
    "CacheNames",
    "CheckpointsSteps",
    "GenerationHooks",
    "adopt_attention",
    "attention_function",
    "cache_of",
    "capture_outputs",
    "captured_load_report",
    "causal_model_class",
    "choose_attention_function",
    "create_masks_for_generate",
    "is_scored_by_trl",
    "keep_logits",
    "layer_cache_name",
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
    """The name of the Auto class that a model's class is registered with."""
    return getattr(type(model), "_auto_class", None)


def saves_adapter_only(model: PreTrainedModel) -> bool:
    """Whether `save_pretrained` of a model writes an adapter that it was given by `add_adapter`, and nothing else."""
    return getattr(model, "_hf_peft_config_loaded", False)


def is_prompted(model: PreTrainedModel) -> bool:
    """Whether PEFT puts a prompt or a prefix before what `model` generates from."""
    # it takes the place of this method of the very model, not of the class
    return "prepare_inputs_for_generation" in vars(model)
