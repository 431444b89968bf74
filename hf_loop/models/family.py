# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The record of a family, at the end of its modeling file, from which the rest of the library is derived."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from .configuration_recurrent import RecurrentConfig


# Trainer (for label smoothing and model cards) and lm-eval look models up in these tables of names, which `register`
# does not fill; without an entry, label smoothing would score every token against itself instead of the next one
_TABLES_OF_NAMES: dict[str, dict[str, Any]] = {
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """The record of a family of recurrent models.

    Args:
        name (`str`): name in the command line and in recipes.
        config (`type`): its configuration class.
        classes (`dict[str, type]`): its model classes, by the name of the Auto class that loads each.
        describe (`Callable`): describes the schedule of a configuration in a few words.
    """

    name: str
    config: type[RecurrentConfig]
    classes: dict[str, type]
    describe: Callable[[Any], str]

    @property
    def model_type(self) -> str:
        """Its model type, as in `config.json`."""
        return self.config.model_type

    @property
    def causal(self) -> Any:
        """Its class of causal language models, `None` if it has none."""
        return self.classes.get("AutoModelForCausalLM")

    @property
    def loader(self) -> str:
        """Name of the Auto class that loads its models with a head."""
        return next(name for name in self.classes if name != "AutoModel")

    @property
    def own_fields(self) -> list[str]:
        """Fields of its configuration that [`RecurrentConfig`] does not have."""
        shared = {field.name for field in fields(RecurrentConfig)}
        return [field.name for field in fields(self.config) if field.name not in shared]

    @property
    def loops(self) -> bool:
        """Whether its configuration has a number of loops."""
        return "num_loops" in self.own_fields


FAMILIES: dict[str, Family] = {}


def text_classes(model: type, causal: type, sequence_classifier: type, token_classifier: type) -> dict[str, type]:
    """Return the classes of a family of language models, by the names of their Auto classes."""
    return {
        "AutoModel": model,
        "AutoModelForCausalLM": causal,
        "AutoModelForSequenceClassification": sequence_classifier,
        "AutoModelForTokenClassification": token_classifier,
    }


def register_family(family: Family) -> None:
    """Register a family with transformers' Auto classes and with this library.

    Args:
        family (`Family`): its record.
    """
    FAMILIES[family.name] = family
    register_classes(family.config, family.classes)
    family.config.remote_classes = {
        "AutoConfig": _code_reference(family.config),
        **{auto_class: _code_reference(model_class) for auto_class, model_class in family.classes.items()},
    }
    for auto_class, model_class in family.classes.items():
        if auto_class in _TABLES_OF_NAMES:
            _TABLES_OF_NAMES[auto_class][family.model_type] = model_class.__name__


def register_classes(config_class: Any, classes: dict[str, Any]) -> None:
    """Register classes with the Auto classes, and have `save_pretrained` write their code.

    Args:
        config_class (`type`): the configuration class.
        classes (`dict[str, type]`): its model classes, by the name of the Auto class that loads each.
    """
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
    for auto_class, model_class in classes.items():
        getattr(modeling_auto, auto_class).register(config_class, model_class, exist_ok=True)
        # code beside the weights loads them where hf_loop is not installed
        model_class.register_for_auto_class(auto_class)


def family_of(config: Any) -> Family | None:
    """Return the record of a configuration's family, `None` if the configuration is not recurrent."""
    return next((family for family in FAMILIES.values() if family.model_type == config.model_type), None)


def _code_reference(code: type) -> str:
    return f"{code.__module__.rpartition('.')[2]}.{code.__name__}"


__all__ = ["FAMILIES", "Family", "family_of", "register_classes", "register_family", "text_classes"]
