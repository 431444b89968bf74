"""The model of a recipe, of any family: new, made of a pretrained decoder, or a model of the family that goes on."""

from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from ..field_values import check_names, field_types
from ..files import fault_named
from ..loading import check_loaded, load_pretrained, load_with_faults
from ..models import family_of
from ..models.checks import make_config
from ..models.configuration_recurrent import RecurrentConfig, kind_of
from ..retrofitting import retrofit
from ..retrofitting.families import check_fields
from ..text_parts import decoder_config, load_decoder
from .sections import DataSection, ModelSection


# cells of a puzzle before the data say how many there are, to make the configuration of a mixer over positions
UNKNOWN_NUM_CELLS = 64


def check_model(section: ModelSection) -> None:
    """Refuse a section `model` that no configuration accepts, before any data is loaded for it.

    Args:
        section (`ModelSection`): the section `model` of a recipe.

    Raises:
        ValueError: names the field, or the families of a model that is of another one.
    """
    if section.pretrained is None:
        new_config(section)
        return
    config = decoder_config(section.pretrained)
    family = family_of(config)
    if family is section.record:
        own = {name: value for name, value in section.config.items() if name in family.own_fields}
        for name in section.config.keys() - own.keys():
            raise ValueError(
                f"model.config.{name} cannot be chosen, got {section.config[name]!r}: {section.pretrained} is a "
                f"{family.name} model already"
            )
        decoder_config(section.pretrained, **own)
    elif section.record.causal is None or kind_of(config) not in (None, *section.record.config.backbone_kinds):
        plain = "" if section.record.causal is None else "a plain model or "
        raise ValueError(
            f"model.pretrained must be {plain}one of model.family={section.family}, got {section.pretrained}, a "
            f"{config.model_type if family is None else family.name} model"
        )
    else:
        check_fields(section.family, section.config, config)


def build_model(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase, num_cells: int = UNKNOWN_NUM_CELLS
) -> PreTrainedModel:
    """Build the model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section (`ModelSection`): the section `model` of a recipe.
        tokenizer (`PreTrainedTokenizerBase`): gives the vocabulary size and the special token ids of a new model.
        num_cells (`int`, *optional*): cells of a puzzle, which a mixer over positions is made for.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's, a field is refused by the configuration, or
            the tensors of a pretrained model are not those of its configuration.
    """
    record = section.record
    # in single precision whatever the stored type: small updates vanish in 16-bit weights
    dtype = torch.float32
    if section.pretrained is None:
        config = new_config(section, tokenizer, num_cells)
        # more memory than there is, among others
        with fault_named("model"):
            model: Any = record.classes[record.loader](config)
            _check_runs(model, num_cells)
    elif family_of(decoder_config(section.pretrained)) is record:
        model = load_own(section, dtype)
    else:
        model = retrofit(load_decoder(section.pretrained, dtype=dtype), section.family, **section.config)
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"the vocabulary of the model must hold the tokenizer's {len(tokenizer)} tokens, "
            f"got vocab_size={model.config.vocab_size}"
        )
    return model


def load_own(section: ModelSection, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model of the family. An exit gate that `config` asks for, and the model does not have, is new.

    Args:
        section (`ModelSection`): the section `model` of a recipe, whose `pretrained` is of the family.
        dtype (`torch.dtype`): the type of the weights.

    Raises:
        ValueError: the tensors are not those of the configuration.
    """
    path, loader = str(section.pretrained), getattr(transformers, section.record.loader)
    if not section.config.get("exit_gate") or getattr(decoder_config(path), "exit_gate", True):
        return load_pretrained(loader, path, dtype=dtype, **section.config)
    model, faults = load_with_faults(loader, path, path, dtype=dtype, **section.config)
    faults["missing_keys"] = [name for name in faults["missing_keys"] if "exit_gate" not in name.split(".")]
    check_loaded(faults, path, type(model).__name__)
    return model


@torch.no_grad()
def _check_runs(model: Any, num_cells: int) -> None:
    """Run a new model once: sizes that do not fit each other fail here, and not in the first step of training."""
    # DeepSpeed may have split the weights over processes
    if not is_deepspeed_zero3_enabled():
        model.eval()(input_ids=torch.zeros(1, 2 if model.can_generate() else num_cells, dtype=torch.long))
        model.train()


def check_block_size(section: ModelSection, data: DataSection) -> None:
    """Refuse to train a new model on rows of text that it has no positions for; a model with a memory has no limit.

    Args:
        section (`ModelSection`): the section `model` of a recipe.
        data (`DataSection`): its section `data`.

    Raises:
        ValueError: names both lengths.
    """
    if section.pretrained is not None or data.task is not None:
        return
    config = new_config(section)
    limit = getattr(config.decoder_config, "max_position_embeddings", None)
    if config.kind == "depth" and limit is not None and data.block_size > limit:
        raise ValueError(
            f"data.block_size={data.block_size} is more than the model's {limit} positions: lower it, or raise "
            "model.backbone.max_position_embeddings"
        )


def new_config(
    section: ModelSection, tokenizer: PreTrainedTokenizerBase | None = None, num_cells: int = UNKNOWN_NUM_CELLS
) -> PreTrainedConfig:
    """The configuration of a new model.

    Args:
        section (`ModelSection`): the section `model` of a recipe, with a `backbone` or a `preset`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): gives what the section does not.
        num_cells (`int`, *optional*): cells of a puzzle.

    Raises:
        ValueError: names the field that is refused.
    """
    record = section.record
    from_tokenizer: dict[str, Any] = {} if tokenizer is None else {"vocab_size": len(tokenizer)}
    if tokenizer is not None and record.causal is not None:
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        from_tokenizer |= {name: getattr(tokenizer, name) for name in names}
    if section.preset is None:
        backbone_config = new_backbone_config(from_tokenizer | (section.backbone or {}))
        with fault_named("model.config"):
            return record.config(backbone_config=backbone_config, **section.config)
    from_preset: Any = getattr(record.config, "from_preset")  # noqa: B009 the section has found it there
    fields = from_tokenizer | section.config
    with fault_named("model.config"):
        if fields.get("token_mixer") == "mlp" and "max_position_embeddings" not in fields:
            # with the preset's own puzzle tokens, which it has without a mixer, too
            others = {name: value for name, value in fields.items() if name != "token_mixer"}
            num_tokens = from_preset(section.preset, **others).num_puzzle_tokens
            fields["max_position_embeddings"] = num_cells + num_tokens
        return from_preset(section.preset, **fields)


def new_backbone_config(backbone: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a new backbone.

    Args:
        backbone (`dict`): `model_type` and fields of its configuration.

    Raises:
        ValueError: transformers has no such model type, or its configuration no such field, or not of this type.
    """
    model_type = backbone["model_type"]
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(f"model.backbone.model_type must be a model type of transformers, got {model_type!r}")
    config_class = CONFIG_MAPPING[model_type]
    fields = {name: value for name, value in backbone.items() if name != "model_type"}
    # those of transformers keep unknown fields as plain attributes: a misspelt one would silently mean the default
    if not issubclass(config_class, RecurrentConfig):
        check_names(fields, [*field_types(config_class), *config_class.attribute_map], "model.backbone")
    return make_config(config_class, fields, "model.backbone")
