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
"""Configuration of Huginn's decoder (https://huggingface.co/papers/2502.05171), as a backbone."""

from transformers import LlamaConfig

from .checks import strict


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class HuginnBackboneConfig(LlamaConfig):
    r"""
    The decoder of Huginn: Llama's parts in another order, see [`HuginnDecoderLayer`]. Other fields are Llama's.

    Args:
        embedding_multiplier (`float`, *optional*, defaults to 1.0):
            Factor of the token embeddings; `sqrt(hidden_size)` in Huginn.
        qk_bias (`bool`, *optional*, defaults to `True`):
            Whether the query and key projections have a bias; the others have none.

    Example:

    ```python
    >>> from hf_loop import LoopedConfig

    >>> config = LoopedConfig(backbone_config={"model_type": "huginn_backbone", "num_hidden_layers": 8})
    ```
    """

    model_type = "huginn_backbone"
    # model type with the same names of linear maps, for PEFT
    adapted_like = "llama"

    embedding_multiplier: float = 1.0
    qk_bias: bool = True


__all__ = ["HuginnBackboneConfig"]
