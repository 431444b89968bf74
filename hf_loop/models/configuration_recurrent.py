# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What the configurations of the families share: a backbone whose fields they pass on, and cache slots that follow
from the loop count."""

import copy
from typing import Any, Self

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .checks import check_positive_int, plain_count, strict
from .configuration_hrm import HrmBackboneConfig
from .configuration_huginn import HuginnBackboneConfig
from .configuration_parcae import ParcaeBackboneConfig
from .field_checks import check_attribute, check_backbone_fields, check_fields, check_unused


# decoders that transformers does not have; here, so that a configuration finds them where hf_loop is not installed
for _config_class in (HrmBackboneConfig, HuginnBackboneConfig, ParcaeBackboneConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)

# read and written through to the backbone, under the names the rest of the ecosystem asks the outer config for
BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "initializer_range",
    "sliding_window",
    "attention_dropout",
)
# what scales or bounds logits, where the backbone does that: TRL's trainers compute them by themselves and ask here
HEAD_FIELDS = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
# copied once, because `generate` reads them from the outer config's dictionary
COPIED_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


def cache_types(backbone_config: PreTrainedConfig) -> list[str]:
    """Kind of cache of every layer of a backbone that mixes them.

    Raises:
        AttributeError: it does not. A property that asks this is then absent, as the backbone's own is.
    """
    if backbone_config.layer_types is None:
        raise AttributeError(f"`layer_types` of the {backbone_config.model_type} backbone is None")
    # transformers' caches know layers without any as "moe"
    return ["moe" if layer_type == "mlp" else layer_type for layer_type in backbone_config.layer_types]


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class RecurrentConfig(PreTrainedConfig):
    r"""
    A backbone and a number of loops. A family adds its schedule: `num_loops` with a default, and `num_slots`.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder whose layers are run. Any decoder in the table of `README.md`; defaults to
            Llama's. Fields such as `vocab_size` or `hidden_size` may also be given directly when this is a dictionary
            or left out; they are read and written through to it.

    Raises:
        ValueError: the backbone is no configuration or of an unknown type, or the loop count is no positive integer.
        TypeError: there is no field of a name that is given.
    """

    sub_configs = {"backbone_config": AutoConfig}
    # the backbone names its own modules in its own plans
    base_model_fsdp_plan = {}
    base_model_tp_plan = {}
    # every Auto class that can open the remote code written beside the weights; a family's own
    remote_classes = {}

    backbone_config: Any = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        if not isinstance(self.backbone_config, dict | PreTrainedConfig | None):
            raise ValueError(f"`backbone_config` must be a configuration or a dict, got {self.backbone_config!r}")
        if not isinstance(self.backbone_config, PreTrainedConfig):
            fields = dict(self.backbone_config or {})
            fields |= {name: plain_count(name, kwargs.pop(name)) for name in BACKBONE_FIELDS if name in kwargs}
            model_type = fields.pop("model_type", "llama")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"`backbone_config.model_type` {model_type!r} is not a transformers model type")
            config_class = CONFIG_MAPPING[model_type]
            check_backbone_fields(config_class, fields, self)
            self.backbone_config = config_class(**fields)
        check_fields(self, kwargs, BACKBONE_FIELDS)
        for name in COPIED_FIELDS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.backbone_config, name, None))
        if self.dtype is None:
            self.dtype = self.backbone_config.dtype
        kwargs.setdefault("auto_map", dict(self.remote_classes))
        super().__post_init__(**kwargs)

    def __setattr__(self, key, value):
        if key == "num_loops":
            check_positive_int(key, value)
        if key not in self.__dict__:
            check_attribute(self, key)
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As transformers', except that a keyword that is no field is a `TypeError`."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        check_unused(cls, unused, is_final=not return_unused)
        return (config, unused) if return_unused else config

    # rotary parameters are brought into form and checked by the backbone, which knows its own
    def convert_rope_params_to_dict(self, **kwargs):
        return self.backbone_config.convert_rope_params_to_dict(**kwargs)

    def standardize_rope_params(self):
        self.backbone_config.standardize_rope_params()

    def validate_rope(self):
        self.backbone_config.validate_rope()

    def num_slots(self, num_loops: int) -> int:
        """Cache slots of a forward pass with `num_loops` loops; every family with loops defines it."""
        # there is no count that would be right for a schedule nobody has written yet
        raise NotImplementedError

    # one cache slot per layer call; derived, so that `from_pretrained(folder, num_loops=8)` sizes caches right
    @property
    def num_hidden_layers(self) -> int:
        """Layer calls of one forward pass, which is also the number of cache slots."""
        return self.num_slots(self.num_loops)

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        # `assistant_early_exit` and others shorten a model by assigning its depth: here that means fewer loops
        fixed = self.num_slots(0)
        per_loop = self.num_slots(1) - fixed
        num_loops, rest = divmod(value - fixed, per_loop)
        if rest:
            raise ValueError(
                f"`num_hidden_layers` {value} is not {fixed} plus a multiple of the {per_loop} layer calls of a loop"
            )
        self.num_loops = num_loops

    def with_num_loops(self, num_loops: int) -> Self:
        """A shallow copy with another loop count, to size a cache for one call."""
        config = copy.copy(self)
        config.num_loops = num_loops
        return config


def _backbone_property(name: str) -> property:
    def read(self):
        return getattr(self.backbone_config, name)

    def write(self, value):
        setattr(self.backbone_config, name, plain_count(name, value))

    return property(read, write, doc=f"`{name}` of the backbone.")


for _name in (*BACKBONE_FIELDS, *HEAD_FIELDS):
    setattr(RecurrentConfig, _name, _backbone_property(_name))

__all__ = ["RecurrentConfig", "cache_types"]
