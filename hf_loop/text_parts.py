"""The language model inside a checkpoint that reads images or sounds too.

A composite checkpoint (Gemma 3, Qwen 3.5, Mistral 3, Llama 4, Llava, ...) has a configuration with parts, and among
its modules a decoder like any other. Every function and command that takes a pretrained model takes the language model
of such a checkpoint. It is found here and nowhere else. No tensor is renamed: transformers opens the checkpoint, and
the modules move. The logits of the language model are compared with those of the whole model on a few tokens before
it is used.
"""

import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configurations import is_adapter, read_config
from .gguf_files import is_gguf
from .loading import architecture_of, check_model_folder, load_pretrained, load_with_faults
from .models import family_of
from .models.evaluation_mode import evaluation_mode
from .models.transformers_seams import attention_function, causal_model_class, choose_attention_function


# fields by which some language models scale or bound their logits, each with the value that changes nothing. Some
# composite models leave this out around the same decoder, and their weights were trained without it
FINISHING: dict[str, Any] = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
# tokens that the logits are compared on
NUM_TOKENS = 8
# largest difference of two logits over the largest logit. It is rounding, where the whole model counts positions from
# another number
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2


def decoder_config(path: str | os.PathLike, **options: Any) -> PreTrainedConfig:
    """Read the configuration of what [`load_decoder`] loads, without its weights.

    Args:
        path (`str` or `os.PathLike`): a folder, a repository on the Hub, or a GGUF file.
        options: fields of the configuration to set otherwise than the file does.

    Raises:
        ValueError: as [`read_config`], or if the checkpoint is composite, and there is no language model that can be
            taken out.
        OSError: if there is no such checkpoint.
    """
    config = text_config(read_config(path, **options), path)
    _check_causal(config, path)
    return config


