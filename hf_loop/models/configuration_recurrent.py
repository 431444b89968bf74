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
"""Base classes of the families' configurations: a backbone, whose fields they pass on, and a schedule, from which the
number of cache slots follows."""

import copy
from contextlib import nullcontext
from typing import Any, ClassVar, Self

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .checks import check_positive_int, check_values, make_config, plain_count, strict
from .configuration_hrm import HrmBackboneConfig
from .configuration_huginn import HuginnBackboneConfig
from .configuration_ifm_moe import IfmMoeBackboneConfig
from .configuration_parcae import ParcaeBackboneConfig
from .field_checks import check_attribute, check_backbone_fields, check_fields, check_unused
from .schedules import Call, Depth
from .transformers_seams import attention_kept


# decoders that transformers does not have, registered here so that code on the Hub finds them too
for _config_class in (HrmBackboneConfig, HuginnBackboneConfig, IfmMoeBackboneConfig, ParcaeBackboneConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)

# read and written through to the backbone: other libraries read them from the outer configuration
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
# what scales or bounds the backbone's logits: TRL's trainers compute logits themselves and read these fields
HEAD_FIELDS = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "output_multiplier",
)
# what bounds the backbone's attention scores: vLLM reads it
ATTENTION_FIELDS = ("attn_logit_softcapping",)
# by which the layers of a cache are made
CACHE_FIELDS = ("number_of_conv_states",)
# copied from the backbone, because `generate` reads them from the outer configuration's dictionary
COPIED_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


