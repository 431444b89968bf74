# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Continuous depth batching: generation in which sequences at different loops and tokens share one batch of the core.

The tokens of a sequence exit by a rule, after one loop or after many. In `generate` a batch waits for its slowest row
at every token. Here a row that exits makes room for another in the next call, and every sequence gets what `generate`
gives for its prompt alone.

    depth_scheduler.py   which rows run next
    depth_blocks.py      their keys and values
    depth_runner.py      the parts of the model on these rows
    this file            from logits to tokens, and the loop over all of it
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .decoding_seams import logits_processors
from .depth_runner import DepthRunner
from .depth_scheduler import DepthScheduler


@dataclass
class DepthSequence:
    """What was generated for one prompt.

    Args:
        tokens (`list[int]`): the new tokens.
        exit_loops (`list[int]`): for every new token, the loops after which the token before it exited.
    """

    tokens: list[int] = field(default_factory=list)
    exit_loops: list[int] = field(default_factory=list)


class TokenChooser:
    """Turns the logits of one sequence into tokens, as `generate` does for the prompt alone.

    Args:
        model (`LoopedForCausalLM`): the model.
        generation_config (`GenerationConfig`): how to choose tokens and when to stop.
        prompt (`torch.LongTensor` of shape `[T]`): the prompt.
        seed (`int`): seed of the sequence's own random numbers.
    """

    def __init__(self, model: Any, generation_config: Any, prompt: torch.Tensor, seed: int):
        self.processors = logits_processors(model, generation_config, len(prompt), prompt.device)
        self.do_sample: bool = generation_config.do_sample
        self.generator = torch.Generator(prompt.device).manual_seed(seed)
        self.prompt = prompt
        self.max_new_tokens: int = generation_config.max_new_tokens
        ends = generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list | tuple) else [ends])

    def choose(self, logits: torch.Tensor, tokens: list[int]) -> int:
        """Return the token that follows the new tokens so far, given its logits `[V]`."""
        scores = logits[None].float()
        if self.processors:
            new = torch.tensor(tokens, dtype=self.prompt.dtype, device=self.prompt.device)
            scores = self.processors(torch.cat([self.prompt, new])[None], scores)
        if self.do_sample:
            return int(torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=self.generator))
        return int(scores.argmax(dim=-1))

    def has_ended(self, tokens: list[int]) -> bool:
        """Return whether the sequence ends with the last of its new tokens."""
        return len(tokens) == self.max_new_tokens or tokens[-1] in self.ends


class DepthBatching:
    """Generates for all prompts.

    Args:
        runner (`DepthRunner`): runs the parts of the model.
        scheduler (`DepthScheduler`): chooses the rows.
        prompts (`Sequence[torch.LongTensor]`): the prompts, each `[T]`.
        choosers (`Sequence[TokenChooser]`): turns logits into tokens, for each prompt.
    """

    def __init__(
        self,
        runner: DepthRunner,
        scheduler: DepthScheduler,
        prompts: Sequence[torch.Tensor],
        choosers: Sequence[TokenChooser],
    ):
        self.runner, self.scheduler, self.prompts, self.choosers = runner, scheduler, prompts, choosers
        self.sequences = [DepthSequence() for _ in prompts]
        # row -> its request; row -> logits of a prompt that has just been read
        self.requests: dict[int, int] = {}
        self.prompt_logits: dict[int, torch.Tensor] = {}

    def run(self) -> list[DepthSequence]:
        """Run all prompts to their end."""
        while True:
            self.read_prompts(self.scheduler.admit())
            step = self.scheduler.next_step()
            if step is None:
                return self.sequences
            if step.is_loop:
                self.scheduler.after_loop(step.rows, self.runner.run_loop(step.rows))
            else:
                self.scheduler.after_token(step.rows, self.next_token(step.rows))

    def read_prompts(self, admitted: list[tuple[int, int]]) -> None:
        """Read the prompts of pairs of request and row, in batches of similar length."""
        groups: list[list[tuple[int, int]]] = []
        for request, row in sorted(admitted, key=lambda pair: len(self.prompts[pair[0]])):
            shortest = len(self.prompts[groups[-1][0][0]]) if groups else 0
            if len(self.prompts[request]) > 2 * shortest or len(groups[-1]) == self.scheduler.max_batch_rows:
                groups.append([])
            groups[-1].append((request, row))
        for group in groups:
            rows = [row for _, row in group]
            logits, exit_loops = self.runner.read_prompts(rows, [self.prompts[request] for request, _ in group])
            for (request, row), row_logits, loops in zip(group, logits, exit_loops):
                self.requests[row], self.prompt_logits[row] = request, row_logits
                self.sequences[request].exit_loops.append(loops)

    def next_token(self, rows: list[int]) -> list[bool]:
        """Choose the next token of rows and read it, and return which sequences have ended instead."""
        exited = [row for row in rows if row not in self.prompt_logits]
        for row in exited:
            self.sequences[self.requests[row]].exit_loops.append(self.runner.loops[row])
        logits = dict(zip(exited, self.runner.finish_token(exited) if exited else ()))
        ends = []
        for row in rows:
            request = self.requests[row]
            tokens, chooser = self.sequences[request].tokens, self.choosers[request]
            row_logits = self.prompt_logits.pop(row) if row in self.prompt_logits else logits[row]
            tokens.append(chooser.choose(row_logits, tokens))
            ends.append(chooser.has_ended(tokens))
        going_on = [row for row, has_ended in zip(rows, ends) if not has_ended]
        if going_on:
            last = [self.sequences[self.requests[row]].tokens[-1] for row in going_on]
            self.runner.run_prelude(going_on, torch.tensor(last, device=self.prompts[0].device))
        return ends


__all__ = ["DepthBatching", "DepthSequence", "TokenChooser"]
