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
"""Configuration of the sleep language model: a transformers decoder that reads in windows and keeps fast weights."""

from typing import Any, Literal

from .checks import check_positive_int, strict
from .configuration_recurrent import kind_of
from .configuration_time import TimeConfig
from .schedules import Call


# linear attention has fast weights; the state of other supported layers ends with the window
FAST_WEIGHT_LAYER_TYPE = "linear_attention"
SUPPORTED_LAYER_TYPES = {FAST_WEIGHT_LAYER_TYPE, "full_attention", "sliding_attention", "conv"}


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class SleepConfig(TimeConfig):
    r"""
    A sleep language model (https://huggingface.co/papers/2605.26099) reads its input in windows. A token attends to
    its own window alone. When a window is full the model sleeps: the window runs through the layers `num_sleep_passes`
    times, which writes it into the fast weights of linear-attention layers, and its keys and values are dropped.

    With one pass and a window as long as the input this is the backbone.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the backbone, by default Llama's. It may be a decoder with linear-attention layers that
            follow the gated delta rule (`qwen3_next`, `qwen3_5_text`, `olmo_hybrid`); any other decoder in the table
            of `README.md`, into which fast-weight layers are inserted; or a looped or hierarchical model over one of
            these, in which every layer call has fast weights of its own. Fields such as `vocab_size` or `hidden_size`
            may also be given directly if this is a dictionary or left out; they are read and written through to it.
        sleep_window (`int`, *optional*, defaults to 1024):
            Tokens in a window.
        num_sleep_passes (`int`, *optional*, defaults to 2):
            Passes over a full window, unless the call says otherwise. The first of them predicts its tokens.
        eviction (`str`, *optional*, defaults to `"hard"`):
            What a sleep does to keys and values: `"hard"` drops all of them; `"sliding"` keeps those that the last
            pass made of the last `sleep_window - 1` tokens, so that every token sees `sleep_window` tokens.
        sleep_layers (`list[int]`, *optional*):
            `[start, end]`: the backbone layers from `start` to `end` (exclusive) run in every pass. Earlier layers run
            once, later ones once more on the result of the last pass. By default all layers run in every pass; with a
            backbone that has loops they must.
        reset_conv (`bool`, *optional*, defaults to `True`):
            Whether short convolutions are reset at every pass, so that only the fast weights persist.
        position_mode (`str`, *optional*):
            Where positions are counted from: `"restart"` (the start of the window) or `"absolute"` (the start of the
            text). By default `"restart"` with hard eviction and `"absolute"` with sliding eviction, which needs it.
        fast_weight_layers (`list[int]`, *optional*):
            Layers of the decoder after each of whose calls a fast-weight layer is inserted. By default none if the
            decoder has linear attention, otherwise every fourth layer.
        fast_weight_rule (`str`, *optional*, defaults to `"gated_delta"`):
            Update rule of inserted layers: `"hebbian"`, `"delta"`, `"gated_delta"` or `"oja"`, see `fast_weights.py`.
        fast_weight_num_heads (`int`, *optional*):
            Heads of an inserted layer, by default as many as attention has.
        fast_weight_head_dim (`int`, *optional*):
            Channels of one head's keys and values, by default `hidden_size // fast_weight_num_heads`.
        num_backprop_windows (`int`, *optional*):
            Truncated back-propagation in training: counted from the last window, the fast weights are detached every
            `num_backprop_windows` windows. By default never.
        sleep_over_labels (`bool`, *optional*, defaults to `True`):
            Whether a window with a token that predicts a label is slept over like every other. `False` is Algorithm 1
            of the paper, in which each sequence reads such windows in one pass. Without labels, as in generation, it
            has no effect.

    Raises:
        ValueError: if a field is out of range, the backbone has layers that cannot sleep, or no layer that sleeps has
            fast weights.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import SleepConfig, SleepForCausalLM

    >>> config = SleepConfig(backbone_config=LlamaConfig(num_hidden_layers=8), sleep_window=512, num_sleep_passes=4)
    >>> config.memory_layers
    [3, 7]
    >>> model = SleepForCausalLM(config)
    ```
    """

    model_type = "sleep_lm"

    sleep_window: int = 1024
    num_sleep_passes: int = 2
    eviction: Literal["hard", "sliding"] = "hard"
    sleep_layers: list[int] | None = None
    reset_conv: bool = True
    position_mode: Literal["restart", "absolute"] | None = None
    fast_weight_layers: list[int] | None = None
    fast_weight_rule: Literal["hebbian", "delta", "gated_delta", "oja"] = "gated_delta"
    fast_weight_num_heads: int | None = None
    fast_weight_head_dim: int | None = None
    num_backprop_windows: int | None = None
    sleep_over_labels: bool = True

    def __setattr__(self, key, value):
        optional = {"fast_weight_num_heads", "fast_weight_head_dim", "num_backprop_windows"}
        if key in ("sleep_window", "num_sleep_passes") or (key in optional and value is not None):
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def validate_architecture(self):
        """Refuse layers that cannot sleep, ranges outside the backbone, and models without fast weights."""
        num_layers = self.num_layers
        others = set(self._decoder_layer_types) - SUPPORTED_LAYER_TYPES
        if others:
            raise ValueError(
                f"`backbone_config.layer_types` must be among {', '.join(sorted(SUPPORTED_LAYER_TYPES))}, got "
                f"{', '.join(sorted(others))} of a {self.decoder_config.model_type} backbone"
            )
        if getattr(self.backbone_config, "state_init", None) == "normal":
            raise ValueError(
                "`backbone_config.state_init` must not be 'normal' in a sleep model: later passes would start from "
                "the noise of the first"
            )
        if self.sleep_layers is not None and kind_of(self.backbone_config) is not None:
            raise ValueError(
                f"`sleep_layers` must be None with a {self.backbone_config.model_type} backbone, all of whose layers "
                f"sleep, got {self.sleep_layers}"
            )
        if self.sleep_layers is not None:
            start, end = self.sleep_layers if len(self.sleep_layers) == 2 else (0, 0)
            if not 0 <= start < end <= num_layers:
                raise ValueError(
                    f"`sleep_layers` must be [start, end] with 0 <= start < end <= {num_layers}, the layers of the "
                    f"backbone, got {self.sleep_layers}"
                )
        memory_layers = self.memory_layers
        if memory_layers != sorted(set(memory_layers)) or any(not 0 <= index < num_layers for index in memory_layers):
            raise ValueError(
                f"`fast_weight_layers` must be different layers of the backbone, 0 to {num_layers - 1}, in ascending "
                f"order, got {memory_layers}"
            )
        start, end = self.sleep_range
        if not any(start <= index < end for index in self.writing_layers):
            raise ValueError(
                f"`fast_weight_layers` must have one of the layers {start} to {end - 1} that sleep, as none of these "
                f"has linear attention, got {memory_layers}"
            )
        if self.eviction == "sliding" and self.position_mode == "restart":
            raise ValueError(
                "`position_mode` must be 'absolute' with `eviction='sliding'`, got 'restart': the kept tokens would "
                "change their distance to the next window"
            )

    @property
    def num_layers(self) -> int:
        """Number of layers of the decoder."""
        if kind_of(self.backbone_config) is None:
            return self.backbone_config.num_hidden_layers
        return 1 + max(call.layer for call in self.calls())

    @property
    def _decoder_layer_types(self) -> list[str]:
        return getattr(self.decoder_config, "layer_types", None) or []

    @property
    def _linear_layers(self) -> list[int]:
        layer_types = self._decoder_layer_types
        return [index for index, layer_type in enumerate(layer_types) if layer_type == FAST_WEIGHT_LAYER_TYPE]

    @property
    def memory_layers(self) -> list[int]:
        """Layers of the decoder after which a fast-weight layer is inserted."""
        if self.fast_weight_layers is not None:
            return self.fast_weight_layers
        if self._linear_layers:
            return []
        return list(range(3, self.num_layers, 4)) or [self.num_layers - 1]

    @property
    def writing_layers(self) -> list[int]:
        """Layers of the decoder that have fast weights, or after which a fast-weight layer is inserted."""
        return [*self.memory_layers, *self._linear_layers]

    def inserted_calls(self, calls: list[Call]) -> list[Call]:
        """Return those layer calls of a pass that a fast-weight layer follows, in their order."""
        memory_layers = self.memory_layers
        return [call for call in calls if call.layer in memory_layers]

    @property
    def sleep_range(self) -> tuple[int, int]:
        """The backbone layers that run in every pass, as `(start, end)` with `end` exclusive."""
        if self.sleep_layers is None:
            return 0, self.num_layers
        return self.sleep_layers[0], self.sleep_layers[1]

    @property
    def restarts_positions(self) -> bool:
        """Whether positions are counted from the start of the window."""
        return (self.position_mode or ("restart" if self.eviction == "hard" else "absolute")) == "restart"

    # all passes use the same slots
    def num_slots(self, **depth: Any) -> int:
        """Return the number of cache slots: the open window, the layer calls of a pass, those of inserted layers."""
        calls = self.calls(**depth)
        return 1 + len(calls) + len(self.inserted_calls(calls))

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot."""
        return ["sleep_window"] + ["sleep_state"] * (self.num_hidden_layers - 1)


__all__ = ["SleepConfig"]
