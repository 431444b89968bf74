"""Published looped checkpoints as models of this library."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..files import fault_named, read_json, write_text
from ..gguf_files import is_gguf
from ..loading import check_shapes, load_pretrained
from ..models import FAMILIES
from ..models.transformers_seams import float32_names, make_model
from .checkpoint import (
    find_config,
    locate,
    published_generation_config,
    read_config,
    read_tensors,
    tokenizer_files,
    tokenizer_token_ids,
)
from .converters import CONVERTERS


def convert(path: str | os.PathLike, *, dtype: torch.dtype | None = None, **config_overrides) -> PreTrainedModel:
    """Load a published looped checkpoint, whose own code need not be there.

    Converted are Huginn-0125, the retrofitted-recurrence checkpoints, Parcae, Ouro, looped Nanbeige, LoopedLM,
    transformers' `dory`, `inkling2_loop` and `hrm_text`, and the puzzle models HRM and TRM (a state dict beside
    `all_config.yaml`). Every tensor of the checkpoint must be known and every weight of the model must be filled. The
    special token ids are those of the tokenizer where the checkpoint's configuration has others. The generation
    configuration is the checkpoint's, as far as it has one.

    Args:
        path (`str` or `os.PathLike`): a folder with `config.json` and the weights, or a repository on the Hub.
        dtype (`torch.dtype`, *optional*): dtype of the weights; by default what they are stored in.
        config_overrides: fields of the model's configuration to set otherwise than the checkpoint does, such as
            `state_init="zeros"` or `num_loops=8`.

    Returns:
        `PreTrainedModel`: a [`LoopedForCausalLM`], a [`HierarchicalForCausalLM`] from `hrm_text` and from LoopedLM
        with two states, or a [`HierarchicalForPuzzle`] from HRM and TRM, in evaluation mode on the CPU.

    Raises:
        ValueError: the checkpoint is of no known family or is no published looped model, a setting has no counterpart
            here, an override is no field, or tensors are unknown, missing or of another shape; each is named.
        OSError: there is no such folder or repository, or it lacks `config.json` or the weights.
    """
    if is_gguf(path):
        raise ValueError(f"{path} is a plain model: make it looped with hf_loop.retrofit")
    source = read_config(path)
    converter = find_converter(source, path)
    folder = locate(path)
    tensors = read_tensors(folder)
    source["tensor_names"] = frozenset(tensors)
    source["tensor_shapes"] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    source["tokenizer_token_ids"] = tokenizer_token_ids(folder)
    # settings of another type than the published ones have fail in the middle of an expression
    with fault_named(find_config(path)):
        try:
            config = converter.convert_config(source)
        except KeyError as error:
            raise ValueError(f"it lacks {error}") from error
    override_fields(config, config_overrides)
    # what cannot be read is named before the weights are converted
    settings = converter.generation_settings(source) if hasattr(converter, "generation_settings") else {}
    generation_config = published_generation_config(folder, config, settings)
    with fault_named(path):
        state_dict = converter.convert_state_dict(source, tensors)
    if tensors:
        raise ValueError(f"{path} has {len(tensors)} tensors that are not known: {', '.join(sorted(tensors))}")
    model = load_converted(config, state_dict, dtype, getattr(converter, "MODEL_CLASS", None))
    if model.can_generate():
        model.generation_config = generation_config
    # not `path`: whoever loads what is named there, an adapter for instance, would get another model
    model.name_or_path = ""
    return model


def copy_tokenizer(path: str | os.PathLike, folder: Path) -> None:
    """Copy the tokenizer of a published looped checkpoint, if it has one, into the folder of the converted model.

    Args:
        path (`str` or `os.PathLike`): the checkpoint, as for [`convert`].
        folder (`Path`): the folder, which exists.

    Raises:
        ValueError: the checkpoint is of no known family.
        OSError: there is no such folder or repository.
    """
    source = read_config(path)
    converter = find_converter(source, path)
    for file in tokenizer_files(locate(path)):
        shutil.copy(file, folder)
    settings_file = folder / "tokenizer_config.json"
    if hasattr(converter, "tokenizer_settings") and settings_file.is_file():
        settings = read_json(settings_file) | converter.tokenizer_settings(source)
        write_text(settings_file, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def override_fields(config: PreTrainedConfig, overrides: dict[str, Any]) -> None:
    """Set fields of a configuration, or of its backbone's where those can be set from outside, and check the whole.

    Raises:
        ValueError: a name is no field, or a value is refused.
    """
    fields = {field.name for field in dataclasses.fields(config)} - {"backbone_config"}
    for name, value in overrides.items():
        outer = getattr(type(config), name, None)
        if name not in fields and not (isinstance(outer, property) and outer.fset is not None):
            raise ValueError(f"`{name}` is not a field of {type(config).__name__}, so it cannot be set to {value!r}")
        setattr(config, name, value)
    config.validate()


def find_converter(source: dict[str, Any], path: str | os.PathLike) -> ModuleType:
    """The module of `converters` that a checkpoint's configuration belongs to.

    Raises:
        ValueError: there is none; the message says what to do with the checkpoint instead.
    """
    for converter in CONVERTERS:
        if converter.recognizes(source):
            return converter
    model_type = source.get("model_type")
    for family in FAMILIES.values():
        if family.model_type == model_type:
            raise ValueError(f"{path} is a model of hf_loop already: load it with {family.loader}.from_pretrained")
    if model_type in CONFIG_MAPPING:
        raise ValueError(f"{path} is a plain {model_type!r} model: make it looped with hf_loop.retrofit")
    families = ", ".join(converter.__name__.rpartition(".")[2] for converter in CONVERTERS)
    raise ValueError(f"{path} has the model type {model_type!r}, which no converter knows; there are {families}")


def load_converted(
    config: PreTrainedConfig,
    state_dict: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    model_class: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """The model of a configuration and its weights.

    Args:
        config (`PreTrainedConfig`): the model's configuration.
        state_dict (`dict[str, torch.Tensor]`): all weights under our names; where the head is tied, without it.
        dtype (`torch.dtype`, *optional*): dtype of the weights, by default the widest among them, without those that
            the model has in float32 in any case.
        model_class (`type`, *optional*): the model's class, that of causal language models if not given.

    Raises:
        ValueError: weights are unknown, missing or of another shape; the message names them.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config) if model_class is None else make_model(model_class, config)
    if dtype is None:
        fixed = float32_names(type(empty), config)
        for name in state_dict.keys() - fixed:
            stored = state_dict[name].dtype
            dtype = stored if dtype is None else torch.promote_types(dtype, stored)
    name = "the converted checkpoint"
    check_shapes(empty, {tensor: tuple(value.shape) for tensor, value in state_dict.items()}, name)
    # fills the rotary buffers and ties the weights, too
    return load_pretrained(type(empty), None, name=name, config=config, state_dict=state_dict, dtype=dtype)