def cache_types(backbone_config: PreTrainedConfig) -> list[str]:
    """Return the cache type of every layer of a backbone with `layer_types`.

    Raises:
        AttributeError: if the backbone has no `layer_types`; a property that calls this is then absent too.
    """
    if backbone_config.layer_types is None:
        raise AttributeError(f"`layer_types` of the {backbone_config.model_type} backbone is None")
    # "moe" is transformers' cache type for layers without a cache
    return ["moe" if layer_type == "mlp" else layer_type for layer_type in backbone_config.layer_types]


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class RecurrentConfig(PreTrainedConfig):
    r"""
    A backbone and a schedule: a depth schedule decides which layer calls make one pass over tokens (`depth`), a time
    schedule ([`TimeConfig`]) which tokens are run when.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder, by default Llama's; any decoder in the table of `README.md`. Fields such as
            `vocab_size` or `hidden_size` may also be given directly if this is a dictionary or left out; they are read
            and written through to it.

    Raises:
        ValueError: if the backbone is not a configuration, of an unknown type, or a recurrent model that this family
            cannot run, or the number of loops is not a positive integer.
        TypeError: if a keyword is not a field.
    """

    sub_configs = {"backbone_config": AutoConfig}
    # the plans of the backbone's modules are in its own configuration
    base_model_fsdp_plan = {}
    base_model_tp_plan = {}
    # the Auto classes that can load the code saved beside the weights, set by `register_family`
    remote_classes = {}
    # kind of schedule: "depth", "time", or "puzzle", a depth schedule whose states are carried from call to call
    kind: ClassVar[str] = "depth"
    # kinds of recurrent backbones that the family can run
    backbone_kinds: ClassVar[tuple[str, ...]] = ()
    # configuration classes of recurrent backbones by model type, which code on the Hub could not find by itself
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
            if model_type not in (*self.backbone_config_classes, *CONFIG_MAPPING):
                raise ValueError(f"`backbone_config.model_type` {model_type!r} is not a transformers model type")
            config_class = self.backbone_config_classes.get(model_type) or CONFIG_MAPPING[model_type]
            check_backbone_fields(config_class, fields, self)
            self.backbone_config = make_config(config_class, fields, "backbone_config")
        check_values(vars(self.backbone_config), type(self.backbone_config), "backbone_config.")
        check_values(vars(self) | kwargs, type(self))
        self._check_nesting()
        self.check_depth()
        check_fields(self, kwargs, BACKBONE_FIELDS)
        for name in COPIED_FIELDS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.backbone_config, name, None))
        if self.dtype is None:
            self.dtype = self.backbone_config.dtype
        kwargs.setdefault("auto_map", dict(self.remote_classes))
        # transformers forgets what attention function was chosen for the backbone, which a model may be using
        forgets = kwargs.get("attn_implementation") is None
        with attention_kept(self.backbone_config) if forgets else nullcontext():
            super().__post_init__(**kwargs)

    def __setattr__(self, key, value):
        if key == "num_loops":
            check_positive_int(key, value)
        if key not in self.__dict__:
            check_attribute(self, key)
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Make a configuration as transformers does, but raise `TypeError` for a keyword that is not a field."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config, unused = super().from_dict(config_dict, return_unused_kwargs=True, **kwargs)
        check_unused(cls, unused, is_final=not return_unused)
        return (config, unused) if return_unused else config

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as transformers does, without the path that the backbone was loaded from."""
        fields = super().to_dict()
        if "_name_or_path" in (fields.get("backbone_config") or {}):
            fields["backbone_config"]["_name_or_path"] = ""
        return fields

    # the backbone converts and checks its rotary parameters itself
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
        """Configuration of the decoder: the backbone's, or that inside of a recurrent backbone."""
        backbone_config = self.backbone_config
        return backbone_config if kind_of(backbone_config) is None else backbone_config.decoder_config

    def depth(self, model: Any = None, norm: Any = None) -> Depth:
        """Make the depth schedule. Without a model it can only list layer calls.

        Args:
            model (`PreTrainedModel`, *optional*): the model without a head, for the modules between the calls.
            norm (`Callable`, *optional*): the decoder's final norm.
        """
        if kind_of(self.backbone_config) is not None:
            return self.backbone_config.depth(model, norm)
        return Depth(self.decoder_config.num_hidden_layers, norm)

    def check_depth(self) -> None:
        """Refuse layers that cannot be split as the schedule says, and layer calls that are too many to list.

        Raises:
            ValueError: if they are.
        """

    def calls(self, **depth: Any) -> list[Call]:
        """List the layer calls of one pass over tokens.

        Args:
            depth: arguments of the depth schedule such as `num_loops`, by default those of the configuration.
        """
        return self.depth().calls(**depth)

    @property
    def has_loops(self) -> bool:
        """Whether the depth schedule has a number of loops."""
        return "num_loops" in self.depth_arguments

    @property
    def depth_arguments(self) -> tuple[str, ...]:
        """Names of the arguments of the depth schedule, which a forward pass takes."""
        return self.depth().arguments

    def num_slots(self, **depth: Any) -> int:
        """Return the number of cache slots, one for every layer call of a pass.

        Args:
            depth: arguments of the depth schedule such as `num_loops`, by default those of the configuration.
        """
        return len(self.calls(**depth))

    # computed, so that it is right after `from_pretrained(folder, num_loops=8)`
    @property
    def num_hidden_layers(self) -> int:
        """Number of cache slots, by which caches are sized."""
        return self.num_slots()

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        # `assistant_early_exit` and others set it to shorten a model: here that means fewer loops
        self.num_loops = self.loops_of(value)

    def loops_of(self, num_slots: int) -> int:
        """Return the number of loops that has `num_slots` cache slots.

        Raises:
            ValueError: if there is none.
        """
        if not self.has_loops:
            raise ValueError(f"`num_hidden_layers` must be set in `backbone_config`, got {num_slots}")
        fixed = self.num_slots(num_loops=0)
        per_loop = self.num_slots(num_loops=1) - fixed
        num_loops, rest = divmod(num_slots - fixed, per_loop)
        if rest:
            raise ValueError(
                f"`num_hidden_layers` must be {fixed} plus a multiple of the {per_loop} layer calls of a loop, got "
                f"{num_slots}"
            )
        return num_loops

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot, for decoders with `layer_types`."""
        layer_types = cache_types(self.decoder_config)
        return [layer_types[call.layer] for call in sorted(self.calls(), key=lambda call: call.slot)]

    def with_num_loops(self, num_loops: int) -> Self:
        """Make a shallow copy with another number of loops, from which to make a cache for one call.

        Raises:
            ValueError: if the model has no loops, or the number is not a positive integer.
        """
        self.check_has_loops(num_loops)
        config = copy.copy(self)
        if kind_of(self.backbone_config) is None:
            config.num_loops = num_loops
        else:
            # set directly: the field needs no check again
            vars(config)["backbone_config"] = self.backbone_config.with_num_loops(num_loops)
        return config

    def check_has_loops(self, num_loops: int) -> None:
        """Refuse a number of loops for a model without loops.

        Raises:
            ValueError: if the model has no loops.
        """
        if not self.has_loops:
            raise ValueError(f"`num_loops` must be None for a {self.model_type} model without loops, got {num_loops}")


# trf-ignore: TRF057 as above
@strict
class TimeConfig(RecurrentConfig):
    r"""
    A time schedule. Its passes are those of the backbone: a decoder, or a model with a depth schedule.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the backbone: a decoder, or a looped or hierarchical model.

    Raises:
        ValueError: if [`RecurrentConfig`] raises it, or a number of loops is set for a backbone without loops.
    """

    kind: ClassVar[str] = "time"
    backbone_kinds: ClassVar[tuple[str, ...]] = ("depth",)

    @property
    def num_loops(self) -> int:
        """Number of loops of the backbone."""
        return self.backbone_config.num_loops

    @num_loops.setter
    def num_loops(self, value: int):
        self.check_has_loops(value)
        self.backbone_config.num_loops = value

    def validate_layer_type(self):
        """Skip transformers' check: `layer_types` are cache types of slots here, and the backbone checks its own."""


_KINDS = {"depth": "layer calls", "time": "tokens", "puzzle": "the segments of a puzzle"}


def kind_of(config: PreTrainedConfig) -> str | None:
    """Return the kind of a recurrent model's configuration, `None` for a decoder's."""
    # not by `isinstance`: loading a local folder twice makes two classes
    config_class: Any = type(config)
    return config_class.kind if hasattr(config_class, "decoder_config") else None


def _backbone_property(name: str) -> property:
    def read(self):
        return getattr(self.backbone_config, name)

    def write(self, value):
        setattr(self.backbone_config, name, plain_count(name, value))

    return property(read, write, doc=f"`{name}` of the backbone.")


for _name in (*BACKBONE_FIELDS, *HEAD_FIELDS, *ATTENTION_FIELDS, *CACHE_FIELDS):
    setattr(RecurrentConfig, _name, _backbone_property(_name))

__all__ = ["RecurrentConfig", "TimeConfig", "cache_types", "kind_of"]
