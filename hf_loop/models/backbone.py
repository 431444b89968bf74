# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The parts of a transformers decoder: its embedding, positions, masks, layer calls, final norm and head.

`backbone_specs.py` describes what a decoder's own forward does around its layers (scaling the embeddings, norms before
the first layer, positions per layer type, capping the logits). No other file depends on the architecture. One that the
tests do not cover is compared with its base model before it is used, see `backbone_check.py`.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, PreTrainedConfig, PreTrainedModel

from .backbone_check import check_entry
from .backbone_parts import BackboneSpec, decoder_layers, get_part, missing_parts, set_part
from .backbone_specs import (
    LOOPED_BACKBONES,
    PUZZLE_BACKBONES,
    REGISTERED_BACKBONES,
    SUPPORTED_BACKBONES,
    TWO_STACK_BACKBONES,
    find_spec,
    is_tested,
    register_backbone,
)
from .cache_slots import CacheSlot
from .configuration_recurrent import kind_of
from .engines import ENGINES, check_no_engine
from .layer_calls import LayerInputs, goes_on, named_arguments, of_layer, reason_not_used, run_by_token
from .module_seams import drops_cache, without_checkpointing
from .schedules import Call, Depth
from .slot_attention import SLOT_ATTENTION, SlotCall
from .transformers_seams import (
    RELEASE,
    adopt_attention,
    attention_function,
    create_masks_for_generate,
    layer_cache_name,
    make_model,
    named_cache,
)


# types of layers that have no cache
STATELESS_LAYER_TYPES = ("moe", "mlp")
# types of layers for which transformers' function makes other masks than the decoders that have them
MASK_TYPES = {"hybrid_sliding": ("sliding_attention", "linear_attention")}


