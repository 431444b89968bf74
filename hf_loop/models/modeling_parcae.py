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
"""The decoder of Parcae (https://huggingface.co/papers/2604.12946), as a backbone.

A layer is nanochat's (queries and keys normed after the rotation, an MLP with squared ReLU), except that its norms
have gains and that some layers add an embedding of the token to their values:

    v = W_v x + 2 sigmoid(G x[:channels]) * value_embedding(token)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.models.nanochat.modeling_nanochat import NanoChatMLP
from transformers.utils import can_return_tuple

from .configuration_parcae import ParcaeBackboneConfig
from .transformers_seams import CACHE_NAME, attention_function, cache_of, keep_logits, named_cache


class ParcaeAttention(LlamaAttention):
    """Attention on normed queries and keys, with an embedding of the token in the values of some layers."""

    def __init__(self, config: ParcaeBackboneConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.value_gate_channels = config.value_gate_channels
        # CODEPATH: Parcae has value embeddings in every other layer
        self.has_value_embedding = layer_idx in config.value_embedding_layers
        if self.has_value_embedding:
            num_channels = self.v_proj.out_features
            self.value_embedding = nn.Embedding(config.vocab_size, num_channels)
            self.value_gate = nn.Linear(config.value_gate_channels, num_channels // self.head_dim, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: torch.Tensor | None = None,
        token_ids: Any = None,
        **kwargs,
    ) -> Any:
        """Attend over `hidden_states` `[B, T, D]` of the tokens `token_ids` `[B, T]`."""
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape)
        if self.has_value_embedding:
            gate = 2 * torch.sigmoid(self.value_gate(hidden_states[..., : self.value_gate_channels]))
            value_states = value_states + gate.unsqueeze(-1) * self.value_embedding(token_ids).view(hidden_shape)
        value_states = value_states.transpose(1, 2)

        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, *position_embeddings)
        query_states = nn.functional.rms_norm(query_states, (self.head_dim,))
        key_states = nn.functional.rms_norm(key_states, (self.head_dim,))
        cache = kwargs.pop(CACHE_NAME, None)
        if cache is not None:
            key_states, value_states = cache.update(key_states, value_states, self.layer_idx, kwargs=kwargs)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention_function(self.config), eager_attention_forward
        )
        attention_output, attention_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attention_output.reshape(*input_shape, -1)), attention_weights


class ParcaeDecoderLayer(GradientCheckpointingLayer):
    """`x = x + attention(norm(x)); x = x + mlp(norm(x))`."""

    def __init__(self, config: ParcaeBackboneConfig, layer_idx: int):
        super().__init__()
        self.self_attn = ParcaeAttention(config, layer_idx)
        self.mlp = NanoChatMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        token_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_ids=token_ids,
            **kwargs,
        )
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class ParcaeBackbonePreTrainedModel(LlamaPreTrainedModel):
    """Base class of the decoder with and without a head."""

    config_class = ParcaeBackboneConfig
    _no_split_modules = ["ParcaeDecoderLayer"]
    _can_record_outputs = {"hidden_states": ParcaeDecoderLayer, "attentions": ParcaeAttention}


# trf-ignore: TRF057 as above
class ParcaeBackboneModel(ParcaeBackbonePreTrainedModel, LlamaModel):
    """The decoder without a head."""

    def __init__(self, config: ParcaeBackboneConfig):
        super().__init__(config)
        self.embedding_multiplier = config.embedding_multiplier
        self.layers = nn.ModuleList(
            [ParcaeDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.post_init()

    # trf-ignore: TRF057 as above
    def forward(self, input_ids: torch.Tensor | None = None, **kwargs) -> BaseModelOutputWithPast:
        """Run Llama's forward pass, with the token ids passed to the layers.

        Raises:
            ValueError: if `inputs_embeds` are given, as value embeddings are looked up by token id.
        """
        if input_ids is None or kwargs.pop("inputs_embeds", None) is not None:
            raise ValueError(
                "a parcae_backbone needs `input_ids` without `inputs_embeds`: its layers embed the tokens too"
            )
        inputs_embeds = self.embed_tokens(input_ids) * self.embedding_multiplier
        return super().forward(inputs_embeds=inputs_embeds, token_ids=input_ids, **kwargs)


# trf-ignore: TRF057 as above
class ParcaeBackboneForCausalLM(ParcaeBackbonePreTrainedModel, LlamaForCausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: ParcaeBackboneConfig):
        super().__init__(config)
        self.model = ParcaeBackboneModel(config)
        self.post_init()

    # trf-ignore: TRF057 as above
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Run Llama's forward pass, with scaled and soft-capped logits."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        hidden_states = keep_logits(outputs.last_hidden_state, logits_to_keep)
        logits = scale_and_softcap(self.config, self.lm_head(hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **named_cache(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def scale_and_softcap(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """Scale logits, and soft-cap them if the configuration has a cap."""
    logits = logits * config.logit_scale
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


__all__ = ["ParcaeBackboneForCausalLM", "ParcaeBackboneModel", "ParcaeBackbonePreTrainedModel"]
