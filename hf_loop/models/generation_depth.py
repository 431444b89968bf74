# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation with a looped model by continuous depth batching."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from .checks import check_count
from .depth_batching import DepthBatching, DepthSequence, TokenChooser
from .depth_checks import check_settings, prompt_tensors
from .depth_runner import DepthRunner
from .depth_scheduler import DepthScheduler
from .exits import make_exits


class DepthBatchingMixin:
    """Mixin with `generate_depth_batch`."""

    config: Any

    @torch.no_grad()
    def generate_depth_batch(
        self: Any,
        prompts: Sequence[Any],
        generation_config: GenerationConfig | None = None,
        max_batch_rows: int = 16,
        max_sequences: int | None = None,
        seed: int = 0,
        **kwargs,
    ) -> list[DepthSequence]:
        """Generate for many prompts by continuous depth batching, see `depth_batching.py`.

        Each prompt gets what `generate` gives for it alone, by greedy search or by sampling with random numbers of its
        own. Nobody waits for a row that needs more loops.

        Args:
            prompts (`Sequence`): the tokens of every prompt, as lists or tensors of shape `[T]`.
            generation_config (`GenerationConfig`, *optional*): the settings, by default the model's.
            max_batch_rows (`int`, *optional*, defaults to 16): most rows of a call.
            max_sequences (`int`, *optional*): sequences in flight, whose keys and values are in memory. The default,
                one less than two batches, lets every call have `max_batch_rows` rows.
            seed (`int`, *optional*, defaults to 0): prompt i is sampled with the random numbers of seed + i.
            kwargs: `max_new_tokens`, `num_loops`, `exit_criterion`, `exit_threshold`, `min_loops`, `do_sample` and
                others, as `generate` takes them.

        Raises:
            ValueError: if an argument is not one of these or out of range, or the model has layers that cannot run
                rows at different loops and positions.
        """
        max_batch_rows = check_count("max_batch_rows", max_batch_rows)
        max_sequences = (
            2 * max_batch_rows - 1 if max_sequences is None else check_count("max_sequences", max_sequences)
        )
        generation_config, model_kwargs = self.generation_settings(generation_config, **kwargs)
        num_loops = model_kwargs.pop("num_loops", self.config.num_loops)
        exit_names = ("exit_criterion", "exit_threshold", "min_loops")
        given = (model_kwargs.pop(name, None) for name in exit_names)
        exits = make_exits(*given, num_loops, has_head=True, has_gate=self.config.exit_gate)
        check_settings(generation_config, model_kwargs)
        prompts = prompt_tensors(prompts, self.device)
        if not prompts:
            return []
        choosers = [TokenChooser(self, generation_config, prompt, seed + i) for i, prompt in enumerate(prompts)]
        max_sequences = min(max_sequences, len(prompts))
        max_length = max(len(prompt) for prompt in prompts) + generation_config.max_new_tokens - 1
        runner = DepthRunner(self, exits, num_loops, max_sequences, max_length)
        scheduler = DepthScheduler(len(prompts), max_batch_rows, max_sequences)
        return DepthBatching(runner, scheduler, prompts, choosers).run()


__all__ = ["DepthBatchingMixin"]
