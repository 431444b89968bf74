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
"""Configuration of the hierarchical language model: two stacks of backbone layers on two clocks."""

from typing import Literal

from .checks import check_positive_int, strict
from .configuration_recurrent import RecurrentConfig


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class HierarchicalConfig(RecurrentConfig):
    r"""
    A hierarchical language model carries a slow state and a fast one. In each of `num_loops` slow cycles the fast
    stack updates the fast state `low_cycles` times, then the slow stack updates the slow state once
    (https://huggingface.co/papers/2506.21734).

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder whose layers are run. Any model type in the README's table, or `"hrm_text"`,
            which brings two stacks of its own; defaults to Llama's. Of other backbones the first half of the layers
            is the fast stack and the second half the slow one. Fields such as `vocab_size` or `hidden_size` may also
            be given directly when this is a dictionary or left out; they are read and written through to it.
        num_loops (`int`, *optional*, defaults to 2):
            Slow cycles, unless the call says otherwise.
        low_cycles (`int`, *optional*, defaults to 3):
            Updates of the fast state in each slow cycle.
        shared_stack (`bool`, *optional*, defaults to `False`):
            Whether one stack of all layers updates both states (https://huggingface.co/papers/2510.04871).
        injection (`str`, *optional*, defaults to `"none"`):
            How the input `x` enters the fast stack: `"add"` (in every update) or `"none"` (through the slow state
            alone, as in https://huggingface.co/papers/2605.20613).
        state_init (`str`, *optional*, defaults to `"input"`):
            The slow state before the first cycle: `"input"` (`x` itself) or `"zeros"`. The fast state starts at zero,
            or where the backbone keeps a vector for it, there.
        stack_norm (`str`, *optional*, defaults to `"weightless"`):
            The norm at the end of every stack call: `"none"`, `"weightless"` (an RMS norm without gains) or `"final"`
            (the backbone's final norm, which then is not applied once more before the head).
        embedding_scale (`float`, *optional*, defaults to 1.0):
            What the first layers' input is multiplied with, besides what the backbone itself does to it.
        gradient (`str`, *optional*, defaults to `"full"`):
            Which stack calls carry gradient: `"full"` all, `"last_cycle"` those of the last slow cycle, `"one_step"`
            the last of each stack, or `"last_k"` the last `backprop_low_cycles` fast calls of every slow cycle and
            all slow ones.
        backprop_low_cycles (`list[int]`, *optional*):
            For `"last_k"`, fast calls with gradient in the last slow cycles, in their order; earlier cycles have one.

    Raises:
        ValueError: a field is out of range or does not fit another one.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import HierarchicalConfig

    >>> config = HierarchicalConfig(backbone_config=LlamaConfig(num_hidden_layers=4), num_loops=2, low_cycles=3)
    >>> config.num_stack_layers, config.num_hidden_layers
    (2, 16)
    ```
    """

    model_type = "hierarchical_lm"
    keys_to_ignore_at_inference = ["past_key_values", "num_loops"]
    remote_classes = {
        "AutoConfig": "configuration_hierarchical.HierarchicalConfig",
        "AutoModel": "modeling_hierarchical.HierarchicalModel",
        "AutoModelForCausalLM": "modeling_hierarchical.HierarchicalForCausalLM",
    }

    num_loops: int = 2
    low_cycles: int = 3
    shared_stack: bool = False
    injection: Literal["none", "add"] = "none"
    state_init: Literal["input", "zeros"] = "input"
    stack_norm: Literal["none", "weightless", "final"] = "weightless"
    embedding_scale: float | int = 1.0
    gradient: Literal["full", "last_cycle", "one_step", "last_k"] = "full"
    backprop_low_cycles: list[int] | None = None

    def __setattr__(self, key, value):
        if key == "low_cycles":
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def validate_architecture(self):
        """Refuse layers that make no two stacks, and schedules that lose the input or its gradient."""
        has_two_stacks = hasattr(self.backbone_config, "num_layers_per_stack")
        if has_two_stacks and self.shared_stack:
            raise ValueError(f"`shared_stack` must be False: a {self.backbone_config.model_type} backbone has two")
        if not has_two_stacks and not self.shared_stack and self.backbone_config.num_hidden_layers % 2:
            raise ValueError(
                f"`backbone_config.num_hidden_layers` {self.backbone_config.num_hidden_layers} must be even for two "
                "stacks of one size, unless `shared_stack`"
            )
        if self.injection == "none" and self.state_init != "input":
            raise ValueError(
                f"`state_init={self.state_init!r}` needs `injection='add'`: otherwise the input reaches no layer"
            )
        if self.injection == "none" and self.gradient in ("last_cycle", "one_step"):
            raise ValueError(
                f"`gradient={self.gradient!r}` needs `injection='add'`: otherwise no gradient reaches the embeddings"
            )
        if (self.backprop_low_cycles is not None) != (self.gradient == "last_k"):
            raise ValueError(
                "`backprop_low_cycles` belongs to `gradient='last_k'`, got "
                f"backprop_low_cycles={self.backprop_low_cycles} with gradient={self.gradient!r}"
            )
        if self.backprop_low_cycles is not None and min(self.backprop_low_cycles, default=0) < 0:
            raise ValueError(f"`backprop_low_cycles` must not be negative, got {self.backprop_low_cycles}")

    @property
    def num_stack_layers(self) -> int:
        """Layers that one stack call runs."""
        own = getattr(self.backbone_config, "num_layers_per_stack", None)
        if own is not None:
            return own
        return self.backbone_config.num_hidden_layers // (1 if self.shared_stack else 2)

    @property
    def prefix_lm(self) -> bool:
        """Whether tokens of type 1 see each other in both directions; the backbone's."""
        return getattr(self.backbone_config, "prefix_lm", False)

    def num_slots(self, num_loops: int) -> int:
        """Cache slots of a forward pass with `num_loops` slow cycles."""
        return num_loops * (self.low_cycles + 1) * self.num_stack_layers

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot, for backbones that mix layer types."""
        layer_types = self.backbone_config.layer_types
        low = layer_types[: self.num_stack_layers]
        high = low if self.shared_stack else layer_types[self.num_stack_layers :]
        return (low * self.low_cycles + high) * self.num_loops


__all__ = ["HierarchicalConfig"]
