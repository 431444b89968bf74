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
"""Opens a transformers decoder: its embedding, positions, masks, single layers, final norm and head.

This is the one place that knows transformers' internals. What a decoder's own forward does around its layers (scaling
the embeddings, norms before the first layer, positions per layer type, capping the logits) is written once here, in
`SUPPORTED_BACKBONES`; nothing else in the library asks which architecture it runs.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from .cache_views import CacheSlot
from .modeling_hrm import HrmBackboneModel
from .modeling_huginn import HuginnBackboneModel
from .modeling_parcae import ParcaeBackboneModel, scale_and_softcap
from .transformers_seams import (
    RELEASE,
    adopt_attention,
    drops_cache,
    layer_cache_name,
    named_cache,
    without_checkpointing,
)


def _unchanged(owner: PreTrainedModel | PreTrainedConfig, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _scale_embeddings(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings * model.embedding_multiplier


def _scale_by_config(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings * model.embedding_scale


def _enter_hrm(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return model.enter(embeddings)


def _norm_embeddings(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return model.norm(embeddings)


def _dropout_module(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return model.embed_dropout(embeddings)


def _neox_dropout_module(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return model.emb_dropout(embeddings)


def _dropout_rate(model: Any, embeddings: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(embeddings, p=model.embedding_dropout, training=model.training)


def _divide_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    return logits / config.logits_scaling


def _scale_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    return logits * config.logit_scale


def _softcap_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass(frozen=True)
class BackboneSpec:
    """Where one architecture keeps its parts and what its own forward does around the layers.

    Args:
        embed_tokens, layers, norm (`str`): attribute names of the parts in the base model.
        enter (`Callable`): what happens to the token embeddings before the first layer.
        finish_logits (`Callable`): what the causal head does to the logits after the linear map.
        rotary_per_layer_type (`bool`): whether the rotary embedding is asked once per layer type.
        position_rows (`int`): rows of position ids the rotary embedding wants (3 for temporal, height and width).
        head_bias (`bool`): whether the causal head has a bias.
        layers_take_token_ids (`bool`): whether the layers look up embeddings of their own.
        layer_entry (`str`): the part of a layer that reads its input first, beside the residual.
        model_class (`type`, *optional*): the base model, where it is ours. Code that came with a checkpoint may hold
            the configuration's class twice, so that the Auto classes would not find the model by it.
        high_layers (`str`, *optional*): where a second stack of layers is, after those of `layers`.
        low_state (`str`, *optional*): the vector that the state of the first stack starts from.
    """

    embed_tokens: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    enter: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] = _unchanged
    finish_logits: Callable[[PreTrainedConfig, torch.Tensor], torch.Tensor] = _unchanged
    rotary_per_layer_type: bool = False
    position_rows: int = 1
    head_bias: bool = False
    layers_take_token_ids: bool = False
    layer_entry: str = "input_layernorm"
    model_class: type[PreTrainedModel] | None = None
    high_layers: str | None = None
    low_state: str | None = None


_LIKE_LLAMA = BackboneSpec()

# every entry is held to the base model, bit for bit, by tests/models/test_backbone.py
SUPPORTED_BACKBONES: dict[str, BackboneSpec] = {
    "apertus": BackboneSpec(layer_entry="attention_layernorm"),
    "arcee": _LIKE_LLAMA,
    "bitnet": _LIKE_LLAMA,
    "cohere": BackboneSpec(finish_logits=_scale_logits),
    "cohere2": BackboneSpec(finish_logits=_scale_logits),
    "deepseek_v3": _LIKE_LLAMA,
    "ernie4_5": _LIKE_LLAMA,
    "exaone4": BackboneSpec(layer_entry="self_attn"),
    "gemma": _LIKE_LLAMA,
    "gemma2": BackboneSpec(finish_logits=_softcap_logits),
    "gemma3_text": BackboneSpec(finish_logits=_softcap_logits, rotary_per_layer_type=True),
    "glm": _LIKE_LLAMA,
    "glm4": _LIKE_LLAMA,
    "gpt_neox": BackboneSpec(
        embed_tokens="embed_in",
        norm="final_layer_norm",
        enter=_neox_dropout_module,
    ),
    "gpt_oss": _LIKE_LLAMA,
    "granite": BackboneSpec(enter=_scale_embeddings, finish_logits=_divide_logits),
    "helium": _LIKE_LLAMA,
    "huginn_backbone": BackboneSpec(enter=_scale_embeddings, model_class=HuginnBackboneModel),
    "hunyuan_v1_dense": _LIKE_LLAMA,
    "lfm2": BackboneSpec(norm="embedding_norm"),
    "llama": _LIKE_LLAMA,
    "ministral": _LIKE_LLAMA,
    "mistral": _LIKE_LLAMA,
    "mixtral": _LIKE_LLAMA,
    "nanochat": BackboneSpec(enter=_norm_embeddings, finish_logits=_softcap_logits),
    "nemotron": _LIKE_LLAMA,
    "olmo": _LIKE_LLAMA,
    "olmo2": BackboneSpec(layer_entry="self_attn"),
    "olmo3": BackboneSpec(rotary_per_layer_type=True, layer_entry="self_attn"),
    "olmo_hybrid": _LIKE_LLAMA,
    "olmoe": _LIKE_LLAMA,
    "parcae_backbone": BackboneSpec(
        enter=_scale_embeddings,
        finish_logits=scale_and_softcap,
        layers_take_token_ids=True,
        model_class=ParcaeBackboneModel,
    ),
    "phi": BackboneSpec(norm="final_layernorm", enter=_dropout_module, head_bias=True),
    "phi3": _LIKE_LLAMA,
    "qwen2": _LIKE_LLAMA,
    "qwen2_moe": _LIKE_LLAMA,
    "qwen3": _LIKE_LLAMA,
    "qwen3_5_text": BackboneSpec(position_rows=3),
    "qwen3_moe": _LIKE_LLAMA,
    "qwen3_next": _LIKE_LLAMA,
    "seed_oss": _LIKE_LLAMA,
    "smollm3": _LIKE_LLAMA,
    "stablelm": _LIKE_LLAMA,
    "starcoder2": BackboneSpec(enter=_dropout_rate),
}

# decoders of two stacks, which the hierarchical family runs, and no other
TWO_STACK_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_text": BackboneSpec(
        layers="L_module.layers",
        high_layers="H_module.layers",
        norm="H_module.final_norm",
        enter=_scale_by_config,
        low_state="z_L_init",
    ),
}

# layers that attend in both directions, which the hierarchical puzzle model runs, and no other
PUZZLE_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_backbone": BackboneSpec(enter=_enter_hrm, model_class=HrmBackboneModel),
}


@dataclass(frozen=True)
class LayerInputs:
    """What every layer call of one forward pass shares.

    Args:
        position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
        position_embeddings (`dict` or `tuple`): rotary cosines and sines, by layer type where they differ.
        masks (`dict`, `torch.Tensor` or `None`): attention masks, by layer type where they differ.
        cache (`Cache` or `None`): the cache of the whole model.
        use_cache (`bool`): whether layers write to the cache.
        kwargs (`dict`): whatever else the caller passed down to the attention functions.
    """

    position_ids: torch.Tensor
    position_embeddings: Any
    masks: Any
    cache: Cache | None
    use_cache: bool
    kwargs: dict[str, Any]


class Backbone:
    """A transformers decoder taken apart. Made where it is used and thrown away: it owns no module.

    Args:
        model (`PreTrainedModel`): the base decoder (not the one with a head).
        spec (`BackboneSpec`, *optional*): where its parts are; by default its entry of `SUPPORTED_BACKBONES`.

    Raises:
        ValueError: the architecture is not in `SUPPORTED_BACKBONES`; names the model type and the missing part.
    """

    def __init__(self, model: PreTrainedModel, spec: BackboneSpec | None = None):
        self.model = model
        self.config = model.config
        self.spec = backbone_spec(model.config) if spec is None else spec
        # looked up once: attributes of modules and configurations are slow to read for every layer of every token
        self.layers: list[Any] = list(_part(model, self.spec.layers))
        if self.spec.high_layers is not None:
            self.layers += _part(model, self.spec.high_layers)
        self.final_norm = _part(model, self.spec.norm)
        self.layer_types: list[str] | None = getattr(model.config, "layer_types", None)

    def embed_inputs(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings `[B, T, D]` of one of the two that a forward pass may be given.

        Raises:
            ValueError: both are given, or neither.
        """
        if input_ids is not None and inputs_embeds is None:
            return self.embed(input_ids)
        if input_ids is not None or inputs_embeds is None:
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return inputs_embeds

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings `[B, T, D]`, with the scaling that belongs to the embedding module itself."""
        return getattr(self.model, self.spec.embed_tokens)(input_ids)

    def enter(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The first layer's input `[B, T, D]` from token embeddings."""
        return self.spec.enter(self.model, inputs_embeds)

    def prepare(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | dict | None,
        position_ids: torch.Tensor,
        cache: Cache | None,
        use_cache: bool,
        input_ids: torch.Tensor | None = None,
        block_sequence_ids: torch.Tensor | None = None,
        and_mask_function: Callable | None = None,
        **kwargs,
    ) -> LayerInputs:
        """Positions and masks, made once for all layer calls of a forward pass.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            attention_mask: a padding mask `[B, T]`, or masks already prepared by `generate`.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
            cache (`Cache`, *optional*): the cache, which shifts the masks by what it holds.
            use_cache (`bool`): whether layers write to the cache.
            input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): the tokens, where the layers embed them too.
            block_sequence_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): block of every token; those of a
                block see each other in both directions, -1 sees the past alone.
            and_mask_function (`Callable`, *optional*): a further condition on what a token sees, as transformers'
                masks take it.

        Raises:
            ValueError: the layers need the tokens, and there are none.
        """
        if "paged_cache" in kwargs:
            kwargs["cache"] = kwargs.pop("paged_cache")
        if self.spec.layers_take_token_ids:
            kwargs["token_ids"] = self.check_token_ids(input_ids)
        masks = attention_mask
        if not isinstance(attention_mask, dict):
            masks = create_masks_for_generate(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask,
                **named_cache(cache),
                position_ids=position_ids,
                block_sequence_ids=block_sequence_ids,
                and_mask_function=and_mask_function,
            )
        position_embeddings = self.rotate(hidden_states, position_ids)
        return LayerInputs(position_ids, position_embeddings, masks, cache, use_cache, kwargs)

    def check_token_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """The tokens, for layers that embed them too.

        Raises:
            ValueError: there are none.
        """
        if input_ids is None:
            raise ValueError(
                f"a {self.config.model_type} backbone needs `input_ids`: its layers embed the tokens too, so that "
                "`inputs_embeds` are not enough"
            )
        return input_ids

    def rotate(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Rotary cosines and sines of positions `[B, T]`, by layer type where they differ."""
        rotary_emb: Any = self.model.rotary_emb
        if rotary_emb is None:
            return None
        if self.spec.rotary_per_layer_type:
            layer_types = dict.fromkeys(self.layer_types or [])
            return {layer_type: rotary_emb(hidden_states, position_ids, layer_type) for layer_type in layer_types}
        if self.spec.position_rows > 1:
            position_ids = position_ids[None].expand(self.spec.position_rows, *position_ids.shape)
        return rotary_emb(hidden_states, position_ids)

    def run_layer(
        self,
        index: int,
        slot: int,
        hidden_states: torch.Tensor,
        inputs: LayerInputs,
        layer: Any = None,
        cache_view: Any = None,
    ) -> torch.Tensor:
        """One call of layer `index`, reading and writing cache slot `slot`.

        Args:
            index (`int`): the layer in the backbone.
            slot (`int`): the cache slot of this call.
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the layer's input.
            inputs (`LayerInputs`): positions, masks and cache, from `prepare`.
            layer (`nn.Module`, *optional*): a view of the layer to call in its place.
            cache_view (*optional*): what the layer is to see of the cache, in place of its slot.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`.
        """
        layer = self.layers[index] if layer is None else layer
        layer_type = self.layer_types[index] if self.layer_types is not None else None
        if inputs.cache is None and ("cache" in inputs.kwargs or "attention_instances" in inputs.kwargs):
            # such paged caches (vLLM, and continuous batching up to 5.23) are not handed to the layer: they ask the
            # attention module
            module: Any
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = slot
        if cache_view is None and inputs.cache is not None:
            cache_view = CacheSlot(inputs.cache, slot)
        keywords = inputs.kwargs
        if cache_view is not None:
            keywords = {**keywords, layer_cache_name(type(layer)): cache_view}
            if drops_cache(layer):
                layer = without_checkpointing(layer)
        masks, rotary = inputs.masks, inputs.position_embeddings
        output = layer(
            hidden_states,
            attention_mask=masks[layer_type] if isinstance(masks, dict) else masks,
            position_embeddings=rotary[layer_type] if isinstance(rotary, dict) else rotary,
            position_ids=inputs.position_ids,
            use_cache=inputs.use_cache,
            **keywords,
        )
        if cache_view is not None and not cache_view.was_used:
            raise RuntimeError(
                f"layer {index} of the {self.config.model_type} backbone neither read nor wrote slot {slot} of the "
                f"cache (transformers {RELEASE}): {_reason_not_used(layer)}"
            )
        return output[0] if isinstance(output, tuple) else output

    def norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The final norm, `[B, T, D]`."""
        return self.final_norm(hidden_states)


def next_positions(hidden_states: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Positions `[1, T]` of tokens `[B, T, D]` that follow what the cache holds."""
    past_seen_tokens = cache.get_seq_length() if cache is not None else 0
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_seen_tokens
    return positions.unsqueeze(0)


def compute_logits(config: PreTrainedConfig, lm_head: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Logits `[B, T, V]` of normed hidden states, with the architecture's scaling or soft-capping."""
    return backbone_spec(config).finish_logits(config, lm_head(hidden_states))


def make_backbone(config: PreTrainedConfig, spec: BackboneSpec | None = None) -> PreTrainedModel:
    """The base decoder of a backbone configuration, which stays an ordinary `PreTrainedModel`.

    Args:
        config (`PreTrainedConfig`): its configuration.
        spec (`BackboneSpec`, *optional*): where its parts are; by default its entry of `SUPPORTED_BACKBONES`.

    Raises:
        ValueError: the architecture is not supported, or asks for a router loss.
    """
    spec = backbone_spec(config) if spec is None else spec
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            f"`output_router_logits` of a {config.model_type} backbone must be False: the router's auxiliary loss is "
            "not defined over loops"
        )
    model = AutoModel.from_config(config) if spec.model_class is None else spec.model_class._from_config(config)
    _check_parts(config, spec, model)
    return model


def adopt_backbone(outer: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Let `outer` compile and choose attention functions wherever its backbone can."""
    outer._can_compile_fullgraph = backbone._can_compile_fullgraph
    outer._supports_attention_backend = backbone._supports_attention_backend
    adopt_attention(outer, backbone)


def backbone_spec(config: PreTrainedConfig) -> BackboneSpec:
    """The entry of `SUPPORTED_BACKBONES` for a configuration.

    Raises:
        ValueError: there is none; the message says what the architecture lacks.
    """
    spec = SUPPORTED_BACKBONES.get(config.model_type)
    if spec is None:
        raise ValueError(
            f"`backbone_config.model_type` {config.model_type!r} is not a supported backbone: "
            f"{_missing_parts(config)}. Supported are {', '.join(SUPPORTED_BACKBONES)}"
        )
    return spec


def _reason_not_used(layer: nn.Module) -> str:
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return (
            "a layer that is checkpointed by itself drops it. Train without a cache, and switch checkpointing on by "
            "`gradient_checkpointing_enable` of the whole model, not of its backbone"
        )
    return "this release hands the cache to its layers in a way that hf_loop does not know, and results would be wrong"


@functools.cache
def _part_names(spec: BackboneSpec) -> tuple[str, ...]:
    names = (spec.embed_tokens, spec.layers, spec.high_layers, spec.norm, spec.low_state, "rotary_emb")
    return tuple(name for name in names if name is not None)


def _part(model: PreTrainedModel, name: str) -> Any:
    """A part of the decoder, which may be inside another one."""
    return operator.attrgetter(name)(model)


def _has_part(model: PreTrainedModel, name: str) -> bool:
    try:
        _part(model, name)
    except AttributeError:
        return False
    return True


def _check_parts(config: PreTrainedConfig, spec: BackboneSpec, model: PreTrainedModel) -> None:
    missing = [name for name in _part_names(spec) if not _has_part(model, name)]
    if missing:
        raise ValueError(f"`backbone_config.model_type` {config.model_type!r} has no {', '.join(missing)}")


def _missing_parts(config: PreTrainedConfig) -> str:
    if config.model_type in PUZZLE_BACKBONES:
        return "its layers see all positions, as HierarchicalForPuzzle runs them"
    with torch.device("meta"):
        try:
            model = AutoModel.from_config(config)
        except ValueError:
            return "transformers has no base model for it"
    if config.model_type in TWO_STACK_BACKBONES:
        return "it has two stacks, which HierarchicalConfig runs"
    missing = [name for name in _part_names(_LIKE_LLAMA) if not _has_part(model, name)]
    if missing:
        return f"its base model has no {', '.join(missing)}"
    return "nobody has checked what its forward does around the layers"
