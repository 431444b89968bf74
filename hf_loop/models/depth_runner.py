# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Runs the parts of a looped model on sequences that stand at different loops and positions.

Prompts are read by the model's own forward pass. After that every part (prelude, one loop of the core, coda and head)
is run on any rows, which share nothing but the weights.
"""

from typing import Any

import torch

from .backbone import Backbone
from .depth_blocks import BlockRows, DepthBlock
from .depth_checks import check_backbone
from .exits import Exits, LoopStep, Memory
from .layer_calls import LayerInputs
from .schedules import Call, RunCall, run_calls


class DepthRunner:
    """The parts of a model, on chosen rows of a block of caches.

    Args:
        model (`LoopedForCausalLM`): the model.
        exits (`Exits`, *optional*): when tokens exit; by default after `num_loops`.
        num_loops (`int`): loops after which every token exits.
        num_rows (`int`): rows of the block.
        max_length (`int`): most tokens of a sequence.

    Raises:
        ValueError: if the model has parts whose rows cannot stand at different loops or positions.
    """

    def __init__(self, model: Any, exits: Exits | None, num_loops: int, num_rows: int, max_length: int):
        self.model, self.exits, self.num_loops = model, exits, num_loops
        self.backbone = Backbone(model.model)
        check_backbone(self.backbone, model.model)
        self.schedule: Any = self.backbone.depth
        self.block = DepthBlock(self.schedule, num_rows, num_loops, max_length)
        # of every row: its next position, the loops of its token, and (made with the first row) its states
        self.positions, self.loops = [0] * num_rows, [0] * num_rows
        self.state: Any = None
        self.encoded: Any = None
        self.memory: Memory = None

    def read_prompts(self, rows: list[int], prompts: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
        """Read prompts `[T]` into rows, and return their last logits `[B, V]` and the loops of their last tokens."""
        lengths = [len(prompt) for prompt in prompts]
        ids, mask = (prompts[0].new_zeros(len(rows), max(lengths)) for _ in range(2))
        for number, prompt in enumerate(prompts):
            ids[number, -len(prompt) :], mask[number, -len(prompt) :] = prompt, 1
        options: dict[str, Any] = {}
        if min(lengths) < max(lengths):
            options |= {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}
        # CODEPATH: without a rule the forward pass has no exits to report
        if self.exits is not None:
            options |= {"exit_criterion": self.exits.rule, "min_loops": self.exits.min_loops}
        options |= {"noise_per_example": False, "use_cache": True, "logits_to_keep": 1}
        outputs = self.model(ids, num_loops=self.num_loops, **options)
        for number, row in enumerate(rows):
            self.block.write_prompt(row, outputs.cache, number, lengths[number])
            self.positions[row] = lengths[number]
        if outputs.exit_loops is None:
            return outputs.logits[:, -1], [self.num_loops] * len(rows)
        return outputs.logits[:, -1], outputs.exit_loops[:, -1].tolist()

    def run_prelude(self, rows: list[int], tokens: torch.Tensor) -> None:
        """Read the next tokens `[B]` of rows, whose states are then those before the first loop."""
        for row in rows:
            self.loops[row] = 0
        batch = self.select(rows)
        position_ids = batch.positions[:, None]
        embeddings = self.backbone.enter(self.backbone.embed(tokens[:, None]), position_ids)
        encoded = run_calls(embeddings, self.caller(batch, embeddings), self.schedule.prelude_calls())
        state = self.model.model.make_initial_state(encoded, position_ids)
        if self.state is None:
            self.state, self.encoded = (encoded.new_zeros(self.block.num_rows, *encoded.shape[1:]) for _ in range(2))
        self.state[batch.rows], self.encoded[batch.rows] = state, encoded

    def run_loop(self, rows: list[int]) -> list[bool]:
        """Run one loop of the core on rows at any loops, and return which of their tokens exit."""
        batch = self.select(rows)
        previous = self.state.index_select(0, batch.rows)
        encoded = self.encoded.index_select(0, batch.rows)
        # the calls of loop 0 stand for those of all loops: the block finds the keys and values of each row's own
        state = self.schedule.run_loop(0, previous, encoded, self.caller(batch, previous), self.num_loops)
        self.state[batch.rows] = state
        for row in rows:
            self.loops[row] += 1
        is_last = [self.loops[row] == self.num_loops for row in rows]
        if self.exits is None or all(is_last):
            return is_last
        done = self.ask_rule(batch._replace(loops=batch.loops + 1), state, previous).tolist()
        return [at_end or exits for at_end, exits in zip(is_last, done)]

    def ask_rule(self, batch: BlockRows, state: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """Return which tokens `[B]` are done after a loop."""
        exits: Any = self.exits
        gate = self.model.model.exit_gate_probability
        step = LoopStep(batch.loops, state, previous, lambda: self.run_coda(batch, state), lambda: gate(state))
        memory = None if self.memory is None else self.memory.index_select(0, batch.rows)
        done, memory = exits.rule(step, memory)
        if memory is not None:
            if self.memory is None:
                self.memory = memory.new_zeros(self.block.num_rows, *memory.shape[1:])
            self.memory[batch.rows] = memory
        return done[:, 0] & (batch.loops >= exits.min_loops)

    def finish_token(self, rows: list[int]) -> torch.Tensor:
        """Compute the logits `[B, V]` after the tokens of rows that have exited, and go to the next position."""
        batch = self.select(rows)
        self.block.fill_later_loops(batch)
        logits = self.run_coda(batch, self.state.index_select(0, batch.rows))
        for row in rows:
            self.positions[row] += 1
        return logits[:, 0]

    def run_coda(self, batch: BlockRows, state: torch.Tensor) -> torch.Tensor:
        """Compute the logits `[B, 1, V]` of states `[B, 1, D]`. A later run for the token replaces its keys."""
        hidden_states = self.schedule.run_coda(state, self.caller(batch, state))
        return self.model.read_logits(self.schedule.finish(hidden_states))

    def select(self, rows: list[int]) -> BlockRows:
        """Return the rows, positions and loops of a call as tensors."""
        positions = [self.positions[row] for row in rows]
        device = self.model.lm_head.weight.device
        values = torch.tensor([rows, positions, [self.loops[row] for row in rows]], device=device)
        return BlockRows(*values.unbind(0), max(positions) + 1)

    def caller(self, batch: BlockRows, hidden_states: torch.Tensor) -> RunCall:
        """Return the function that runs layer calls on rows."""
        position_ids = batch.positions[:, None]
        is_later = torch.arange(batch.length, device=position_ids.device) > position_ids
        # numbers to add, which both attention functions take; they would convert flags in every call
        masks = hidden_states.new_zeros(is_later.shape).masked_fill_(is_later, torch.finfo(hidden_states.dtype).min)
        rotary = self.backbone.rotate(hidden_states, position_ids)
        inputs = LayerInputs(position_ids, rotary, masks[:, None, None], None, True, {})

        def run_call(call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
            view = self.block.view(call, batch)
            return self.backbone.run_call(call, hidden_states, inputs, layer_cache=view)

        return run_call


__all__ = ["DepthRunner"]
