# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Passes over blocks of tokens with a feedback memory: what enters and leaves each layer call."""

from typing import Any, cast

import torch

from .backbone import Backbone, LayerInputs
from .configuration_feedback import FeedbackConfig
from .feedback_memory import BlockCache, LayerMemory
from .feedback_plan import BlockPlan
from .layer_views import LayerUpdates, LeadingStates, updated_view
from .schedules import Call


class BlockRun:
    """Runs the passes over blocks with their memories. Made for one forward pass; it owns no module.

    Args:
        backbone (`Backbone`): runs the layers.
        config (`FeedbackConfig`): configuration of the model.
        embedding (`torch.Tensor` of shape `[f, D]` or `[layers, f, D]`, *optional*): the learned vectors.
        depth (`dict[str, Any]`): arguments of the depth schedule.
        all_layers (`bool`): whether to return the states after every layer call.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: FeedbackConfig,
        embedding: torch.Tensor | None,
        depth: dict[str, Any],
        all_layers: bool,
    ):
        self.backbone = backbone
        self.config = config
        self.embedding = embedding
        self.depth = depth
        self.all_layers = all_layers

    def run(
        self, tokens: torch.Tensor, memories: list[LayerMemory], plan: BlockPlan, inputs: LayerInputs
    ) -> tuple[list[torch.Tensor], list[LayerMemory]]:
        """Run one pass over a chunk.

        Args:
            tokens (`torch.Tensor` of shape `[R, n, D]`): the first layer's input.
            memories (`list[LayerMemory]`): the memory of every slot.
            plan (`BlockPlan`): the plan of the chunk.
            inputs (`LayerInputs`): positions and masks.

        Returns:
            `tuple[list[torch.Tensor], list[LayerMemory]]`: the last layer's output, after those of all earlier calls
            and the input if `all_layers`; and the new memories.
        """
        depth = self.backbone.depth
        # recurrent memory tokens ("top") enter the first layer only, a layer's own memory at each of its calls
        carries_memory = self.config.feedback_source == "layer" and plan.num_lead > 0
        # decided for the whole pass: checkpointing runs loops without gradient again too, when a later block may have
        # overwritten what they read
        in_place = not torch.is_grad_enabled()
        entry = self._entry(tokens, memories, plan)
        outputs, new_memories = [tokens] if self.all_layers else [], list(memories)
        # the last call's output and its parts: split once, it needs half the work of two slices in the backward pass
        last: tuple[torch.Tensor | None, Any] = (None, None)

        def run_call(call: Call, queries: torch.Tensor) -> torch.Tensor:
            nonlocal last
            memory, layer = memories[call.slot], self.backbone.layer_of(call)
            if carries_memory:
                parts = last[1] if last[0] is queries else queries.split(plan.query_counts[:2], dim=1)
                queries, layer = self._insert_memory(*parts, memory, layer, plan)
            block_cache = BlockCache(memory, plan, in_place)
            queries = self.backbone.run_call(call, queries, inputs, layer, block_cache)
            feedback = memory.feedback
            if carries_memory:
                lead, rest = queries.split(plan.query_counts[:2], dim=1)
                last = queries, (lead, rest)
                if plan.any_completes:
                    feedback = lead if feedback is None else torch.where(plan.completes, lead, feedback)
            new_memories[call.slot] = LayerMemory(block_cache.keys, block_cache.values, feedback)
            if self.all_layers:
                outputs.append(queries.split(plan.query_counts, dim=1)[1])
            return queries

        lead: Any = entry if plan.num_lead else tokens[:, :0]
        tail: Any = entry if plan.num_tail else tokens[:, :0]
        queries = depth.run(torch.cat([lead, tokens, tail], dim=1), run_call, **self.depth)
        _, tokens, tail = queries.split(plan.query_counts, dim=1)
        if plan.num_tail:
            feedback = torch.where(plan.completes, depth.finish(tail), cast(torch.Tensor, entry))
            new_memories[0] = new_memories[0]._replace(feedback=feedback)
        return [*outputs[:-1], tokens], new_memories

    def _entry(self, tokens: torch.Tensor, memories: list[LayerMemory], plan: BlockPlan) -> torch.Tensor | None:
        """Return the memory `[R, f, D]` that enters the first layer: the learned vectors, or the last layer's output
        for the previous block."""
        # CODEPATH: a prompt enters the first layer in a sequence's first block, whatever block the others are in
        if self.config.feedback_source == "layer" and plan.num_lead and self.config.feedback_init == "prompt":
            return cast(torch.Tensor, self.embedding).expand(len(tokens), -1, -1)
        return memories[0].feedback

    def _insert_memory(
        self, lead: torch.Tensor, rest: torch.Tensor, memory: LayerMemory, layer: Any, plan: BlockPlan
    ) -> tuple[torch.Tensor, Any]:
        """Put the layer's own memory first among its queries `[R, f + n, D]`; return them and the layer to call."""
        lead = lead_queries(lead, memory.feedback, plan)
        # CODEPATH: in the paper the first memory has no residual: it is only what it attends to
        if self.config.zero_first_residual and plan.any_first:
            updates: LayerUpdates = {self.backbone.spec.layer_entry: LeadingStates(lead)}
            layer, lead = updated_view(layer, updates), lead.masked_fill(plan.is_first, 0)
        return torch.cat([lead, rest], dim=1), layer


def lead_queries(travelling: torch.Tensor, feedback: torch.Tensor | None, plan: BlockPlan) -> torch.Tensor:
    """Return the memory queries `[R, f, D]` of a layer: its own memory, or in a sequence's first block the output of
    the layer below."""
    if feedback is None:
        return travelling
    return torch.where(plan.is_first, travelling, feedback) if plan.any_first else feedback


__all__ = ["BlockRun"]
