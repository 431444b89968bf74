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
"""The layers of HRM, TRM and URM, as a backbone.

    post-norm (all three):  x = norm(x + mixer(x));  x = norm(x + mlp(x))
    pre-norm:               x = x + mixer(norm(x));  x = x + mlp(norm(x))

The norms are RMS norms without gains, and no linear map has a bias. The mixer is Llama's attention without a mask, or
a gated MLP along the positions; as in TRM, the norm after this MLP is along the positions too.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaPreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding

from .configuration_hrm import HrmBackboneConfig


# standard deviation of a standard normal distribution truncated at two
STD_CUT_AT_TWO = 0.87962566


def truncated_normal_(tensor: torch.Tensor, std: float) -> None:
    """Fill a tensor from a normal distribution truncated at two standard deviations, scaled to have this `std`."""
    scale = std / STD_CUT_AT_TWO
    init.trunc_normal_(tensor, std=scale, a=-2 * scale, b=2 * scale)


class WeightlessNorm(nn.Module):
    """An RMS norm without gains over the last dimension; torch accumulates in float32 or better."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # the size is that of the input: the norm is used along features and along positions
        return nn.functional.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps)


class ConvolutionMLP(LlamaMLP):
    """A gated MLP with a short depthwise convolution along the positions before its last map (2512.14693)."""

    def __init__(self, config: HrmBackboneConfig):
        super().__init__(config)
        size = config.convolution_size
        self.convolution = nn.Conv1d(
            config.intermediate_size, config.intermediate_size, size, padding=size - 1, groups=config.intermediate_size
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        mixed = self.convolution(gated.transpose(1, 2))[..., : gated.shape[1]].transpose(1, 2)
        return self.down_proj(self.act_fn(mixed))


class PositionMLP(nn.Module):
    """A gated MLP along the positions, the same for every feature, `[B, D, T]` to `[B, D, T]`."""

    def __init__(self, config: HrmBackboneConfig):
        super().__init__()
        length = config.max_position_embeddings
        width = config.mixer_intermediate_size or 4 * length
        self.gate_proj = nn.Linear(length, width, bias=False)
        self.up_proj = nn.Linear(length, width, bias=False)
        self.down_proj = nn.Linear(width, length, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        # `length` tokens use every parameter `hidden_size` times
        self.parameters_per_token = 3 * width * config.hidden_size

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class HrmLayer(GradientCheckpointingLayer):
    """A mixer over positions and an MLP over features."""

    def __init__(self, config: HrmBackboneConfig, layer_idx: int):
        super().__init__()
        self.is_pre_norm = config.norm_placement == "pre"
        # CODEPATH: TRM's best model of Sudoku mixes positions by an MLP; the others attend
        if config.token_mixer == "mlp":
            self.position_mlp = PositionMLP(config)
        else:
            self.self_attn = LlamaAttention(config, layer_idx)
        # CODEPATH: URM has a convolution in the MLP
        self.mlp = ConvolutionMLP(config) if config.convolution_size else LlamaMLP(config)
        self.norm = WeightlessNorm(config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        normed = self.norm(hidden_states) if self.is_pre_norm else hidden_states
        if hasattr(self, "position_mlp"):
            mixed = self.position_mlp(normed.transpose(1, 2))
            hidden_states = hidden_states.transpose(1, 2) + mixed
            hidden_states = (hidden_states if self.is_pre_norm else self.norm(hidden_states)).transpose(1, 2)
        else:
            mixed, _ = self.self_attn(
                hidden_states=normed,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
            hidden_states = hidden_states + mixed
            hidden_states = hidden_states if self.is_pre_norm else self.norm(hidden_states)
        if self.is_pre_norm:
            return hidden_states + self.mlp(self.norm(hidden_states))
        return self.norm(hidden_states + self.mlp(hidden_states))


class NoRotation(nn.Module):
    """Cosines of one and sines of zero `[1, T, head_dim]`, for attention without rotary positions."""

    def __init__(self, config: HrmBackboneConfig):
        super().__init__()
        self.head_dim: Any = config.head_dim

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cosines = torch.ones(1, position_ids.shape[-1], self.head_dim).to(hidden_states)
        return cosines, torch.zeros_like(cosines)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class HrmBackboneModel(LlamaPreTrainedModel):
    """The embedding and the layers, without a forward pass: the hierarchical model runs them."""

    config_class = HrmBackboneConfig
    config: Any
    _no_split_modules = ["HrmLayer"]
    _can_record_outputs = {"hidden_states": HrmLayer, "attentions": LlamaAttention}

    def __init__(self, config: HrmBackboneConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # CODEPATH: HRM's code has learned positions as an option, but uses rotary ones
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([HrmLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        # CODEPATH: an MLP over positions needs no rotary embedding
        self.rotary_emb = None
        # CODEPATH: HRM, URM and TRM's attention use rotary positions; TRM's authors also tried none
        if config.token_mixer == "attention":
            is_rotary = config.position_embedding == "rotary"
            self.rotary_emb = LlamaRotaryEmbedding(config) if is_rotary else NoRotation(config)
        # CODEPATH: layers with post-norm need no final norm
        self.norm = WeightlessNorm(config.rms_norm_eps) if config.norm_placement == "pre" else nn.Identity()
        self.post_init()

    def enter(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Compute the first layer's input `[B, T, D]` from token embeddings: add learned positions and scale.

        Raises:
            ValueError: if the sequence has more than `max_position_embeddings` positions, or not exactly as many with
                `token_mixer="mlp"`.
        """
        config = self.config
        length, positions = embeddings.shape[1], config.max_position_embeddings
        # CODEPATH: TRM's mixer has a fixed length
        if config.token_mixer == "mlp" and length != positions:
            raise ValueError(
                f"`token_mixer='mlp'` needs exactly `max_position_embeddings` ({positions}) positions, got {length}"
            )
        # CODEPATH: HRM's code has learned positions as an option
        if config.position_embedding == "learned":
            if length > positions:
                raise ValueError(f"at most `max_position_embeddings` ({positions}) positions fit, got {length}")
            embeddings = math.sqrt(0.5) * (embeddings + self.embed_positions.weight[:length])
        scale = config.embedding_multiplier
        return embeddings * (math.sqrt(config.hidden_size) if scale is None else scale)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # a truncated normal of LeCun's scale everywhere; `enter` scales embeddings up again
        if isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            truncated_normal_(module.weight, module.embedding_dim**-0.5)
        elif isinstance(module, nn.Conv1d):
            truncated_normal_(module.weight, module.kernel_size[0] ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


__all__ = ["HrmBackboneModel", "truncated_normal_"]
