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
"""Configuration of the layers of HRM, TRM and URM, as a backbone of the hierarchical puzzle model."""

from typing import Literal

from transformers import LlamaConfig

from .checks import strict


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class HrmBackboneConfig(LlamaConfig):
    r"""
    The layers of HRM (https://huggingface.co/papers/2506.21734), TRM (https://huggingface.co/papers/2510.04871) and
    URM (https://huggingface.co/papers/2512.14693): Llama's parts with norms without gains, see [`HrmLayer`]. Other
    fields are Llama's. The layers attend in both directions, so only [`HierarchicalForPuzzle`] runs them.

    Args:
        token_mixer (`str`, *optional*, defaults to `"attention"`):
            How positions exchange information: `"attention"`, or `"mlp"`, a gated MLP along the positions, with which
            every sequence must have `max_position_embeddings` positions.
        mixer_intermediate_size (`int`, *optional*):
            Width of this MLP, by default four times `max_position_embeddings`.
        norm_placement (`str`, *optional*, defaults to `"post"`):
            `"post"` norms the sum of the residual and a sub-layer's output, `"pre"` a sub-layer's input and the final
            output.
        position_embedding (`str`, *optional*, defaults to `"rotary"`):
            `"rotary"`, `"learned"` (added to the embeddings, the sum divided by `sqrt(2)`) or `"none"`.
        convolution_size (`int`, *optional*, defaults to 0):
            Size of a causal depthwise convolution along the positions inside the MLP, 0 for none; 2 in URM.
        embedding_multiplier (`float`, *optional*):
            Factor of the token embeddings, by default `sqrt(hidden_size)`.
        rms_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every norm.

    Raises:
        ValueError: if a field is out of range or does not fit another one.

    Example:

    ```python
    >>> from hf_loop import HierarchicalPuzzleConfig

    >>> sizes = {"vocab_size": 11, "max_position_embeddings": 97}
    >>> config = HierarchicalPuzzleConfig.from_preset("trm", token_mixer="mlp", **sizes)
    ```
    """

    model_type = "hrm_backbone"
    # model type with the same names of linear maps, for PEFT
    adapted_like = "llama"

    token_mixer: Literal["attention", "mlp"] = "attention"
    mixer_intermediate_size: int | None = None
    norm_placement: Literal["post", "pre"] = "post"
    position_embedding: Literal["rotary", "learned", "none"] = "rotary"
    convolution_size: int = 0
    embedding_multiplier: float | int | None = None
    rms_norm_eps: float = 1e-5

    def validate_architecture(self):
        """Refuse rotary positions without attention, and sizes that are too small."""
        super().validate_architecture()
        if self.token_mixer == "mlp" and self.position_embedding == "rotary":
            raise ValueError(
                "`position_embedding` must be 'none' or 'learned' with `token_mixer='mlp'`, which learns positions "
                "itself, got 'rotary'"
            )
        if self.convolution_size < 0:
            raise ValueError(f"`convolution_size` must not be negative, got {self.convolution_size}")
        if self.mixer_intermediate_size is not None and self.mixer_intermediate_size < 1:
            raise ValueError(f"`mixer_intermediate_size` must be at least 1, got {self.mixer_intermediate_size}")


__all__ = ["HrmBackboneConfig"]
