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
"""The feedback language model (TransformerFAM, https://huggingface.co/papers/2404.09173): blocks and a memory.

    for every block:  for every layer l:  [F_l ; block] = layer_l([F_l ; block]), see `feedback_plan.py`
    logits = head(norm(block))

With no memory and every block kept, this is the backbone.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.utils import auto_docstring, can_return_tuple, logging

from .backbone import (
    Backbone,
    LayerInputs,
    adopt_backbone,
    backbone_spec,
    compute_logits,
    make_backbone,
)
from .configuration_feedback import FeedbackConfig
from .family import Family, text_classes
from .family_checks import check_blocks
from .feedback_masks import block_masks
from .feedback_memory import BlockView, LayerMemory
from .feedback_plan import BlockPlan, plan_block
from .feedback_state import FeedbackState, start_state
from .keyword_checks import ENGINE_KEYWORDS, check_keywords
from .layer_views import LayerUpdates, LeadingRows, updated_view
from .memory_generation import MemoryGenerationMixin
from .modeling_classification import SequenceClassifier, TokenClassifier
from .modeling_recurrent import RecurrentPreTrainedModel
from .outputs import (
    FeedbackCausalLMOutputWithPast,
    FeedbackModelOutputWithPast,
    select_hidden_states,
    wants_hidden_states,
)
from .token_rows import Round, arrange_rows, gather_outputs, plan_rounds
from .transformers_seams import (
    CheckpointsSteps,
    capture_outputs,
    keep_logits,
    merge_with_config_defaults,
    named_cache,
    recordable,
    takes_cache,
)
from .weighted_loss import weighted_causal_lm_loss


logger = logging.get_logger(__name__)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class FeedbackPreTrainedModel(CheckpointsSteps, RecurrentPreTrainedModel):
    """What the feedback model and its head share."""

    config_class = FeedbackConfig
    config: FeedbackConfig
    family_tags = ("transformerfam", "feedback-memory", "long-context")
    # flash attention has no mask by which rows of memory see a block in both directions, and flex attention, which
    # compiles a kernel for every length of a block, fails to build some of them (torch 2.13, on a CPU)
    _supports_flash_attn = False
    _supports_flex_attn = False
    steps = "blocks"
    about_loops = ": a feedback model has no loops"
    refused_keywords = dict.fromkeys(ENGINE_KEYWORDS, "an engine with its own attention has no place for a memory")
    # hidden states are put together from the blocks
    _can_record_outputs = recordable("attentions", "router_logits")
    no_prompt_learning = (
        "a prompt would stand in the first block, and later ones see what segments and memory keep of it"
    )
    # here, since `PreTrainedModel` comes before the generation mixin: `generate` refuses to take tokens back
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FeedbackEmbedding):
            # the default is that of transformers, for decoders whose configuration has another name for it
            init.normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Choose attention functions as the backbone does."""
        adopt_backbone(self, backbone)
        # the schedule is decided on the host, by how far every row has come
        self._can_compile_fullgraph = False