def load_decoder(path: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """Load a causal language model, or the one inside a composite checkpoint, as [`load_pretrained`] does.

    Args:
        path (`str` or `os.PathLike`): a folder, a repository on the Hub, or a GGUF file.
        options: further arguments of [`load_pretrained`].

    Returns:
        `PreTrainedModel`: the model, in evaluation mode.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape, the model is no language model, or the
            checkpoint is composite, and there is no language model that can be taken out.
        OSError: if there is no such checkpoint, or it lacks a file.
    """
    # a GGUF file holds a language model alone
    if is_gguf(path):
        return load_pretrained(AutoModelForCausalLM, path, **options)
    if is_adapter(path):
        # transformers opens its base and then the adapter
        return load_pretrained(AutoModelForCausalLM, path, **options)
    config = read_config(path)
    text = text_config(config, path)
    _check_causal(text, path)
    family: Any = family_of(text)
    if family is not None and family.causal is None:
        raise ValueError(f"{path} is a puzzle model, which fills boards: no language model")
    if text is config:
        return load_pretrained(AutoModelForCausalLM, path, **options)
    whole_class = architecture_of(config)
    if whole_class is None:
        raise ValueError(
            f"transformers has no class {(config.architectures or [None])[0]}, which the config.json of {path} names: "
            f"{_advice(text)}"
        )
    language_class: Any = causal_model_class(config)
    if language_class is not None and issubclass(language_class.config_class, type(text)):
        # transformers can read the language model alone; check the whole folder, since the rest is left out
        check_model_folder(path)
        model, faults = load_with_faults(language_class, path, path, **options)
        if not (faults["missing_keys"] or faults["mismatched_keys"]):
            return model
    return text_part(load_pretrained(whole_class, path, **options))


def _check_causal(config: PreTrainedConfig, name: object) -> None:
    """Refuse a model that is no language model, but leave those of our own families to whoever asked for one."""
    if family_of(config) is not None:
        return
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is a {config.model_type} model, whose decoder needs its encoder: no language model")
    if causal_model_class(config) is None:
        raise ValueError(
            f"{name} is a {config.model_type} model, and transformers has no causal language model of that type"
        )


def text_config(config: PreTrainedConfig, name: object) -> PreTrainedConfig:
    """Return the language model's part of a composite configuration, and any other configuration unchanged.

    Args:
        config (`PreTrainedConfig`): a configuration.
        name (`object`): what messages call the checkpoint.

    Raises:
        ValueError: if transformers has no causal language model for the part.
    """
    text = config.get_text_config(decoder=True)
    # of an encoder-decoder this is a view of the whole, or a decoder that needs the encoder
    if type(text) is type(config) or getattr(config, "is_encoder_decoder", False):
        return config
    if causal_model_class(text) is None:
        raise ValueError(
            f"{name} is a {config.model_type} model, and transformers has no causal language model for its text part "
            f"{text.model_type}, which cannot be taken out: load a language model"
        )
    return text


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Take the language model out of a composite model; any other model is returned unchanged.

    Modules move: no weight is copied, tied weights stay tied, and `model` should not be used afterwards.

    Args:
        model (`PreTrainedModel`): a model with or without other parts than text.

    Returns:
        `PreTrainedModel`: a causal language model, whose configuration is the part's own, with the generation
        configuration of `model`.

    Raises:
        ValueError: if there is no language model that could be taken out, or it computes something else than `model`.
    """
    name = model.name_or_path or type(model).__name__
    text = text_config(model.config, name)
    if text is model.config:
        return model
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"{name} must be a causal language model, got {type(model).__name__}, which has no head over the "
            "vocabulary"
        )
    decoder = _decoder(model, text, name)
    input_ids = _some_tokens(model.config, text, model.device)
    expected = _logits(model, input_ids, name, text)
    tolerance = TOLERANCE if expected.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    for neutral in ({}, {key: value for key, value in FINISHING.items() if hasattr(text, key)}):
        for key, value in neutral.items():
            setattr(decoder.config, key, value)
        language_model = _put_together(decoder, head)
        logits = _logits(language_model, input_ids, name, text)
        if (logits - expected).abs().max() <= tolerance * expected.abs().max():
            break
    else:
        raise ValueError(
            f"the text part of {name}, taken out as {type(language_model).__name__}, computes other logits than "
            f"{type(model).__name__}: {_advice(text)}"
        )
    language_model.generation_config = model.generation_config
    language_model.name_or_path = model.name_or_path
    carry_quantization(model, language_model)
    return language_model.train(model.training)


def carry_quantization(source: Any, target: Any) -> None:
    """Mark a model that holds the quantized modules of another as quantized, so that it saves, loads and trains so.

    Args:
        source (`PreTrainedModel`): the model that was quantized, or not.
        target (`PreTrainedModel`): the model that has its modules.
    """
    if getattr(source, "hf_quantizer", None) is None:
        return
    target.hf_quantizer = source.hf_quantizer
    target.quantization_method = getattr(source, "quantization_method", None)
    target.is_quantized = True
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    target.config.quantization_config = source.config.quantization_config


def _decoder(model: Any, text: PreTrainedConfig, name: object) -> PreTrainedModel:
    decoder = model.get_decoder()
    if not isinstance(decoder, PreTrainedModel) or type(decoder.config) is not type(text):
        raise ValueError(f"{type(model).__name__} of {name} does not say which part is its decoder: {_advice(text)}")
    return decoder


def _put_together(decoder: PreTrainedModel, head: nn.Module) -> Any:
    """Make a causal language model of a decoder and a head; weights that they share stay shared."""
    config: Any = decoder.config
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    attention = attention_function(config)
    with torch.device("meta"):
        language_model: Any = AutoModelForCausalLM.from_config(config)
    choose_attention_function(config, attention)
    # Llama 4's prefix is the name of its decoder in the whole model
    prefix = language_model.base_model_prefix
    setattr(language_model, prefix if hasattr(language_model, prefix) else "model", decoder)
    language_model.set_output_embeddings(head)
    language_model.config = config
    return language_model


def _some_tokens(config: PreTrainedConfig, text: Any, device: torch.device) -> torch.Tensor:
    """Pick tokens `[1, T]` from all parts of the vocabulary, except those that stand for images and the like."""
    fields: dict[str, Any] = {**text.to_dict(), **config.to_dict()}
    special = {
        value
        for key, value in fields.items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    tokens = [token for token in range(text.vocab_size) if token not in special]
    return torch.tensor([tokens[:: max(len(tokens) // NUM_TOKENS, 1)][:NUM_TOKENS]], device=device)


def _logits(model: Any, input_ids: torch.Tensor, name: object, text: PreTrainedConfig) -> torch.Tensor:
    try:
        with evaluation_mode(model):
            return model(input_ids=input_ids, use_cache=False).logits
    except (TypeError, ValueError, AttributeError) as error:
        # some composite models want an image with every call
        raise ValueError(
            f"{type(model).__name__} of {name} does not run on text alone ({error}): {_advice(text)}"
        ) from error


def _advice(text: PreTrainedConfig) -> str:
    language_class: Any = causal_model_class(text)
    return f"load its {text.model_type} part by itself, saved as a {language_class.__name__}"
