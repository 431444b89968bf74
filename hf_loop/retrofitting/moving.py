"""What every family does to a pretrained model: look at it, and move its modules into a model of its own."""

import os
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.adapters import refuse_adapter
from ..models.backbone import Backbone, backbone_spec, is_tested
from ..models.backbone_check import check_one_loop
from ..models.configuration_recurrent import kind_of
from ..models.evaluation_mode import kept_modes
from ..models.offloading import check_weights_are_here
from ..models.transformers_seams import attention_function, choose_attention_function
from ..text_parts import carry_quantization, load_decoder, text_part


def open_base(model_or_path: PreTrainedModel | str | os.PathLike, kinds: Collection[str] = ()) -> PreTrainedModel:
    """The pretrained model, loaded where a path is given.

    Args:
        model_or_path (`PreTrainedModel` or `str`): a causal model of a supported backbone, quantized or not, or where
            to load one from. Of a model with other parts than text, such as images, the text part is taken.
        kinds (`Collection[str]`, *optional*): the kinds of recurrent models that it may be, too.

    Raises:
        ValueError: the tensors of the checkpoint are not those of the model, it carries an adapter, it is recurrent
            already, its architecture is not supported, its weights are offloaded, or it is no decoder with a head,
            such as an encoder or a bare decoder.
    """
    base: Any = model_or_path if isinstance(model_or_path, nn.Module) else load_decoder(model_or_path)
    refuse_adapter(base, "it is made recurrent")
    base = text_part(base)
    check_kind(base.config, kinds)
    is_recurrent = kind_of(base.config) is not None
    if not is_recurrent:
        backbone_spec(base.config, type(base))
    if base.get_output_embeddings() is None or base.base_model is base:
        raise ValueError(
            f"`model_or_path` must be a causal language model, got {type(base).__name__}, which has no head over the "
            "vocabulary"
        )
    check_weights_are_here(base, "model_or_path")
    if not is_recurrent:
        _check_weights(base)
    return base


def check_kind(config: PreTrainedConfig, kinds: Collection[str]) -> None:
    """Refuse a model that is recurrent already, in a way that leaves nothing to add.

    Args:
        config (`PreTrainedConfig`): its configuration.
        kinds (`Collection[str]`): the kinds of recurrent models that it may be.

    Raises:
        ValueError: names its family.
    """
    if kind_of(config) not in (None, *kinds):
        hint = ": unroll it first, or start from its original" if config.model_type == "looped_lm" else ""
        raise ValueError(f"`model_or_path` is a {config.model_type.removesuffix('_lm')} model already{hint}")


def _check_weights(base: Any) -> None:
    """Hold the pretrained model itself to the entry of its architecture, where the tests of hf_loop do not.

    Raises:
        ValueError: one loop over its layers is not the model.
    """
    if is_tested(base.config):
        return
    difference = check_one_loop(base, backbone_spec(base.config, type(base)), Backbone)
    if difference is not None:
        raise ValueError(f"`model_or_path` is a {base.config.model_type} model that cannot be opened: {difference}")


def move_into(model_class: Any, base: PreTrainedModel, fields: dict[str, Any]) -> Any:
    """A model of `model_class` around the modules of `base`, which is not changed where this is refused.

    The parts that `base` does not have start as those of a new model do, on its device and in its dtype.

    Args:
        model_class (`type`): a family's class with a language-model head.
        base (`PreTrainedModel`): the pretrained model, which should not be used afterwards.
        fields (`dict`): the fields of the family's configuration, beside the backbone's.

    Raises:
        ValueError: `base` carries an adapter, or the configuration or the model refuses a field.
    """
    refuse_adapter(base, "it is made recurrent")
    config = model_class.config_class(backbone_config=base.config, dtype=base.dtype, **fields)
    choose_attention_function(config, attention_function(base.config))
    with torch.device("meta"):
        model = model_class(config)
    model.model.backbone = base.base_model
    model.lm_head = base.get_output_embeddings()
    _stay_quantized(model, base)
    _fill_new_parts(model, base)
    model.generation_config = base.generation_config
    # not the base's: whoever loads what is named there, an adapter for instance, would get the base
    model.name_or_path = ""
    # what is new is in the mode of the base, whose modules stay in theirs
    with kept_modes(base):
        return model.train(base.training)


def _fill_new_parts(model: Any, base: PreTrainedModel) -> None:
    """Give what of `model` is still without memory (on the device "meta") its initial weights."""
    # parts before the whole, as transformers initialises: a whole may set what its parts start from
    for module in reversed([module for module in model.modules() if _is_new(module, any)]):
        if _is_new(module, any, recurse=False):
            module.to_empty(device=base.device, recurse=False)
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(base.dtype)
        model._init_weights(module)


def _is_new(module: nn.Module, of_tensors: Any, recurse: bool = True) -> bool:
    """Whether `any` or `all` of a module's tensors are without memory."""
    tensors = [*module.parameters(recurse), *module.buffers(recurse)]
    return bool(tensors) and of_tensors(tensor.is_meta for tensor in tensors)


def _new_parts(module: nn.Module, name: str = "") -> list[str]:
    """The names of the outermost modules that hold nothing but new tensors."""
    if _is_new(module, all):
        return [name]
    return [part for key, child in module.named_children() for part in _new_parts(child, f"{name}.{key}".lstrip("."))]


def _stay_quantized(model: Any, base: Any) -> None:
    """Let a quantized original's model be saved, loaded and trained as the quantized model that it is."""
    carry_quantization(base, model)
    if getattr(base, "hf_quantizer", None) is None:
        return
    quantization_config = model.config.quantization_config
    # without this, loading would look for quantized weights of the new parts
    kept = list(getattr(base.hf_quantizer, "modules_to_not_convert", None) or [])
    new = _new_parts(model)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if new and hasattr(quantization_config, name):
            setattr(quantization_config, name, [*kept, *new])
