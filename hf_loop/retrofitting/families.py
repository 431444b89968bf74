"""The one entrance to every way of making a recurrent model out of a pretrained one."""

import copy
import inspect
import os
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ..field_values import check_names, check_types, field_types
from ..models import FAMILIES, Family
from ..models.backbone_check import check_refusal
from .feedback import retrofit_feedback
from .looped import looped_config, retrofit_looped
from .moving import check_kind, move_into, open_base


# what makes the model, for families where that is more than to move the modules of the original
MAKERS: dict[str, Callable[..., Any]] = {"looped": retrofit_looped, "feedback": retrofit_feedback}
# what makes the configuration out of the original's, where that is more than to put it inside. The arguments by
# keyword that it names are given as fields are, whether the family's configuration has them or not
CONFIGURATIONS: dict[str, Callable[..., Any]] = {"looped": looped_config}


def retrofit(model_or_path: PreTrainedModel | str | os.PathLike, family: str = "looped", **fields: Any) -> Any:
    """Run the layers of a pretrained causal model on the schedule of another family.

    The modules move: no weight is copied, and the model passed in should not be used afterwards. A looped model at one
    loop is the original, a feedback model without a memory and with all segments, and a sleep model in its first
    window; what is special about a family is in its module of `hf_loop.retrofitting`.

    Args:
        model_or_path (`PreTrainedModel` or `str`): a causal model of a supported backbone, quantized or not, or where
            to load one from. For `"feedback"` and `"sleep"` also a looped or hierarchical model.
        family (`str`): the kind of recurrent model, by the name that its record has (`hf_loop.models.FAMILIES`).
        fields: fields of the family's configuration, such as [`FeedbackConfig`]; those that are not given have the
            configuration's defaults. For `"looped"` also which layers loop, see
            [`looped_config`](hf_loop.retrofitting.looped.looped_config).

    Returns:
        `PreTrainedModel`: the family's causal language model, such as [`LoopedForCausalLM`], on the device and in the
        dtype of the original.

    Raises:
        ValueError: there is no such family, a field is not the family's, of another type or refused by its
            configuration, the model is recurrent already, or its architecture is not supported.

    Example:

    ```python
    >>> import hf_loop

    >>> looped = hf_loop.retrofit("path/or/repository", num_prelude_layers=4, num_coda_layers=4, num_loops=2)
    >>> feedback = hf_loop.retrofit("path/or/repository", "feedback", block_size=512, num_memory_segments=1)
    >>> sleeper = hf_loop.retrofit("path/or/repository", "sleep", sleep_window=512, num_sleep_passes=2)
    ```
    """
    fields = check_fields(family, fields)
    base = open_base(model_or_path, FAMILIES[family].config.backbone_kinds)
    make = MAKERS.get(family)
    return move_into(FAMILIES[family].causal, base, fields) if make is None else make(base, **fields)


def check_fields(family: str, fields: dict[str, Any], config: PreTrainedConfig | None = None) -> dict[str, Any]:
    """Refuse what [`retrofit`] would refuse, before weights are read, and return the fields as it takes them.

    Args:
        family (`str`): the kind of recurrent model.
        fields (`dict`): values by the names of their fields.
        config (`PreTrainedConfig`, *optional*): the original's; with it the fields are held to one another, too.

    Raises:
        ValueError: there is no such family, a field is not the family's, of another type, or refused, or `config` is
            of a recurrent model or of a decoder that cannot be opened.
    """
    record = find_family(family)
    known = {name: hint for name, (hint, _) in retrofit_fields(record).items()}
    for name in fields:
        owners = [other for other in FAMILIES if name in retrofit_fields(FAMILIES[other])]
        if name not in known and owners:
            raise ValueError(f"`{name}` is no field of the family {family!r}: it belongs to {owners[0]!r}")
    check_names(fields, known, f"the family {family!r}", "field")
    fields = check_types(fields, known)
    if config is not None:
        check_kind(config, record.config.backbone_kinds)
        check_refusal(config)
        make: Any = CONFIGURATIONS.get(family, record.config)
        make(backbone_config=copy.deepcopy(config), **fields)
    return fields


def retrofit_fields(record: Family) -> dict[str, tuple[Any, Any]]:
    """The fields that [`retrofit`] takes for a family, each with its type and its default.

    Args:
        record (`Family`): the record of the family.
    """
    types, defaults = field_types(record.config), {item.name: item.default for item in dataclass_fields(record.config)}
    found = {name: (types[name], defaults[name]) for name in record.own_fields}
    if record.name in CONFIGURATIONS:
        for parameter in inspect.signature(CONFIGURATIONS[record.name]).parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                found[parameter.name] = (parameter.annotation, parameter.default)
    return found


def find_family(family: str) -> Family:
    """The record of a family of language models.

    Raises:
        ValueError: there is no such family.
    """
    names = [name for name, record in FAMILIES.items() if record.causal is not None]
    if family not in names:
        raise ValueError(f"`family` must be one of {', '.join(map(repr, names))}, got {family!r}")
    return FAMILIES[family]
