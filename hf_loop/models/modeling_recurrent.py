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
"""Base classes of the families' models: the backbone, one forward pass, and the language-model head."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.utils import auto_docstring, can_return_tuple

from .backbone import Backbone, BackboneSpec, LayerInputs, backbone_spec, compute_logits, make_backbone
from .cache_slots import check_num_slots
from .checks import check_count
from .configuration_recurrent import kind_of
from .cost import PARAMETERS, Measure, Work, given_depth, steps_work, text_shape
from .engines import engine_of, refusal
from .forward_signature import name_arguments
from .generation import RecurrentGenerationMixin
from .keyword_checks import check_keywords
from .outputs import RecurrentCausalLMOutputWithPast, RecurrentModelOutputWithPast
from .position_limit import check_length
from .pretrained_model import RecurrentPreTrainedModel
from .scaled_head import ScaledHead
from .schedules import Call, Depth
from .slot_attention import make_slot_attention
from .transformers_seams import (
    capture_outputs,
    choose_attention_function,
    is_scored_by_trl,
    keep_logits,
    merge_with_config_defaults,
    named_cache,
    takes_cache,
)
from .weighted_loss import weighted_causal_lm_loss


class ModelInputs(NamedTuple):
    """The arguments of a forward pass that every family has; shapes and meanings are those of transformers."""

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cache: Cache | None
    inputs_embeds: torch.Tensor | None
    use_cache: bool | None


class ForwardPass(NamedTuple):
    """The inputs of one pass over tokens.

    Args:
        backbone (`Backbone`): the backbone.
        hidden_states (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
        inputs (`LayerInputs`): the inputs that all layer calls share.
        depth (`dict[str, int]`): arguments of the depth schedule.
    """

    backbone: Backbone
    hidden_states: torch.Tensor
    inputs: LayerInputs
    depth: dict[str, Any]

    def run_call(self, call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one layer call on hidden states `[B, T, D]`."""
        return self.backbone.run_call(call, hidden_states, self.inputs)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class RecurrentModel(RecurrentPreTrainedModel):  # trf-ignore: TRF013 the classes below call `post_init` once complete
    """A backbone run on the depth schedule of its configuration, without a head.

    A family adds the modules between the layer calls, and a `run` if its forward pass has arguments of its own.

    Args:
        config (`RecurrentConfig`): the backbone and the schedule.
    """

    # set by transformers on every module that has it; under checkpointing a call makes no cache
    gradient_checkpointing = False
    # classes of recurrent backbones by model type, which code on the Hub could not find by itself
    backbone_classes: ClassVar[Mapping[str, type[PreTrainedModel]]] = {}
    # entries of decoders that only this family runs, by model type
    special_specs: ClassVar[Mapping[str, BackboneSpec]] = {}
    output_class: ClassVar[type[RecurrentModelOutputWithPast]] = RecurrentModelOutputWithPast
    # arguments of `forward` that belong to the family, which its `run` names
    own_arguments: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" not in vars(cls):
            shared = frozenset(("self", "inputs", "depth", "kwargs"))
            cls.own_arguments = frozenset(inspect.signature(cls.run).parameters) - shared
            cls.forward: Any = name_arguments(RecurrentModel.forward, RecurrentModel.forward, cls.run, shared)

    def __init__(self, config: Any):
        super().__init__(config)
        engine = engine_of(config)
        if engine is not None and self.no_engine is not None:
            raise ValueError(refusal(engine, config, self.no_engine))
        if engine is not None:
            # made as without an engine, whose function comes in between later
            choose_attention_function(config.decoder_config, "eager")
        is_recurrent = kind_of(config.backbone_config) is not None
        self.backbone: Any = make_backbone(
            config.backbone_config, None if is_recurrent else self.spec, self.backbone_classes
        )
        # for an engine with its own attention, such as vLLM
        self.slot_attention: Any = None
        if engine is not None:
            self.slot_attention = make_slot_attention(config, self.backbone, self.spec)
        self.adopt(self.backbone)

    @property
    def spec(self) -> BackboneSpec:
        """The description of the decoder."""
        decoder_config = self.config.decoder_config
        if self.backbone_is_recurrent:
            return self.backbone.spec
        return self.special_specs.get(decoder_config.model_type) or backbone_spec(decoder_config)

    @property
    def backbone_is_recurrent(self) -> bool:
        """Whether the backbone is a recurrent model itself."""
        return kind_of(self.config.backbone_config) is not None

    @property
    def embeddings_name(self) -> str:
        """Name of the token embeddings in this model."""
        inner = self.backbone.embeddings_name if self.backbone_is_recurrent else self.spec.embed_tokens
        return f"backbone.{inner}"

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    def enter(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Change the first layer's input `[B, T, D]` from the decoder's to this model's."""
        return hidden_states

    def layer_in_call(self, layer: nn.Module, call: Call) -> nn.Module:
        """Return the layer with the update of a call."""
        return layer

    def update_size(self, call: Call) -> int:
        """Return the number of parameters in the update of a call."""
        return 0

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        """Count the work of a forward pass, given the arguments of `forward`."""
        num_rows, length = text_shape(inputs)
        return self.count_steps([length], inputs, measure) * num_rows

    def count_steps(self, steps: Sequence[int], inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        """Count the work on one text that is read with a cache, `steps` tokens in one forward pass after the other,
        given the other arguments of `forward`."""
        return steps_work(self, given_depth(self, inputs), steps, measure)

    def depth_arguments(self, **depth: Any) -> dict[str, Any]:
        """Check the arguments of the depth schedule and return those that are given.

        Args:
            depth: `num_loops` and `num_backprop_loops`; `None` means the default.

        Raises:
            ValueError: if a count is not a positive integer.
            TypeError: if the schedule does not have an argument.
        """
        given = {name: value for name, value in depth.items() if value is not None}
        known = self.config.depth_arguments
        for name in given:
            if name not in known:
                raise TypeError(f"`{name}` is no keyword of a {self.config.model_type} model{self.about_loops}")
        if "num_loops" in known:
            # from this configuration: a view of this model may have another number of loops than its backbone
            given.setdefault("num_loops", self.config.num_loops)
        return {name: check_count(name, value) for name, value in given.items()}

    def sized_config(self, depth: dict[str, Any]) -> Any:
        """Return the configuration from which to make a cache for these arguments of the schedule."""
        num_loops = depth.get("num_loops")
        is_own = num_loops is None or num_loops == self.config.num_loops
        return self.config if is_own else self.config.with_num_loops(num_loops)

    def start_pass(
        self, inputs: ModelInputs, depth: dict[str, Any], makes_cache: bool = True, **kwargs
    ) -> ForwardPass:
        """Prepare embeddings, positions, masks and cache for one pass over all tokens.

        Args:
            inputs (`ModelInputs`): the arguments of `forward`.
            depth (`dict`): arguments of the depth schedule.
            makes_cache (`bool`, *optional*, defaults to `True`): whether to make a cache if `use_cache` is set.
            kwargs: further arguments of `Backbone.prepare`.

        Raises:
            ValueError: if the cache was made for another number of loops, there are no tokens, or more than the
                decoder has positions.
        """
        input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache = inputs
        backbone = Backbone(self)
        inputs_embeds = backbone.embed_inputs(input_ids, inputs_embeds)
        if cache is not None:
            num_calls = len(backbone.depth.calls(**_counts(depth)))
            check_num_slots(cache, num_calls, depth.get("num_loops"))
        elif use_cache and makes_cache:
            cache = DynamicCache(config=self.sized_config(depth))
        if position_ids is None:
            position_ids = backbone.next_positions(inputs_embeds, cache, attention_mask)
        check_length(self, backbone, inputs_embeds.shape[1], cache, position_ids)
        layer_inputs = backbone.prepare(
            inputs_embeds, attention_mask, position_ids, cache, bool(use_cache), input_ids, **kwargs
        )
        return ForwardPass(backbone, backbone.enter(inputs_embeds, position_ids), layer_inputs, depth)

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        num_backprop_loops: int | None = None,
        **kwargs,
    ) -> RecurrentModelOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            The cache of earlier calls; `past_key_values` is its older name.
        num_loops (`int`, *optional*):
            Number of loops, of a model that has them; by default `config.num_loops`.
        num_backprop_loops (`int`, *optional*):
            Number of last loops with gradient, by default as many as the configuration allows.

        Raises:
            TypeError: if a number of loops is given to a model without loops, or no part of the model knows a keyword.
            ValueError: if a number of loops is not a positive integer, or as `run` says.
        """
        check_keywords(self, {name: value for name, value in kwargs.items() if name not in self.own_arguments})
        depth = self.depth_arguments(num_loops=num_loops, num_backprop_loops=num_backprop_loops)
        inputs = ModelInputs(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache)
        return self.run(inputs, depth, **kwargs)

    def run(self, inputs: ModelInputs, depth: dict[str, Any], **kwargs) -> Any:
        """The forward pass behind its checks. A family overrides it, with its own arguments by name.

        Args:
            inputs (`ModelInputs`): the arguments of `forward` that every family has.
            depth (`dict`): arguments of the depth schedule, checked.
            kwargs: further keywords, for the layers.
        """
        return self.run_pass(self.start_pass(inputs, depth, **kwargs))

    def run_pass(self, forward_pass: ForwardPass) -> Any:
        """Run one pass on the depth schedule and return the outputs."""
        depth: Depth = forward_pass.backbone.depth
        hidden_states = depth.run(forward_pass.hidden_states, forward_pass.run_call, **forward_pass.depth)
        return self.output_class(
            last_hidden_state=depth.finish(hidden_states),
            **named_cache(forward_pass.inputs.cache),
            **self.loops_run(forward_pass),
        )

    def loops_run(self, forward_pass: ForwardPass) -> dict[str, Any]:
        """Return the output `num_loops`, if the schedule has loops."""
        # CODEPATH: a schedule without a number of loops has none to report
        if not self.config.has_loops:
            return {}
        num_loops = forward_pass.depth["num_loops"]
        hidden_states = forward_pass.hidden_states
        return {"num_loops": torch.full((hidden_states.shape[0],), num_loops, device=hidden_states.device)}


def _counts(depth: dict[str, Any]) -> dict[str, Any]:
    """Select the arguments of a depth schedule on which the number of calls depends."""
    return {name: value for name, value in depth.items() if name != "num_backprop_loops"}


# trf-ignore: TRF057 as above
class RecurrentForCausalLM(RecurrentPreTrainedModel, RecurrentGenerationMixin):
    """A recurrent model with the decoder's language-model head.

    A family sets `model_class` and `output_class`. The arguments of the headless model are added to the signature of
    `forward`. A family whose head has further arguments overrides `forward`, takes them as keywords and calls it.

    Args:
        config (`RecurrentConfig`): the backbone and the schedule.
    """

    model_class: ClassVar[type[RecurrentModel]] = RecurrentModel
    output_class: ClassVar[Any] = RecurrentCausalLMOutputWithPast
    output_names: ClassVar[frozenset[str]]
    # arguments of the headless model that a family's `forward` sets itself
    set_arguments: ClassVar[frozenset[str]] = frozenset()
    # arguments of a family's `forward` that its `compute_loss` and `read_outputs` take
    head_arguments: ClassVar[frozenset[str]] = frozenset()
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # stored, because a compiled graph cannot read the fields of a class
        cls.output_names = frozenset(field.name for field in fields(cls.output_class))
        cls.forward: Any = name_arguments(
            cls.forward, RecurrentForCausalLM.forward, cls.model_class.forward, cls.set_arguments
        )

    def __init__(self, config: Any):
        super().__init__(config)
        self.model: Any = self.model_class(config)
        self.adopt(self.model.backbone)
        self.lm_head = make_head(self)
        self.post_init()

    @takes_cache
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> RecurrentCausalLMOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            The cache of earlier calls; `past_key_values` is its older name.
        loss_weights (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Weight of every label in the loss, by default 1.
        """
        own = {name: kwargs.pop(name) for name in self.head_arguments if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.read_last_logits(outputs, logits_to_keep)
        loss = None if labels is None else self.compute_loss(outputs, logits, labels, loss_weights, kwargs, **own)
        return self.output_class(loss=loss, logits=logits, **self.read_outputs(outputs, logits_to_keep, **own))

    def get_output_embeddings(self):
        # TRL's trainers ask for it in every step, and read its weight and the configuration's scale alone
        if isinstance(self.lm_head, ScaledHead) and is_scored_by_trl(self):
            raise ValueError(
                f"a {self.config.decoder_config.model_type} decoder cannot be trained by this trainer of TRL: it "
                "computes logits by itself, without the scale that the head learned for every token"
            )
        return self.lm_head

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resize as transformers does. A head with a scale per token keeps it."""
        head = self.lm_head
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if isinstance(head, ScaledHead):
            head.resize(self.lm_head.weight)
            self.lm_head = head
        # CODEPATH: Inkling's head leaves out the padding of its vocabulary, and a resized one has a row for all tokens
        if hasattr(self.config.decoder_config, "unpadded_vocab_size"):
            self.config.decoder_config.unpadded_vocab_size = self.lm_head.out_features
        return embeddings

    def compute_loss(
        self,
        outputs: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """Compute the loss of logits `[B, T, V]`, weighted by `loss_weights` if given. A family may read `outputs`."""
        kwargs = {**kwargs, "logits": logits, "labels": labels, "vocab_size": logits.shape[-1]}
        if loss_weights is None:
            return self.loss_function(**kwargs)
        return weighted_causal_lm_loss(loss_weights=loss_weights, **kwargs)

    def read_outputs(self, outputs: Any, logits_to_keep: int | torch.Tensor) -> dict[str, Any]:
        """Return the outputs besides loss and logits, by default those that the headless model has, too."""
        return {name: value for name, value in outputs.items() if name in self.output_names}

    def read_logits(self, hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor = 0) -> torch.Tensor:
        """Compute logits `[B, T, V]` of the headless model's last hidden states `[B, T, D]`."""
        hidden_states = keep_logits(hidden_states, logits_to_keep)
        return compute_logits(self.config.decoder_config, self.lm_head, hidden_states, self.model.spec)

    def read_last_logits(self, outputs: Any, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Compute the logits `[B, T, V]` of the headless model's outputs."""
        return self.read_logits(outputs.last_hidden_state, logits_to_keep)


def make_head(outer: Any) -> nn.Linear:
    """Make the head of `outer`, and declare its weight tied to the embeddings of `outer.model`."""
    config, spec = outer.config, outer.model.spec
    outer._tied_weights_keys = {"lm_head.weight": f"model.{outer.model.embeddings_name}.weight"}
    if spec.head_scale:
        return ScaledHead(config.decoder_config)
    # CODEPATH: Inkling's head leaves out the padding of its vocabulary
    num_tokens = getattr(config.decoder_config, "unpadded_vocab_size", config.vocab_size)
    return nn.Linear(config.hidden_size, num_tokens, bias=spec.head_bias)


__all__ = [
    "ForwardPass",
    "ModelInputs",
    "RecurrentForCausalLM",
    "RecurrentModel",
    "RecurrentPreTrainedModel",
    "make_head",
]