class FeedbackEmbedding(nn.Module):
    """The learned vectors that a memory starts from. A module, so that `modules_to_save` of PEFT finds it.

    Args:
        shape (`tuple[int, ...]`): `(f, D)`, or `(layers, f, D)`.
        requires_grad (`bool`): whether they are trained.
    """

    def __init__(self, shape: tuple[int, ...], requires_grad: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape), requires_grad=requires_grad)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The vectors in the dtype of `hidden_states`."""
        return self.weight.to(hidden_states.dtype)


# trf-ignore: TRF057 as above
class FeedbackModel(FeedbackPreTrainedModel):
    """The backbone's layers on a schedule of blocks with a feedback memory, without a head.

    Args:
        config (`FeedbackConfig`): the backbone and the blocks.

    Raises:
        ValueError: the backbone cannot be run in blocks, or rows of memory cannot go through its layers.
    """

    # whether something hands this model's memory on to the next training step, as `random_state_passing` wants it
    has_state_passing = False

    def __init__(self, config: FeedbackConfig):
        super().__init__(config)
        self.backbone = make_backbone(config.backbone_config)
        check_blocks(config, self.backbone, FeedbackModel)
        self.adopt(self.backbone)
        self.feedback_embedding: FeedbackEmbedding | None = None
        # CODEPATH: without a memory this is block sliding-window attention, the baseline
        if config.feedback_length:
            shape = (config.feedback_length, config.hidden_size)
            # CODEPATH: the paper compares learned vectors for the first layer with such for every layer
            if config.feedback_init == "prefix":
                shape = (config.num_hidden_layers, *shape)
            # a prompt is read from the second block on only, so no gradient reaches it where blocks stop it
            is_trained = not config.stop_gradient or config.feedback_init == "prefix"
            self.feedback_embedding = FeedbackEmbedding(shape, requires_grad=is_trained)
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

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
        initial_feedback: torch.Tensor | None = None,
        **kwargs,
    ) -> FeedbackModelOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            What earlier calls have left for this one; `past_key_values` is its older name.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            0 at padding, which counts for no block. Without a mask and a cache, positions that start anew within a
            row begin a document with a memory of its own.
        initial_feedback (`torch.FloatTensor` of shape `(num_layers, feedback_length, hidden_size)`, *optional*):
            The memory that every row starts from, in place of the learned one. One layer's, `(1, ...)`, with
            `feedback_source="top"`.

        Raises:
            ValueError: the mask is not one of padding, the cache is not of this model, or a memory is given for rows
                that have one.
        """
        check_keywords(self, kwargs)
        config = self.config
        backbone = Backbone(self.backbone)
        inputs_embeds = backbone.embed_inputs(input_ids, inputs_embeds)
        batch_size, length = inputs_embeds.shape[:2]
        rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=cache is not None)
        # positions that were shifted at random for this step cannot be continued: no cache is made then
        is_shifted = cache is None and self.training and config.random_position_offset > 0
        if cache is None and use_cache and not is_shifted and len(rows.lengths) == batch_size:
            cache = DynamicCache(config=config)
            rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=True)
        embedding = None if self.feedback_embedding is None else self.feedback_embedding(inputs_embeds)
        state = start_state(config, len(rows.lengths), embedding, initial_feedback, cache)
        self.warn_of_missing_state_passing()

        if position_ids is None:
            position_ids = backbone.next_positions(inputs_embeds, cache, attention_mask)
        position_ids = self.shift_positions(position_ids.expand(batch_size, -1), state, is_shifted)
        kwargs |= backbone.layer_arguments(inputs_embeds)
        per_token = {"states": backbone.enter(inputs_embeds, position_ids), "positions": position_ids}
        if backbone.spec.layers_take_token_ids:
            per_token["token_ids"] = backbone.check_token_ids(input_ids)
        per_token = {name: rows.take(tensor) for name, tensor in per_token.items()}
        # put together from the blocks here; `output_attentions` gives those of the layer calls, block by block
        output_hidden_states = kwargs.pop("output_hidden_states", config.output_hidden_states)
        all_layers = wants_hidden_states(output_hidden_states)

        rounds, outputs = [], []
        for round_ in plan_rounds(rows.lengths, state.num_tokens, config.block_size, cache is not None):
            state.shrink(len(round_.counts))
            tensors = {name: round_.take(tensor) for name, tensor in per_token.items()}
            rounds.append(round_)
            tensors |= kwargs
            outputs.append(self.run_round(backbone, round_, state, embedding, all_layers, **tensors))
        layer_states = [
            gather_outputs(rounds, list(states), rows, inputs_embeds.shape) for states in zip(*outputs, strict=True)
        ]
        last_hidden_state = backbone.norm(layer_states[-1])
        if self.training and embedding is not None and not state.was_read:
            # distributed training waits for a gradient of every parameter, also where all rows are short
            last_hidden_state = last_hidden_state + 0.0 * embedding.sum()
        if cache is not None:
            state.store(cache, rows, length)
        return FeedbackModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            **named_cache(cache),
            hidden_states=cast(
                Any, select_hidden_states((*layer_states[:-1], last_hidden_state), output_hidden_states)
            ),
            feedback=state.final_feedback(rows.order) if cache is None else None,
        )

    def shift_positions(self, position_ids: torch.Tensor, state: FeedbackState, at_random: bool) -> torch.Tensor:
        """Positions `[B, T]` after what a loaded memory has seen, and half of the time by a random offset as well."""
        if any(state.num_loaded):
            position_ids = position_ids + torch.tensor(state.num_loaded, device=position_ids.device)[:, None]
        if at_random and torch.rand(()) < 0.5:
            offset = torch.randint(self.config.random_position_offset + 1, ())
            position_ids = position_ids + offset.to(position_ids.device)
        return position_ids

    def warn_of_missing_state_passing(self) -> None:
        """`random_state_passing` takes a callback: say so where a model is trained without."""
        if self.training and self.config.random_state_passing and not self.has_state_passing:
            logger.warning_once(
                f"`random_state_passing` is {self.config.random_state_passing}, but no training step gets the memory "
                "of the one before: give the Trainer `callbacks=[hf_loop.RandomStatePassing()]`."
            )

    def run_round(
        self,
        backbone: Backbone,
        round_: Round,
        state: FeedbackState,
        embedding: torch.Tensor | None,
        all_layers: bool,
        states: torch.Tensor,
        positions: torch.Tensor,
        **kwargs,
    ) -> list[torch.Tensor]:
        """Run the tokens `[R, n, D]` of one round through all layers and let `state` advance.

        Returns:
            `list[torch.Tensor]` of shape `[R, n, D]`: the tokens' states after the last layer; with `all_layers` also
            those before, first of all the input.
        """
        config = self.config
        capacity = state.capacity(config.feedback_length)
        plan = plan_block(config, round_, capacity, state.has_feedback, state.keys_are_stale, states.device)
        row_positions = self.row_positions(round_, plan, positions)
        masks = block_masks(config, backbone, round_, plan, states.dtype)
        inputs = LayerInputs(row_positions, backbone.rotate(states, row_positions), masks, None, True, kwargs)
        memories = state.memories
        # CODEPATH: an ablation of the paper, which advises against it
        if config.stop_gradient:
            memories = [memory.map(torch.Tensor.detach) for memory in memories]
        outputs, memories = self.run_step(
            self.run_layers, backbone, states, memories, embedding, plan, inputs, all_layers
        )
        state.advance(memories, round_, plan)
        return outputs

    def row_positions(self, round_: Round, plan: BlockPlan, positions: torch.Tensor) -> torch.Tensor:
        """Positions `[R, lead + n + tail]`: a memory is directly before the block that reads it, where the last
        tokens of the block that it was made of are; recurrent memory tokens are also written directly after it."""
        if not plan.num_lead and not plan.num_tail:
            return positions
        block_size, device = self.config.block_size, positions.device
        filled = torch.tensor([seen % block_size for seen in round_.seen], device=device)[:, None]
        start = positions[:, :1] - filled
        memory = torch.arange(plan.feedback_length, device=device)
        lead = (start - plan.feedback_length + memory)[:, : plan.num_lead]
        tail = (start + block_size + memory)[:, : plan.num_tail]
        return torch.cat([lead, positions, tail], dim=1)

    def run_layers(
        self,
        backbone: Backbone,
        tokens: torch.Tensor,
        memories: list[LayerMemory],
        embedding: torch.Tensor | None,
        plan: BlockPlan,
        inputs: LayerInputs,
        all_layers: bool,
    ) -> tuple[list[torch.Tensor], list[LayerMemory]]:
        """The layers over one round: tokens `[R, n, D]` and memories in, both as they are afterwards out."""
        config, is_from_layer = self.config, self.config.feedback_source == "layer"
        # what enters the first layer: the last layer's output for the block before, or the learned vectors
        entry: Any = memories[0].feedback
        # CODEPATH: a prompt enters the first layer in the first block of a row, whatever the other rows have by then
        if is_from_layer and plan.num_lead and config.feedback_init == "prompt":
            entry = cast(torch.Tensor, embedding).expand(len(tokens), -1, -1)
        lead: Any = entry if plan.num_lead else tokens[:, :0]
        tail: Any = entry if plan.num_tail else tokens[:, :0]
        outputs, new_memories = [tokens] if all_layers else [], []
        for index, memory in enumerate(memories):
            if is_from_layer and plan.num_lead:
                lead = lead_rows(lead, memory.feedback, plan)
            rows, layer = torch.cat([lead, tokens, tail], dim=1), backbone.layers[index]
            # CODEPATH: the first memory is nothing but what it attends to, as in the paper
            if config.zero_first_residual and is_from_layer and plan.num_lead and plan.any_first:
                updates: LayerUpdates = {backbone.spec.layer_entry: LeadingRows(lead)}
                layer = updated_view(layer, updates)
                rows = torch.cat([lead.masked_fill(plan.is_first, 0), tokens, tail], dim=1)
            view = BlockView(memory, plan)
            rows = backbone.run_layer(index, index, rows, inputs, layer, view)
            lead, tokens, tail = rows.split(plan.row_counts, dim=1)
            feedback = memory.feedback
            if is_from_layer and plan.num_lead and plan.any_completes:
                feedback = lead if feedback is None else torch.where(plan.completes, lead, feedback)
            new_memories.append(LayerMemory(view.keys, view.values, feedback))
            if all_layers or index == len(memories) - 1:
                outputs.append(tokens)
        if plan.num_tail:
            feedback = torch.where(plan.completes, backbone.norm(tail), entry)
            new_memories[0] = new_memories[0]._replace(feedback=feedback)
        return outputs, new_memories


