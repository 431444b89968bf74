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
"""Configuration of LoopedLM's mixture of experts (ifm-ai/xllm-loop), as a backbone."""

from transformers import MixtralConfig

from .checks import strict


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class IfmMoeBackboneConfig(MixtralConfig):
    r"""
    The mixture of experts of LoopedLM: Mixtral with another router, see [`IfmMoeTopKRouter`]. Fields are Mixtral's.

    Example:

    ```python
    >>> from hf_loop import LoopedConfig

    >>> config = LoopedConfig(backbone_config={"model_type": "ifm_moe_backbone", "num_local_experts": 25})
    ```
    """

    model_type = "ifm_moe_backbone"
    # model type with the same names of linear maps, for PEFT
    adapted_like = "mixtral"


__all__ = ["IfmMoeBackboneConfig"]
