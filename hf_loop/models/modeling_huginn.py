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
"""The decoder of Huginn (https://huggingface.co/papers/2502.05171), as a backbone.

Its layer norms each sub-layer's input, and the sum of the residual and its output:

    x = norm_2(x + attention(norm_1(x)));  x = norm_4(x + mlp(norm_3(x)))

Everything inside the sub-layers is Llama's, with a bias on queries and keys.
"""

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from .configuration_huginn import HuginnBackboneConfig


class HuginnAttention(LlamaAttention):
    """Llama's attention with a bias on queries and keys only."""

    def __init__(self, config: HuginnBackboneConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        # CODEPATH: Huginn-0125 has the bias, its authors' smaller models do not
        if config.qk_bias:
            self.q_proj = nn.Linear(config.hidden_size, self.q_proj.out_features, bias=True)
            self.k_proj = nn.Linear(config.hidden_size, self.k_proj.out_features, bias=True)


class HuginnDecoderLayer(GradientCheckpointingLayer):
    """A norm before each sub-layer and one after each residual sum."""

    def __init__(self, config: HuginnBackboneConfig, layer_idx: int):
        super().__init__()
        self.self_attn = HuginnAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_feedforward_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        hidden_states = self.post_attention_layernorm(hidden_states + attention_output)
        mlp_output = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        return self.post_feedforward_layernorm(hidden_states + mlp_output)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class HuginnBackbonePreTrainedModel(LlamaPreTrainedModel):
    """Base class of the decoder with and without a head."""

    config_class = HuginnBackboneConfig
    _no_split_modules = ["HuginnDecoderLayer"]
    _can_record_outputs = {"hidden_states": HuginnDecoderLayer, "attentions": HuginnAttention}


# trf-ignore: TRF057 as above
class HuginnBackboneModel(HuginnBackbonePreTrainedModel, LlamaModel):
    """The decoder without a head."""

    def __init__(self, config: HuginnBackboneConfig):
        super().__init__(config)
        self.embedding_multiplier = config.embedding_multiplier
        self.layers = nn.ModuleList(
            [HuginnDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.post_init()

    # trf-ignore: TRF057 as above
    def forward(
        self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPast:
        """Run Llama's forward pass on embeddings scaled by `embedding_multiplier`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        return super().forward(inputs_embeds=inputs_embeds * self.embedding_multiplier, **kwargs)


# trf-ignore: TRF057 as above
class HuginnBackboneForCausalLM(HuginnBackbonePreTrainedModel, LlamaForCausalLM):
    """The decoder with a language-model head, for unrolled models."""

    def __init__(self, config: HuginnBackboneConfig):
        super().__init__(config)
        self.model = HuginnBackboneModel(config)
        self.post_init()


__all__ = ["HuginnBackboneForCausalLM", "HuginnBackboneModel", "HuginnBackbonePreTrainedModel"]
