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
"""Configuration of the feedback language model: a transformers decoder that reads in blocks and carries a memory."""

from typing import Literal

from .checks import check_positive_int, strict
from .configuration_recurrent import kind_of
from .configuration_time import TimeConfig


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class FeedbackConfig(TimeConfig):
    r"""
    A feedback language model (TransformerFAM, https://huggingface.co/papers/2404.09173) reads its input in blocks. A
    token sees its own block up to itself, the last `num_memory_segments` blocks, and in every layer a feedback memory
    of `feedback_length` vectors into which that layer has compressed all earlier blocks.

    With `feedback_length=0` this is block sliding-window attention; with `num_memory_segments=None` as well, it is the
    backbone.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the backbone, by default Llama's: a decoder all of whose layers are attention layers, or
            a looped or hierarchical model over such a decoder. Fields such as `vocab_size` or `hidden_size` may also
            be given directly if this is a dictionary or left out; they are read and written through to it.
        block_size (`int`, *optional*, defaults to 1024):
            Tokens in a block.
        num_memory_segments (`int`, *optional*, defaults to 3):
            Number of earlier blocks whose keys and values are kept, `None` for all.
        feedback_length (`int`, *optional*, defaults to 64):
            Vectors in the feedback memory, 0 for none.
        feedback_source (`str`, *optional*, defaults to `"layer"`):
            Where the memory comes from: `"layer"` (every layer's own output for the previous block) or `"top"` (the
            last layer's output enters the first layer: the recurrent memory tokens of
            https://huggingface.co/papers/2207.06881, as a baseline).
        feedback_init (`str`, *optional*, defaults to `"prompt"`):
            The memory before the first block: `"prompt"` (learned vectors enter the first layer, pass through all
            layers and compress the first block, which does not see them) or `"prefix"` (learned vectors for every
            layer of a decoder).
        zero_first_residual (`bool`, *optional*, defaults to `True`):
            Whether the first update of the memory leaves out the residual of attention, so that the learned vectors
            are not part of it.
        stop_gradient (`bool`, *optional*, defaults to `False`):
            Whether to stop the gradient between blocks.
        random_state_passing (`float`, *optional*, defaults to 0.0):
            Probability that a training step starts from the final memory of the previous step, 0.8 in the paper. It
            needs the callback `hf_loop.RandomStatePassing` in the `Trainer`.
        random_position_offset (`int`, *optional*, defaults to 0):
            Largest offset of the positions in training; in the paper it is the longest wavelength of the rotary
            embedding, 63,000. Half of the texts have an offset, drawn uniformly by a hash of their tokens. With rotary
            positions alone, such an offset changes rounding only.

    Raises:
        ValueError: if a field is out of range, or the backbone has layers that are not attention.

    Example:

    ```python
    >>> from transformers import LlamaConfig
    >>> from hf_loop import FeedbackConfig, FeedbackForCausalLM

    >>> config = FeedbackConfig(backbone_config=LlamaConfig(), block_size=512, num_memory_segments=1)
    >>> model = FeedbackForCausalLM(config)
    ```
    """

    model_type = "feedback_lm"
    keys_to_ignore_at_inference = ["cache", "past_key_values", "feedback"]

    block_size: int = 1024
    num_memory_segments: int | None = 3
    feedback_length: int = 64
    feedback_source: Literal["layer", "top"] = "layer"
    feedback_init: Literal["prompt", "prefix"] = "prompt"
    zero_first_residual: bool = True
    stop_gradient: bool = False
    random_state_passing: float = 0.0
    random_position_offset: int = 0

    def __setattr__(self, key, value):
        if key == "block_size":
            check_positive_int(key, value)
        super().__setattr__(key, value)

    def validate_architecture(self):
        """Refuse lengths below zero and backbones whose layers are not attention over tokens."""
        for name in ("num_memory_segments", "feedback_length", "random_position_offset"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}")
        if not 0 <= self.random_state_passing <= 1:
            raise ValueError(f"`random_state_passing` must be a probability, got {self.random_state_passing}")
        if self.feedback_source == "top" and self.feedback_init == "prefix":
            raise ValueError(
                "`feedback_init='prefix'` needs `feedback_source='layer'`, got 'top': only one layer has a memory"
            )
        if kind_of(self.backbone_config) is not None and self.feedback_init == "prefix":
            raise ValueError(
                "`feedback_init` must be 'prompt' with a recurrent backbone, whose number of layer calls may change, "
                "got 'prefix'"
            )
        if getattr(self.backbone_config, "state_init", None) == "normal":
            raise ValueError(
                "`backbone_config.state_init` must not be 'normal' in a feedback model: the noise is computed from "
                "positions, which a memory does not have"
            )
        layer_types = set(getattr(self.decoder_config, "layer_types", None) or [])
        others = layer_types - {"full_attention", "sliding_attention"}
        if others:
            raise ValueError(
                f"`backbone_config.layer_types` must be attention layers, got {', '.join(sorted(others))} of a "
                f"{self.decoder_config.model_type} backbone: a state cannot be split into blocks"
            )

    @property
    def layer_types(self) -> list[str]:
        """Cache type of every slot."""
        return ["feedback_attention"] * self.num_hidden_layers


__all__ = ["FeedbackConfig"]
