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
"""The mixture of experts of LoopedLM (ifm-ai/xllm-loop), as a backbone.

It is Mixtral, except that the router scores every expert by itself, with a sigmoid (ifm-ai/xllm,
`xllm/modules/moe/router.py`). No decoder of transformers has such a router without shared experts.
"""

import torch
from torch import nn
from transformers import MixtralForCausalLM, MixtralModel, MixtralPreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralTopKRouter

from .configuration_ifm_moe import IfmMoeBackboneConfig


class IfmMoeTopKRouter(MixtralTopKRouter):
    """The experts with the largest `sigmoid(W x)`, each weighted by its share of their sum; one alone by its own."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the logits `[T, num_experts]`, and the weights and the indices of the chosen experts `[T, top_k]`."""
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = nn.functional.linear(hidden_states, self.weight)
        scores, indices = torch.topk(router_logits.float().sigmoid(), self.top_k, dim=-1)
        if self.top_k > 1:
            scores = scores / scores.sum(dim=-1, keepdim=True)
        return router_logits, scores.to(hidden_states.dtype), indices


class IfmMoeDecoderLayer(MixtralDecoderLayer):
    """Mixtral's layer with the other router."""

    def __init__(self, config: IfmMoeBackboneConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.mlp.gate = IfmMoeTopKRouter(config)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class IfmMoeBackbonePreTrainedModel(MixtralPreTrainedModel):
    """Base class of the decoder with and without a head."""

    config_class = IfmMoeBackboneConfig
    _no_split_modules = ["IfmMoeDecoderLayer"]


# trf-ignore: TRF057 as above
class IfmMoeBackboneModel(IfmMoeBackbonePreTrainedModel, MixtralModel):
    """The decoder without a head."""

    def __init__(self, config: IfmMoeBackboneConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(
            [IfmMoeDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.post_init()


# trf-ignore: TRF057 as above
class IfmMoeBackboneForCausalLM(IfmMoeBackbonePreTrainedModel, MixtralForCausalLM):
    """The decoder with a language-model head, for unrolled models."""

    def __init__(self, config: IfmMoeBackboneConfig):
        super().__init__(config)
        self.model = IfmMoeBackboneModel(config)
        self.post_init()


__all__ = ["IfmMoeBackboneForCausalLM", "IfmMoeBackboneModel", "IfmMoeBackbonePreTrainedModel"]
