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
"""Configuration of the looped language model: a transformers decoder and the schedule that runs its layers."""

import copy
from typing import Any, Literal

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .checks import check_positive_int, strict


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
# copied once, because `generate` reads them from the outer config's dictionary
COPIED_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class LoopedConfig(PreTrainedConfig):
    r"""
    A looped language model runs the first layers of its backbone once (prelude), the middle ones `num_loops` times
    (core), and the last ones once (coda).

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder whose layers are run. Any model type in the README's table; defaults to
            Llama's. Fields such as `vocab_size` or `hidden_size` may also be given directly when this is a dictionary
            or left out; they are read and written through to it.
        num_prelude_layers (`int`, *optional*, defaults to 0):
            Backbone layers that run once before the core.
        num_coda_layers (`int`, *optional*, defaults to 0):
            Backbone layers that run once after the core.
        num_loops (`int`, *optional*, defaults to 4):
            Times the core runs, unless the call says otherwise.
        injection (`str`, *optional*, defaults to `"none"`):
            How the prelude's output `e` enters the state `s` before each loop: `"none"`, `"add"` (`s + e`),
            `"concat"` (a linear map of `[s; e]`, https://huggingface.co/papers/2502.05171) or `"diagonal"`
            (`exp(-D A) s + D B norm(e)`, https://huggingface.co/papers/2604.12946).
        state_init (`str`, *optional*, defaults to `"input"`):
            The state before the first loop: `"input"` (`e` itself), `"zeros"`, `"normal"` (truncated normal noise,
            see `state_noise.py`) or `"learned"` (one trained vector).
        state_std (`float`, *optional*):
            Standard deviation of the `"normal"` state, `sqrt(2 / (5 hidden_size))` if not given.
        loop_update (`str`, *optional*, defaults to `"replace"`):
            What a loop does with the core's result `f(s)`: `"replace"` (`s <- f(s)`) or `"damped"`
            (`s <- s + (f(s) - s) / num_loops`, the training-free looping of https://huggingface.co/papers/2605.23872).
        loop_norm (`str`, *optional*, defaults to `"none"`):
            The norm of the state at the end of every loop: `"none"`, `"own"` (an RMS norm of its own) or `"final"`
            (the backbone's final norm, which then is not applied once more where there is no coda, as in
            https://huggingface.co/papers/2510.25741).
        coda_norm (`bool`, *optional*, defaults to `False`):
            Whether the backbone's final norm is also applied between the last loop and the coda, as in
            https://huggingface.co/papers/2502.05171.
        state_projection (`bool`, *optional*, defaults to `False`):
            Whether a linear map of the state stands between the last loop and the coda, as in
            https://huggingface.co/papers/2604.12946. It starts as the identity.

    Raises:
        ValueError: a field is out of range, or the prelude and the coda leave no layer for the core.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import LoopedConfig, LoopedForCausalLM

    >>> backbone_config = LlamaConfig(num_hidden_layers=4)
    >>> config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1)
    >>> config.num_core_layers, config.num_hidden_layers
    (2, 10)
    ```
    """

    model_type = "looped_lm"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "num_loops", "loop_states", "loop_logits"]
    # the backbone names its own modules in its own plans
    base_model_fsdp_plan = {}
    base_model_tp_plan = {}

    backbone_config: Any = None
    num_prelude_layers: int = 0
    num_coda_layers: int = 0
    num_loops: int = 4
    injection: Literal["none", "add", "concat", "diagonal"] = "none"
    state_init: Literal["input", "zeros", "normal", "learned"] = "input"
    state_std: float | None = None
    loop_update: Literal["replace", "damped"] = "replace"
    loop_norm: Literal["none", "own", "final"] = "none"
    coda_norm: bool = False
    state_projection: bool = False
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
            fields |= {name: kwargs.pop(name) for name in BACKBONE_FIELDS if name in kwargs}
            model_type = fields.pop("model_type", "llama")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"`backbone_config.model_type` {model_type!r} is not a transformers model type")
            self.backbone_config = CONFIG_MAPPING[model_type](**fields)
        for name in COPIED_FIELDS:
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.backbone_config, name, None))
        if self.dtype is None:
            self.dtype = self.backbone_config.dtype
        # every Auto class that can open the remote code written beside the weights
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def __setattr__(self, key, value):
        if key == "num_loops":
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def validate_architecture(self):
        """Refuse layer counts that leave no core and injections that would lose the input."""
        for name in ("num_prelude_layers", "num_coda_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.num_core_layers < 1:
            raise ValueError(
                f"`num_prelude_layers` ({self.num_prelude_layers}) and `num_coda_layers` ({self.num_coda_layers}) "
                f"leave no core layer: the backbone has {self.backbone_config.num_hidden_layers}"
            )
        if self.state_std is not None and self.state_std < 0:
            raise ValueError(f"`state_std` must not be negative, got {self.state_std}")
        if self.coda_norm and self.num_coda_layers == 0:
            raise ValueError("`coda_norm` needs `num_coda_layers` of at least 1: without a coda the final norm follows")
        if self.injection == "none" and self.state_init != "input":
            raise ValueError(
                f"`state_init={self.state_init!r}` needs an injection: with `injection='none'` the input never "
                "reaches the core"
            )

    # rotary parameters are brought into form and checked by the backbone, which knows its own
    def convert_rope_params_to_dict(self, **kwargs):
        return self.backbone_config.convert_rope_params_to_dict(**kwargs)

    def standardize_rope_params(self):
        self.backbone_config.standardize_rope_params()

    def validate_rope(self):
        self.backbone_config.validate_rope()

    @property
    def num_core_layers(self) -> int:
        """Backbone layers inside the loop."""
        return self.backbone_config.num_hidden_layers - self.num_prelude_layers - self.num_coda_layers

    # one cache slot per layer call; derived, so that `from_pretrained(folder, num_loops=8)` sizes caches right
    @property
    def num_hidden_layers(self) -> int:
        """Layer calls of one forward pass, which is also the number of cache slots."""
        return self.num_slots(self.num_loops)

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        # `assistant_early_exit` and others shorten a model by assigning its depth: here that means fewer loops
        num_loops, rest = divmod(value - self.num_prelude_layers - self.num_coda_layers, self.num_core_layers)
        if rest:
            raise ValueError(
                f"`num_hidden_layers` {value} is not {self.num_prelude_layers} + {self.num_coda_layers} plus a "
                f"multiple of {self.num_core_layers} core layers"
            )
        self.num_loops = num_loops

    def num_slots(self, num_loops: int) -> int:
        """Cache slots of a forward pass with `num_loops` loops."""
        return self.num_prelude_layers + self.num_coda_layers + self.num_core_layers * num_loops

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot, for backbones that mix layer types; the slot order is `slot`'s."""
        layer_types = self.backbone_config.layer_types
        coda_start = self.num_prelude_layers + self.num_core_layers
        core = layer_types[self.num_prelude_layers : coda_start]
        return layer_types[: self.num_prelude_layers] + layer_types[coda_start:] + core * self.num_loops

    def with_num_loops(self, num_loops: int) -> "LoopedConfig":
        """A shallow copy with another loop count, to size a cache for one call."""
        config = copy.copy(self)
        config.num_loops = num_loops
        return config


def _backbone_property(name: str) -> property:
    def read(self):
        return getattr(self.backbone_config, name)

    def write(self, value):
        setattr(self.backbone_config, name, value)

    return property(read, write, doc=f"`{name}` of the backbone.")


for _name in BACKBONE_FIELDS:
    setattr(LoopedConfig, _name, _backbone_property(_name))

AUTO_MAP = {
    "AutoConfig": "configuration_looped.LoopedConfig",
    "AutoModel": "modeling_looped.LoopedModel",
    "AutoModelForCausalLM": "modeling_looped.LoopedForCausalLM",
    "AutoModelForSequenceClassification": "modeling_looped.LoopedForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_looped.LoopedForTokenClassification",
}

__all__ = ["LoopedConfig"]
