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

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import logging

from .backbone import Backbone, LayerInputs
from .configuration_feedback import FeedbackConfig
from .cost import (
    PARAMETERS,
    Measure,
    Span,
    Work,
    attention_work,
    given_depth,
    norm_work,
    num_positions,
    pass_work,
)
from .family import Family, text_classes
from .family_checks import check_blocks
from .feedback_blocks import BlockRun
from .feedback_masks import block_masks
from .feedback_plan import BlockPlan, chunk_sizes, plan_block
from .feedback_state import FeedbackState, start_state
from .memory_files import MemoryMixin
from .modeling_classification import make_classifiers
from .modeling_recurrent import ModelInputs, RecurrentForCausalLM
from .modeling_time import TimeModel, TimePreTrainedModel, named_hidden_states, scatter_states
from .outputs import FeedbackCausalLMOutputWithPast, FeedbackModelOutputWithPast, wants_hidden_states
from .position_limit import check_table
from .state_noise import example_seeds, positions_in_example, random_integers
from .token_sequences import Chunk, plan_chunks
from .transformers_seams import named_cache


logger = logging.get_logger(__name__)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class FeedbackPreTrainedModel(TimePreTrainedModel):
    """Base class of the feedback model and its heads."""

    config_class = FeedbackConfig
    config: FeedbackConfig
    family_tags = ("transformerfam", "feedback-memory", "long-context")
    # flash attention takes no mask in which memory queries see a block in both directions; flex attention compiles a
    # kernel for every block length and fails to build some of them (torch 2.13, on a CPU)
    _supports_flash_attn = False
    _supports_flex_attn = False
    steps = "blocks"
    no_loops = "a feedback model has no loops"
    no_prompt_learning = (
        "a prompt would be in the first block, of which later blocks see only what segments and memory keep"
    )

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FeedbackEmbedding):
            # transformers' default, for decoders whose configuration has another name for this field
            init.normal_(module.weight, std=getattr(self.config, "initializer_range", 0.02))


