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
from the schedule."""

import copy
from typing import Any, ClassVar, Self

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .checks import check_positive_int, plain_count, strict
from .configuration_hrm import HrmBackboneConfig
from .configuration_huginn import HuginnBackboneConfig
from .configuration_parcae import ParcaeBackboneConfig
from .field_checks import check_attribute, check_backbone_fields, check_fields, check_unused
from .schedules import Call, Depth


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
        AttributeError: if it does not. A property that asks this is then absent, as the backbone's own is.
    """
    if backbone_config.layer_types is None:
        raise AttributeError(f"`layer_types` of the {backbone_config.model_type} backbone is None")
    # transformers' caches know layers without any as "moe"
    return ["moe" if layer_type == "mlp" else layer_type for layer_type in backbone_config.layer_types]


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class RecurrentConfig(PreTrainedConfig):
    r"""
    A backbone and a schedule. A family over depth says which layer calls make a pass (`depth`); one over time
    ([`TimeConfig`]) says which tokens are passed when.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder whose layers are run. Any decoder in the table of `README.md`; defaults to
            Llama's. Fields such as `vocab_size` or `hidden_size` may also be given directly when this is a dictionary
            or left out; they are read and written through to it.

    Raises:
        ValueError: if the backbone is no configuration, of an unknown type, or a recurrent model that this one cannot
            run; or the loop count is no positive integer.
        TypeError: if there is no field of a name that is given.
    """

    sub_configs = {"backbone_config": AutoConfig}
    # the backbone names its own modules in its own plans
    base_model_fsdp_plan = {}
    base_model_tp_plan = {}
    # every Auto class that can open the remote code written beside the weights; a family's own
    remote_classes = {}
    # what the family schedules: "depth", "time", or "puzzle", a depth whose states are carried from call to call
    kind: ClassVar[str] = "depth"
    # the kinds that its backbone may have, besides a decoder
    backbone_kinds: ClassVar[tuple[str, ...]] = ()
    # classes of recurrent backbones that may have to be found where hf_loop is not installed, by model type
    backbone_config_classes: ClassVar[dict[str, Any]] = {}

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
            config_class = self.backbone_config_classes.get(model_type)
            if config_class is None and model_type not in CONFIG_MAPPING:
                raise ValueError(f"`backbone_config.model_type` {model_type!r} is not a transformers model type")
            config_class = config_class or CONFIG_MAPPING[model_type]
            check_backbone_fields(config_class, fields, self)
            self.backbone_config = config_class(**fields)
        self._check_nesting()
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

    def _check_nesting(self) -> None:
        kind = kind_of(self.backbone_config)
        if kind is not None and kind not in self.backbone_kinds:
            inner = self.backbone_config.model_type
            reason = (
                f"{'an' if inner[0] in 'aeiou' else 'a'} {inner} model schedules {_KINDS[kind]}, and a "
                f"{self.model_type} model {_KINDS[self.kind]}"
            )
            can = " and ".join(_KINDS[kind] for kind in self.backbone_kinds)
            hint = f"a decoder, or a model that schedules {can}" if can else "a decoder"
            raise ValueError(f"`backbone_config.model_type` {inner!r} must be that of {hint}: {reason}")

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """Configuration of the decoder whose layers are run in the end; the backbone's, unless that is recurrent."""
        backbone_config = self.backbone_config
        return backbone_config if kind_of(backbone_config) is None else backbone_config.decoder_config

    def depth(self, model: Any = None, norm: Any = None) -> Depth:
        """The depth schedule, which without a model counts layer calls only.

        Args:
            model (`PreTrainedModel`, *optional*): the model without its head, for what acts between the calls.
            norm (`Callable`, *optional*): the decoder's final norm.
        """
        if kind_of(self.backbone_config) is not None:
            return self.backbone_config.depth(model, norm)
        return Depth(self.decoder_config.num_hidden_layers, norm)

    def calls(self, **depth: Any) -> list[Call]:
        """The layer calls of one pass over tokens.

        Args:
            depth: such as `num_loops`; what is not given is the configuration's own.
        """
        return self.depth().calls(**depth)

    @property
    def has_loops(self) -> bool:
        """Whether its depth is a number of loops."""
        return "num_loops" in self.depth_arguments

    @property
    def depth_arguments(self) -> tuple[str, ...]:
        """The arguments that a forward pass takes for its depth."""
        return self.depth().arguments

    def num_slots(self, **depth: Any) -> int:
        """Cache slots of a pass, one for every layer call.

        Args:
            depth: such as `num_loops`; what is not given is the configuration's own.
        """
        return len(self.calls(**depth))

    # derived, so that `from_pretrained(folder, num_loops=8)` sizes caches right
    @property
    def num_hidden_layers(self) -> int:
        """Cache slots."""
        return self.num_slots()

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        # `assistant_early_exit` and others shorten a model by assigning its depth: here that means fewer loops
        self.num_loops = self.loops_of(value)

    def loops_of(self, num_slots: int) -> int:
        """The number of loops that has so many cache slots.

        Raises:
            ValueError: if there is none.
        """
        if not self.has_loops:
            raise ValueError(f"`num_hidden_layers` follows from `backbone_config`, got {num_slots}")
        fixed = self.num_slots(num_loops=0)
        per_loop = self.num_slots(num_loops=1) - fixed
        num_loops, rest = divmod(num_slots - fixed, per_loop)
        if rest:
            raise ValueError(
                f"`num_hidden_layers` {num_slots} is not {fixed} plus a multiple of the {per_loop} layer calls of a "
                "loop"
            )
        return num_loops

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot, for backbones that mix layer types."""
        layer_types = cache_types(self.decoder_config)
        return [layer_types[call.layer] for call in sorted(self.calls(), key=lambda call: call.slot)]

    def with_num_loops(self, num_loops: int) -> Self:
        """A shallow copy with another loop count, to size a cache for one call.

        Raises:
            ValueError: if the model has no loops, or the number is not a positive integer.
        """
        self.check_has_loops(num_loops)
        config = copy.copy(self)
        if kind_of(self.backbone_config) is None:
            config.num_loops = num_loops
        else:
            # past the check of fields, for it is the same configuration with another number of loops
            vars(config)["backbone_config"] = self.backbone_config.with_num_loops(num_loops)
        return config

    def check_has_loops(self, num_loops: int) -> None:
        """Refuse a number of loops for a model without.

        Raises:
            ValueError: as above.
        """
        if not self.has_loops:
            raise ValueError(f"`num_loops` {num_loops} needs loops, and this {self.model_type} model has none")


# trf-ignore: TRF057 as above
@strict
class TimeConfig(RecurrentConfig):
    r"""
    A schedule of tokens, whose passes are those of the backbone: a decoder's, or those of a model over depth.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the model that makes a pass over tokens: a decoder, or a looped or hierarchical model.

    Raises:
        ValueError: as [`RecurrentConfig`]; or a number of loops is asked of a backbone without loops.
    """

    kind: ClassVar[str] = "time"
    backbone_kinds: ClassVar[tuple[str, ...]] = ("depth",)

    @property
    def num_loops(self) -> int:
        """Loops of the backbone."""
        return self.backbone_config.num_loops

    @num_loops.setter
    def num_loops(self, value: int):
        self.check_has_loops(value)
        self.backbone_config.num_loops = value

    def validate_layer_type(self):
        """The backbone checks its own; those of models over time name the kind of cache."""


_KINDS = {"depth": "layer calls", "time": "tokens", "puzzle": "the segments of a puzzle"}


def kind_of(config: PreTrainedConfig) -> str | None:
    """The kind of a recurrent model's configuration, `None` of a decoder's."""
    # by what the class has and not by the class, which a local folder loads twice
    config_class: Any = type(config)
    return config_class.kind if hasattr(config_class, "decoder_config") else None


def _backbone_property(name: str) -> property:
    def read(self):
        return getattr(self.backbone_config, name)

    def write(self, value):
        setattr(self.backbone_config, name, plain_count(name, value))

    return property(read, write, doc=f"`{name}` of the backbone.")


for _name in (*BACKBONE_FIELDS, *HEAD_FIELDS):
    setattr(RecurrentConfig, _name, _backbone_property(_name))

__all__ = ["RecurrentConfig", "TimeConfig", "cache_types", "kind_of"]