def lead_rows(travelling: torch.Tensor, feedback: torch.Tensor | None, plan: BlockPlan) -> torch.Tensor:
    """The rows of memory `[R, f, D]` that a layer is given: its own memory, or in a row's first block what comes from
    the layer below."""
    if feedback is None:
        return travelling
    return torch.where(plan.is_first, travelling, feedback) if plan.any_first else feedback


# trf-ignore: TRF057 as above
class FeedbackForCausalLM(FeedbackPreTrainedModel, MemoryGenerationMixin):
    """The feedback model with the backbone's language-model head.

    Args:
        config (`FeedbackConfig`): the backbone and the blocks.

    Example:

    ```python
    >>> import hf_loop

    >>> model = hf_loop.retrofit("HuggingFaceTB/SmolLM2-135M", "feedback", block_size=512)
    >>> outputs = model.generate(**inputs, return_dict_in_generate=True)
    >>> model.save_memory(outputs.cache, "memory.safetensors")
    ```
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: FeedbackConfig):
        super().__init__(config)
        self.model = FeedbackModel(config)
        self.adopt(self.model.backbone)
        spec = backbone_spec(config.backbone_config)
        self._tied_weights_keys = {"lm_head.weight": f"model.backbone.{spec.embed_tokens}.weight"}
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=spec.head_bias)
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
        loss_weights: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        initial_feedback: torch.Tensor | None = None,
        **kwargs,
    ) -> FeedbackCausalLMOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            What earlier calls have left for this one; `past_key_values` is its older name.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            0 at padding, which counts for no block. Without a mask and a cache, positions that start anew within a
            row begin a document with a memory of its own.
        loss_weights (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The weight of every label in the loss, 1 if not given.
        initial_feedback (`torch.FloatTensor` of shape `(num_layers, feedback_length, hidden_size)`, *optional*):
            The memory that every row starts from, in place of the learned one. One layer's, `(1, ...)`, with
            `feedback_source="top"`.

        Raises:
            ValueError: the mask is not one of padding, the cache is not of this model, or a memory is given for rows
                that have one.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            initial_feedback=initial_feedback,
            **kwargs,
        )
        hidden_states = keep_logits(outputs.last_hidden_state, logits_to_keep)
        logits = compute_logits(self.model.backbone.config, self.lm_head, hidden_states)

        loss = None
        if labels is not None:
            vocab_size = self.config.vocab_size
            if loss_weights is None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
            else:
                loss = weighted_causal_lm_loss(logits, labels, loss_weights, vocab_size=vocab_size, **kwargs)
        return FeedbackCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **named_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            feedback=outputs.feedback,
        )


# trf-ignore: TRF057 as above
class FeedbackForSequenceClassification(SequenceClassifier, FeedbackPreTrainedModel):
    """The feedback model with one label per sequence, read at the last token that is not padding.

    Args:
        config (`FeedbackConfig`): the backbone and the schedule; `num_labels` sets the classes.
    """

    model_class = FeedbackModel


# trf-ignore: TRF057 as above
class FeedbackForTokenClassification(TokenClassifier, FeedbackPreTrainedModel):
    """The feedback model with one label per token.

    Args:
        config (`FeedbackConfig`): the backbone and the schedule; `num_labels` sets the classes.
    """

    model_class = FeedbackModel


FAMILY = Family(
    name="feedback",
    config=FeedbackConfig,
    classes=text_classes(
        FeedbackModel, FeedbackForCausalLM, FeedbackForSequenceClassification, FeedbackForTokenClassification
    ),
    describe=lambda config: (
        f"blocks of {config.block_size} tokens, "
        f"{'all' if config.num_memory_segments is None else config.num_memory_segments} segments, "
        f"a memory of {config.feedback_length}"
    ),
)

__all__ = [
    "FAMILY",
    "FeedbackForCausalLM",
    "FeedbackForSequenceClassification",
    "FeedbackForTokenClassification",
    "FeedbackModel",
    "FeedbackPreTrainedModel",
]