class FeedbackEmbedding(nn.Module):
    """The learned vectors that a memory starts from; a module, so that PEFT's `modules_to_save` finds it.

    Args:
        shape (`tuple[int, ...]`): `(f, D)`, or `(layers, f, D)`.
        requires_grad (`bool`): whether to train them.
    """

    def __init__(self, shape: tuple[int, ...], requires_grad: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape), requires_grad=requires_grad)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the vectors in the dtype of `hidden_states`."""
        return self.weight.to(hidden_states.dtype)


# trf-ignore: TRF057 as above
class FeedbackModel(FeedbackPreTrainedModel, TimeModel):
    """A backbone run on a schedule of blocks with a feedback memory, without a head.

    Args:
        config (`FeedbackConfig`): the backbone and the schedule.

    Raises:
        ValueError: if the backbone cannot be run in blocks, or its layers cannot take memory queries.
    """

    # set by the callback that passes the memory to the next training step, see `random_state_passing`
    has_state_passing = False

    def __init__(self, config: FeedbackConfig):
        super().__init__(config)
        check_blocks(config, Backbone(self.backbone), FeedbackModel)
        self.feedback_embedding: FeedbackEmbedding | None = None
        # CODEPATH: without a memory this is block sliding-window attention, the baseline
        if config.feedback_length:
            shape = (config.feedback_length, config.hidden_size)
            # CODEPATH: the paper compares learned vectors for the first layer with learned vectors for every layer
            if config.feedback_init == "prefix":
                shape = (config.num_hidden_layers, *shape)
            # with `stop_gradient` the learned prompt gets no gradient (only later blocks read it), so it is frozen
            is_trained = not config.stop_gradient or config.feedback_init == "prefix"
            self.feedback_embedding = FeedbackEmbedding(shape, requires_grad=is_trained)
        self.post_init()

    def run(
        self,
        inputs: ModelInputs,
        depth: dict[str, Any],
        initial_feedback: torch.Tensor | None = None,
        **kwargs,
    ) -> FeedbackModelOutputWithPast:
        """The forward pass behind its checks.

        Args:
            inputs (`ModelInputs`): the arguments of `forward` that every family has. Padding is part of no block.
                Without a mask and a cache, a document with a memory of its own begins wherever `position_ids` do not
                increase by one.
            depth (`dict`): arguments of the depth schedule, checked.
            initial_feedback (`torch.FloatTensor` of shape `(num_calls, feedback_length, hidden_size)`, *optional*):
                the memory that every sequence starts from, in place of the learned one: one for every layer call, or
                a single one with `feedback_source="top"`.

        Raises:
            ValueError: if the mask is not a padding mask, the cache was not made for this model, or `initial_feedback`
                is given with a cache that holds tokens.
        """
        input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache = inputs
        config = self.sized_config(depth)
        backbone = Backbone(self)
        inputs_embeds = backbone.embed_inputs(input_ids, inputs_embeds)
        batch_size, length = inputs_embeds.shape[:2]
        # no cache is made of randomly shifted positions: later calls could not continue them
        is_shifted = cache is None and self.training and config.random_position_offset > 0
        sequences, cache = self.arrange(inputs, inputs_embeds, depth, makes_cache=not is_shifted)
        embedding = None if self.feedback_embedding is None else self.feedback_embedding(inputs_embeds)
        state = start_state(config, len(sequences.lengths), embedding, initial_feedback, cache)
        self.warn_of_missing_state_passing()

        if position_ids is None:
            position_ids = backbone.next_positions(inputs_embeds, cache, attention_mask)
        position_ids = self.shift_positions(position_ids.expand(batch_size, -1), state)
        if is_shifted:
            position_ids = position_ids + self.random_offsets(inputs, inputs_embeds, position_ids)
        if backbone.spec.has_position_table:
            check_table(backbone, int(position_ids.max()) + 1)
        tokens = sequences.gather(backbone.enter(inputs_embeds, position_ids))
        positions = sequences.gather(position_ids)
        token_ids = None
        if backbone.spec.layers_take_token_ids:
            token_ids = sequences.gather(backbone.check_token_ids(input_ids))
        # collected here from the chunks; `output_attentions` returns those of every layer call, chunk by chunk
        output_hidden_states = kwargs.pop("output_hidden_states", config.output_hidden_states)
        keywords = kwargs | backbone.layer_arguments(inputs_embeds)
        block_run = BlockRun(backbone, config, embedding, depth, wants_hidden_states(output_hidden_states))

        chunks, outputs = [], []
        for chunk in plan_chunks(sequences.lengths, state.num_tokens, config.block_size, cache is not None):
            state.shrink(len(chunk.counts))
            if token_ids is not None:
                keywords["token_ids"] = chunk.gather(token_ids)
            chunks.append(chunk)
            chunk_tokens, chunk_positions = chunk.gather(tokens), chunk.gather(positions)
            outputs.append(self.run_chunk(block_run, chunk, state, chunk_tokens, chunk_positions, keywords))
        states = scatter_states(chunks, outputs, sequences, inputs_embeds.shape)
        last_hidden_state = backbone.depth.finish(states[-1])
        if self.training and embedding is not None and not state.was_read:
            # distributed training needs a gradient of every parameter, even if all sequences are shorter than a block
            last_hidden_state = last_hidden_state + 0.0 * embedding.sum()
        if cache is not None:
            state.store(cache, sequences, length)
        return FeedbackModelOutputWithPast(
            **named_hidden_states(states, last_hidden_state, output_hidden_states),
            **named_cache(cache),
            feedback=state.final_feedback(sequences.order) if cache is None else None,
        )

    def shift_positions(self, position_ids: torch.Tensor, state: FeedbackState) -> torch.Tensor:
        """Shift positions `[B, T]` by the tokens of a loaded memory."""
        if any(state.num_loaded):
            position_ids = position_ids + torch.tensor(state.num_loaded, device=position_ids.device)[:, None]
        return position_ids

    def random_offsets(
        self, inputs: ModelInputs, inputs_embeds: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Draw an offset of the positions of every text, `[B, T]` or `[B, 1]`, 0 half of the time.

        It follows from the text, so that neither padding nor other texts of the batch change it.
        """
        tokens, mask = inputs.input_ids, inputs.attention_mask
        if tokens is None:
            tokens = inputs_embeds.detach()[..., 0].float().view(torch.int32).long()
        if mask is not None:
            mask = mask[:, -tokens.shape[1] :]
            position_ids = positions_in_example(mask, tokens.shape[1])
        seeds = example_seeds(tokens, position_ids, mask)
        return random_integers(seeds, self.config.random_position_offset)

    def warn_of_missing_state_passing(self) -> None:
        """Warn if a model with `random_state_passing` is trained without the callback for it."""
        if self.training and self.config.random_state_passing and not self.has_state_passing:
            logger.warning_once(
                f"`random_state_passing` is {self.config.random_state_passing}, but no training step gets the memory "
                "of the one before: give the Trainer `callbacks=[hf_loop.RandomStatePassing()]`."
            )

    def run_chunk(
        self,
        block_run: BlockRun,
        chunk: Chunk,
        state: FeedbackState,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        keywords: dict[str, Any],
    ) -> list[torch.Tensor]:
        """Run a chunk of tokens `[R, n, D]` at `positions` `[R, n]` through all layers and update `state`.

        Returns:
            `list[torch.Tensor]`: the last layer's output `[R, n, D]`, after the input and those of all earlier calls
            if the run has `all_layers`.
        """
        config, backbone = self.config, block_run.backbone
        capacity = state.capacity(config.feedback_length)
        plan = plan_block(config, chunk, capacity, state.has_feedback, state.keys_are_stale, tokens.device)
        query_positions = self.query_positions(chunk, plan, positions)
        masks = block_masks(config, backbone, chunk, plan, tokens.dtype)
        rotary = backbone.rotate(tokens, query_positions)
        # a copy, because checkpointing runs the chunk again with its own keywords
        inputs = LayerInputs(query_positions, rotary, masks, None, True, dict(keywords))
        memories = state.memories
        # CODEPATH: an ablation of the paper, which advises against it
        if config.stop_gradient:
            memories = [memory.map(torch.Tensor.detach) for memory in memories]
        outputs, memories = self.run_step(block_run.run, tokens, memories, plan, inputs)
        state.advance(memories, chunk, plan)
        return outputs

    def query_positions(self, chunk: Chunk, plan: BlockPlan, positions: torch.Tensor) -> torch.Tensor:
        """Return the positions `[R, lead + n + tail]` of all queries: the lead is directly before its block, at the
        positions of the last tokens that it compressed, and the tail directly after."""
        if not plan.num_lead and not plan.num_tail:
            return positions
        block_size, device = self.config.block_size, positions.device
        filled = torch.tensor([seen % block_size for seen in chunk.seen], device=device)[:, None]
        start = positions[:, :1] - filled
        memory = torch.arange(plan.feedback_length, device=device)
        lead = (start - plan.feedback_length + memory)[:, : plan.num_lead]
        tail = (start + block_size + memory)[:, : plan.num_tail]
        return torch.cat([lead, positions, tail], dim=1)

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        lengths = self.sequences_of(inputs).lengths
        # padding is normed, too
        work = norm_work(self, measure) * (num_positions(inputs) - sum(lengths))
        for length, number in Counter(lengths).items():
            work += self.count_steps([length], inputs, measure) * number
        return work

    def count_steps(self, steps: Sequence[int], inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        config, depth = self.config, given_depth(self, inputs)
        has_memory = config.feedback_source == "top" or config.feedback_init == "prefix"
        chunks = list(chunk_sizes(config, steps, has_memory or inputs.get("initial_feedback") is not None))
        spans = [Span(chunk.num_lead + chunk.num_tokens + chunk.num_tail, chunk.num_keys) for chunk in chunks]
        normed = norm_work(self, measure) * sum(chunk.num_tokens + chunk.num_tail for chunk in chunks)
        rows = pass_work(self, depth, measure=measure) * sum(span.num_queries for span in spans)
        return rows + normed + attention_work(self, depth, spans, measure)


# trf-ignore: TRF057 as above
class FeedbackForCausalLM(FeedbackPreTrainedModel, RecurrentForCausalLM, MemoryMixin):
    """The feedback model with the backbone's language-model head.

    Args:
        config (`FeedbackConfig`): the backbone and the schedule.

    Example:

    ```python
    >>> import hf_loop

    >>> model = hf_loop.retrofit("HuggingFaceTB/SmolLM2-135M", "feedback", block_size=512)
    >>> outputs = model.generate(**inputs, return_dict_in_generate=True)
    >>> model.save_memory(outputs.cache, "memory.safetensors")
    ```
    """

    model_class = FeedbackModel
    output_class = FeedbackCausalLMOutputWithPast


_classifiers = make_classifiers(FeedbackModel, FeedbackPreTrainedModel)
FeedbackForSequenceClassification, FeedbackForTokenClassification = _classifiers


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