class Backbone:
    """The parts of a model and the schedule of its passes. Made for one forward pass; it owns no module.

    Args:
        model (`PreTrainedModel`): a transformers decoder without a head, whose passes run every layer once; or a
            recurrent model, whose depth schedule runs the layers of the decoder inside it. Embedding, positions,
            masks, norm and head are those of the decoder.
        spec (`BackboneSpec`, *optional*): description of the decoder, by default the entry of its model type, which
            was checked when the model was made.

    Attributes:
        depth (`Depth`): the schedule of one pass.
    """

    def __init__(self, model: PreTrainedModel, spec: BackboneSpec | None = None):
        # a model with a time schedule makes no pass of its own
        while kind_of(model.config) == "time":
            model = model.backbone  # ty: ignore[invalid-assignment]
        self.outer: Any = None if kind_of(model.config) is None else model
        self.model: Any = model if self.outer is None else self.outer.backbone
        self.config = self.model.config
        if spec is None:
            spec = find_spec(self.config) if self.outer is None else self.outer.spec
        self.spec: Any = spec
        # looked up once: reading attributes of modules and configurations in every layer call is slow
        self.layers: list[Any] = decoder_layers(self.model, self.spec)
        self.final_norm = get_part(self.model, self.spec.norm)
        self.layer_types: list[str] | None = getattr(self.config, "layer_types", None)
        self.num_positions: int | None = getattr(self.config, "max_position_embeddings", None)
        self.mask_config = _with_mask_types(self.config, self.layer_types)
        # the modules of an engine's cache slots, if the model was made for one
        self.slots: Any = getattr(self.outer, "slot_attention", None)
        if self.slots is None:
            check_no_engine(self.config)
        # set inside `hook_calls` only
        self.call_hook: Any = getattr(self.model, "call_hook", None)
        norm = self.final_norm if self.spec.read_state is None else self.norm
        if self.outer is None:
            self.depth: Any = Depth(len(self.layers), norm)
        else:
            self.depth = self.outer.config.depth(self.outer, norm)

    def embed_inputs(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return token embeddings `[B, T, D]`: `inputs_embeds`, or those of `input_ids`.

        Raises:
            ValueError: if both are given, or neither.
        """
        if input_ids is not None and inputs_embeds is None:
            return self.embed(input_ids)
        if input_ids is not None or inputs_embeds is None:
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return inputs_embeds

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return token embeddings `[B, T, D]`, with the scaling of the embedding module itself."""
        return get_part(self.model, self.spec.embed_tokens)(input_ids)

    def enter(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Compute the first layer's input `[B, T, D]` from token embeddings and positions `[B, T]` or `[1, T]`."""
        hidden_states = self.spec.enter(self.model, inputs_embeds, position_ids)
        return hidden_states if self.outer is None else self.outer.enter(hidden_states)

    def next_positions(
        self, hidden_states: torch.Tensor, cache: Cache | None, attention_mask: torch.Tensor | dict | None
    ) -> torch.Tensor:
        """Return the positions of tokens `[B, T, D]` that follow those in the cache, as the base model counts them."""
        is_padding = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        if self.spec.counts_padding or not is_padding:
            return next_positions(hidden_states, cache)
        positions = attention_mask.long().cumsum(dim=1) * attention_mask.long() - 1
        return positions[:, -hidden_states.shape[1] :]

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
        """Make the positions and masks that all layer calls of a forward pass share.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
            attention_mask (`torch.Tensor` or `dict`, *optional*): a padding mask `[B, T]`, or the masks that
                `generate` has prepared.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
            cache (`Cache`, *optional*): the cache; masks include the tokens in it.
            use_cache (`bool`): whether layers write to the cache.
            input_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): the tokens, for layers that embed them too.
            block_sequence_ids (`torch.LongTensor` of shape `[B, T]`, *optional*): block of every token. Tokens of a
                block see each other in both directions; a token with -1 sees only the past.
            and_mask_function (`Callable`, *optional*): a further condition on what a token sees, in the form of
                transformers' mask functions.

        Raises:
            ValueError: if the layers need `input_ids` and there are none, or an engine's attention would need a mask,
                or the model was not made for the engine.
        """
        if self.slots is None and "attention_instances" in kwargs:
            raise ValueError(
                "`attention_instances` needs a model made of a configuration whose `attn_implementation` is that of "
                f"the engine, one of {', '.join(ENGINES)}"
            )
        if self.slots is not None and any(given is not None for given in (attention_mask, block_sequence_ids)):
            raise ValueError(
                "`attention_mask` and blocks of tokens must be None: an engine's attention reads no masks"
            )
        if "paged_cache" in kwargs:
            kwargs["cache"] = kwargs.pop("paged_cache")
        if self.spec.layers_take_token_ids:
            kwargs["token_ids"] = self.check_token_ids(input_ids)
        masks = attention_mask
        if not isinstance(attention_mask, dict):
            if self.spec.needs_masks and and_mask_function is None:
                and_mask_function = _sees_all
            masks = create_masks_for_generate(
                config=self.mask_config,
                inputs_embeds=hidden_states,
                attention_mask=attention_mask,
                **named_cache(cache),
                position_ids=position_ids,
                block_sequence_ids=block_sequence_ids,
                and_mask_function=and_mask_function,
            )
        num_past = cache.get_seq_length() if cache is not None and self.spec.layer_arguments is not None else 0
        kwargs |= self.layer_arguments(hidden_states, attention_mask, masks, num_past)
        masks = kwargs.pop("attention_mask", masks)
        position_embeddings = self.rotate(hidden_states, position_ids)
        return LayerInputs(position_ids, position_embeddings, masks, cache, use_cache, kwargs)

    def layer_arguments(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, masks: Any = None, num_past: int = 0
    ) -> dict[str, Any]:
        """Return the further arguments that the architecture's layers need, see `BackboneSpec`."""
        make = self.spec.layer_arguments
        return {} if make is None else make(self.model, hidden_states, attention_mask, masks, num_past)

    def check_token_ids(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Return `input_ids`, for layers that embed tokens too.

        Raises:
            ValueError: if `input_ids` is None.
        """
        if input_ids is None:
            raise ValueError(
                f"a {self.config.model_type} backbone needs `input_ids`, got only `inputs_embeds`: its layers embed "
                "the tokens too"
            )
        return input_ids

    def rotate(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """Compute rotary cosines and sines of positions `[B, T]`, by layer type or by layer if they differ."""
        if self.spec.rotate is not None:
            return self.spec.rotate(self.model, hidden_states, position_ids)
        rotary_emb: Any = None if self.spec.rotary is None else get_part(self.model, self.spec.rotary)
        if rotary_emb is None:
            return None
        if self.spec.rotary_per_layer_type:
            layer_types = dict.fromkeys(self.layer_types or [])
            return {layer_type: rotary_emb(hidden_states, position_ids, layer_type) for layer_type in layer_types}
        if self.spec.position_rows > 1:
            position_ids = position_ids[None].expand(self.spec.position_rows, *position_ids.shape)
        return rotary_emb(hidden_states, position_ids)

    def layer_of(self, call: Call) -> Any:
        """Return the layer of a call, with the update of the call's loop."""
        layer = self.layers[call.layer]
        return layer if self.outer is None else self.outer.layer_in_call(layer, call)

    def run_call(
        self, call: Call, hidden_states: torch.Tensor, inputs: LayerInputs, layer: Any = None, layer_cache: Any = None
    ) -> torch.Tensor:
        """Run one layer call, which reads and writes its cache slot.

        Args:
            call (`Call`): the layer, and the cache slot of this call.
            hidden_states (`torch.Tensor` of shape `[B, T, D]`): the layer's input; of architectures whose state is
                more than that, the whole state `[B, T, S * D]`, see `block_states.py`.
            inputs (`LayerInputs`): positions, masks and cache, from `prepare`.
            layer (`nn.Module`, *optional*): a view of the layer to call in its place.
            layer_cache (`Any`, *optional*): the cache to give the layer, by default the [`CacheSlot`] of the call.

        Returns:
            `torch.Tensor` of shape `[B, T, D]`: the layer's output; the state after the layer where `hidden_states`
            is a state.
        """
        layer = self.layer_of(call) if layer is None else layer
        if self.spec.run_state is not None:
            return self._run_on_state(call, layer, hidden_states, inputs, layer_cache)
        if self.call_hook is None:
            return self._run_layer(call, layer, hidden_states, inputs, layer_cache)

        def run_layer(layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            return self._run_layer(call, layer, hidden_states, inputs, layer_cache)

        return self.call_hook(call, layer, hidden_states, run_layer)

    def _run_on_state(
        self, call: Call, layer: Any, state: torch.Tensor, inputs: LayerInputs, layer_cache: Any
    ) -> torch.Tensor:
        """Run a layer on a state `[B, T, S * D]`."""
        if layer_cache is None and inputs.cache is not None:
            layer_cache = CacheSlot(inputs.cache, call.slot)

        def run_layer(hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
            own_inputs = dataclasses.replace(inputs, kwargs={**inputs.kwargs, **arguments})
            return self._run_layer(call, layer, hidden_states, own_inputs, layer_cache)

        return self.spec.run_state(self.model, call.layer, state, layer_cache, run_layer)

    def _run_layer(
        self, call: Call, layer: Any, hidden_states: torch.Tensor, inputs: LayerInputs, layer_cache: Any
    ) -> torch.Tensor:
        """Run a layer as `run_call` says, without a hook."""
        index, slot = call.layer, call.slot
        layer_type = self.layer_types[index] if self.layer_types is not None else None
        if inputs.cache is None and "cache" in inputs.kwargs:
            # the paged cache of continuous batching up to 5.23 is not given to the layer: it finds its entry by the
            # attention module's index
            module: Any
            for module in layer.modules():
                if hasattr(module, "layer_idx"):
                    module.layer_idx = slot
        if layer_cache is None and inputs.cache is not None:
            layer_cache = CacheSlot(inputs.cache, slot)
        keywords = inputs.kwargs
        if layer_cache is not None:
            keywords = {**keywords, layer_cache_name(type(layer)): layer_cache}
            if drops_cache(layer):
                layer = without_checkpointing(layer)
        masks, rotary = inputs.masks, inputs.position_embeddings
        if isinstance(masks, dict):
            masks = None if layer_type in STATELESS_LAYER_TYPES else masks[layer_type]
        keywords = {
            "attention_mask": masks,
            "position_embeddings": of_layer(rotary, layer_type, index),
            "position_ids": inputs.position_ids,
            "use_cache": inputs.use_cache,
            **keywords,
        }
        if self.spec.layers_take_index:
            keywords["layer_idx"] = index
        slot_call = None
        if self.slots is not None:
            slot_call = keywords["slot_call"] = SlotCall(self.slot_module(slot))
        taken = named_arguments(type(layer))
        if taken is not None:
            keywords = {name: value for name, value in keywords.items() if name in taken}
        if self.spec.continues_by_token and hidden_states.shape[1] > 1 and goes_on(layer_type, layer_cache, slot):
            output = run_by_token(layer, hidden_states, keywords)
        else:
            output = layer(hidden_states, **keywords)
        if layer_cache is not None and not layer_cache.was_used and not self._carries_nothing(index):
            raise RuntimeError(
                f"layer {index} of the {self.config.model_type} backbone neither read nor wrote slot {slot} of the "
                f"cache (transformers {RELEASE}): {reason_not_used(layer)}"
            )
        if slot_call is not None and not slot_call.was_used:
            raise ValueError(
                f"layer {index} of the {self.config.model_type} backbone did not come to the engine's attention: it "
                "does not hand keywords on to the attention function"
            )
        return output[0] if isinstance(output, tuple) else output

    def slot_module(self, slot: int) -> Any:
        """Return the module of an engine's cache slot.

        Raises:
            ValueError: if the model was made with fewer slots.
        """
        if str(slot) not in self.slots:
            raise ValueError(
                f"`num_loops` needs {slot + 1} or more cache slots, and the engine made {len(self.slots)}: set it in "
                "the configuration that the model is made of"
            )
        return self.slots[str(slot)]

    def _carries_nothing(self, index: int) -> bool:
        """Return whether a layer has no keys, values or state of its own, by the configuration."""
        if self.layer_types is not None and self.layer_types[index] in STATELESS_LAYER_TYPES:
            return True
        sharing = getattr(self.config, "kv_sharing_modes", None)
        return sharing is not None and sharing[index] == "reuse"

    def norm(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the final norm, `[B, T, D]`; of a state that is more than hidden states, to what it reads of it."""
        if self.spec.read_state is None:
            return self.final_norm(hidden_states)
        return self.final_norm(self.spec.read_state(self.model, hidden_states)).to(hidden_states.dtype)


def next_positions(hidden_states: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Return the positions `[1, T]` of tokens `[B, T, D]` that follow those in the cache."""
    past_seen_tokens = cache.get_seq_length() if cache is not None else 0
    positions = torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_seen_tokens
    return positions.unsqueeze(0)


def compute_logits(
    config: PreTrainedConfig, lm_head: nn.Module, hidden_states: torch.Tensor, spec: BackboneSpec | None = None
) -> torch.Tensor:
    """Compute logits `[B, T, V]` of normed hidden states, with the architecture's scaling or soft-capping."""
    spec = find_spec(config) if spec is None else spec
    return spec.finish_logits(config, lm_head(spec.enter_head(config, hidden_states)))


def make_backbone(
    config: PreTrainedConfig,
    spec: BackboneSpec | None = None,
    classes: Mapping[str, type[PreTrainedModel]] | None = None,
) -> PreTrainedModel:
    """Make the model of a backbone configuration.

    Args:
        config (`PreTrainedConfig`): configuration of a decoder or of a recurrent model.
        spec (`BackboneSpec`, *optional*): description of the decoder, by default the checked entry of its model type.
        classes (`Mapping`, *optional*): classes of recurrent models by model type, used before `AutoModel`'s.

    Raises:
        ValueError: if the architecture does not pass the check, asks for a router loss, or no model can be made of the
            configuration.
    """
    if getattr(config, "output_router_logits", False):
        raise ValueError(
            f"`output_router_logits` of a {config.model_type} backbone must be False: the router loss is not defined "
            "over loops"
        )
    if kind_of(config) is not None:
        model_class = (classes or {}).get(config.model_type)
        return AutoModel.from_config(config) if model_class is None else make_model(model_class, config)
    spec = backbone_spec(config) if spec is None else spec
    try:
        model = AutoModel.from_config(config) if spec.model_class is None else make_model(spec.model_class, config)
    except ImportError:
        raise
    except Exception as error:  # the classes of transformers fail in many ways on values that they do not expect
        raise ValueError(
            f"`backbone_config` makes no {config.model_type} model: {type(error).__name__}: {error}"
        ) from error
    missing = missing_parts(model, spec)
    if missing:
        raise ValueError(f"`backbone_config.model_type` {config.model_type!r} has no {', '.join(missing)}")
    return model


def adopt_backbone(outer: PreTrainedModel, backbone: PreTrainedModel) -> None:
    """Give `outer` the attention function of its backbone, and its support for compilation and attention back-ends."""
    outer._can_compile_fullgraph = backbone._can_compile_fullgraph
    outer._supports_attention_backend = backbone._supports_attention_backend
    # the outer model keeps that of the engine, by which the slots find it
    if attention_function(backbone.config) != SLOT_ATTENTION:
        adopt_attention(outer, backbone)


def backbone_spec(config: PreTrainedConfig, causal_class: type[PreTrainedModel] | None = None) -> BackboneSpec:
    """Return the checked entry for a configuration: that of its model type, or the default.

    An entry that the tests of hf_loop do not cover is checked on a small twin of the configuration, once per process.

    Args:
        config (`PreTrainedConfig`): the decoder's configuration.
        causal_class (`type`, *optional*): class of its causal language models, by default that of the Auto classes.

    Raises:
        ValueError: if the check fails; the message names the first difference.
    """
    spec = find_spec(config)
    if not is_tested(config):
        check_entry(config, spec, Backbone, causal_class)
    return spec


def _sees_all(batch_idx: Any, head_idx: Any, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    """A mask function that hides nothing: given one, transformers never leaves the mask out."""
    return q_idx >= 0


def _with_mask_types(config: PreTrainedConfig, layer_types: list[str] | None) -> PreTrainedConfig:
    """Return the configuration for transformers' masks, with layer types of which it knows the masks."""
    if not layer_types or not set(layer_types).intersection((*STATELESS_LAYER_TYPES, *MASK_TYPES)):
        return config
    config = copy.copy(config)
    with_masks = [layer_type for layer_type in layer_types if layer_type not in STATELESS_LAYER_TYPES]
    config.layer_types = [kind for layer_type in with_masks for kind in MASK_TYPES.get(layer_type, (layer_type,))]
    return config


__all__ = [
    "LOOPED_BACKBONES",
    "PUZZLE_BACKBONES",
    "REGISTERED_BACKBONES",
    "SUPPORTED_BACKBONES",
    "TWO_STACK_BACKBONES",
    "Backbone",
    "BackboneSpec",
    "LayerInputs",
    "adopt_backbone",
    "backbone_spec",
    "compute_logits",
    "find_spec",
    "get_part",
    "is_tested",
    "make_backbone",
    "next_positions",
    "register_backbone",
    "set_part",
]
