"""Checkpoints of recurrent models that transformers has itself: its own classes read them, and write them back."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ...loading import check_loaded, load_with_faults
from ...models.transformers_seams import float32_names, make_model
from ..plain_generation import plain_generation_config
from .rules import drop_tied_head


CHECKPOINT = "the checkpoint"
# what the reader of a checkpoint adds to its configuration
READER_FIELDS = ("tensor_names", "tensor_shapes", "tokenizer_token_ids")
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def read_native_config(config_class: type[PreTrainedConfig], config: dict[str, Any]) -> Any:
    """The native configuration of a `config.json`; special tokens that it lacks are the tokenizer's."""
    fields = {name: value for name, value in config.items() if name not in READER_FIELDS}
    native_config = config_class.from_dict(fields)
    text_config: Any = native_config.get_text_config(decoder=True)
    for name in TOKEN_IDS:
        if getattr(text_config, name) is None:
            setattr(text_config, name, config.get("tokenizer_token_ids", {}).get(name))
    return native_config


def convert_native_tensors(
    model_class: type[PreTrainedModel],
    native_config: PreTrainedConfig,
    tensors: dict[str, Tensor],
    decoder: str = "model.",
) -> dict[str, Tensor]:
    """The tensors of a native checkpoint under the names of ours, whose backbone is the native decoder.

    Args:
        model_class (`type`): the native class, which knows how published files hold its weights.
        native_config (`PreTrainedConfig`): its configuration.
        tensors (`dict`): the checkpoint's tensors by name; those that the native model has are taken out.
        decoder (`str`, *optional*, defaults to `"model."`): what the names of the decoder's tensors begin with. Other
            parts of the native model, such as a vision tower, are left out.

    Raises:
        ValueError: tensors are missing, of another shape, or unknown under a name that the native class changes on
            loading, or a tied head differs from the embedding; the message names them.
    """
    dtypes, dtype = {tensor.dtype for tensor in tensors.values()}, torch.float32
    if len(dtypes) == 1:
        (dtype,) = dtypes
    elif float32_names(model_class, native_config):
        dtype = native_config.dtype or dtype
    native, faults = load_with_faults(
        model_class,
        None,
        CHECKPOINT,
        config=native_config,
        state_dict=dict(tensors),
        dtype=dtype,
    )
    # the caller refuses what is left over, as of every checkpoint that is converted
    unknown = set(faults["unexpected_keys"])
    check_loaded({**faults, "unexpected_keys": unknown - tensors.keys()}, CHECKPOINT, native_config.model_type)
    for name in tensors.keys() - unknown:
        del tensors[name]
    converted = {}
    for name, tensor in native.state_dict().items():
        if name.startswith(decoder):
            converted[f"model.backbone.{name.removeprefix(decoder)}"] = tensor
        elif not name.startswith("model."):
            converted[name] = tensor
    if getattr(native_config.get_text_config(decoder=True), "tie_word_embeddings", False):
        # where the files hold two that differ, transformers leaves them so
        drop_tied_head(converted, "lm_head.weight", "model.backbone.embed_tokens.weight")
    return converted


def write_native(
    model_class: type[PreTrainedModel],
    native_config: PreTrainedConfig,
    model: PreTrainedModel,
    native_settings: Collection[str] = (),
) -> Any:
    """The native model with the weights of `model`, of which it shares none.

    Args:
        model_class (`type`): the native class.
        native_config (`PreTrainedConfig`): its configuration.
        model (`PreTrainedModel`): the model of this library.
        native_settings (`Collection[str]`): settings of generation that `native_config` holds.

    Raises:
        ValueError: another setting of generation is one that only this library has.
    """
    generation_config = plain_generation_config(model, native_settings)
    native_config.dtype = model.dtype
    # not by `from_pretrained`, which saves under the names that it was given: files would not be as published
    native = make_model(model_class, native_config)
    state_dict = model.state_dict()
    native.load_state_dict({name.replace("model.backbone.", "model.", 1): state_dict[name] for name in state_dict})
    native.generation_config = generation_config
    return native.to(model.device).train(model.training)
