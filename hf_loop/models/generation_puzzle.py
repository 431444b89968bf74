# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Solving puzzles: running segments until a puzzle halts, and choosing among several trajectories."""

from dataclasses import dataclass
from typing import Any

import torch

from .checks import check_positive_int


@dataclass
class PuzzleSolution:
    """
    Args:
        tokens (`torch.LongTensor` of shape `[B, T]`): the most likely token of every cell.
        logits (`torch.Tensor` of shape `[B, T, V]`): logits of the cells.
        halt_logits (`torch.Tensor` of shape `[B, 1]` or `[B, 2]`, *optional*): logits of the halting head.
        segments (`torch.LongTensor` of shape `[B]`): number of segments after which each puzzle was read.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    halt_logits: torch.Tensor | None
    segments: torch.Tensor


class PuzzleSolvingMixin:
    """Mixin with `solve`, for puzzle models."""

    config: Any

    def halts(self, halt_logits: torch.Tensor | None) -> torch.Tensor | bool:
        """Return whether each puzzle halts `[B]`, by its `halt_logits`; without these none does."""
        if halt_logits is None:
            return False
        if self.config.halting == "q_learning":
            return halt_logits[:, 0] > halt_logits[:, 1]
        return halt_logits[:, 0] > 0

    @torch.no_grad()
    def solve(
        self,
        input_ids: torch.Tensor,
        puzzle_ids: torch.Tensor | None = None,
        num_segments: int | None = None,
        halt: bool = False,
        num_trajectories: int = 1,
        latent_noise: float = 0.0,
        seed: int = 0,
        num_loops: int | None = None,
    ) -> PuzzleSolution:
        """Run segments and return the solutions.

        With several trajectories, noise is added to the fast (or only) state before every segment but the first, and
        the trajectory with the highest halting value is returned (https://huggingface.co/papers/2605.19943). The first
        trajectory has no noise.

        Args:
            input_ids (`torch.LongTensor` of shape `[B, T]`): the puzzles.
            puzzle_ids (`torch.LongTensor` of shape `[B]`, *optional*): index of each puzzle's embedding, by default 0.
            num_segments (`int`, *optional*): largest number of segments, by default `config.max_segments`.
            halt (`bool`, *optional*, defaults to `False`): whether to read a puzzle when it halts, instead of after
                the last segment.
            num_trajectories (`int`, *optional*, defaults to 1): number of trajectories of each puzzle.
            latent_noise (`float`, *optional*, defaults to 0.0): standard deviation of the noise.
            seed (`int`, *optional*, defaults to 0): seed of the noise.
            num_loops (`int`, *optional*): number of slow cycles in a segment, by default `config.num_loops`.

        Returns:
            [`PuzzleSolution`]: the solutions.

        Raises:
            ValueError: if a count is not a positive integer, only one of `num_trajectories` above 1 and `latent_noise`
                above 0 is given, or halting or trajectories are requested without a halting head.
        """
        model: Any = self
        num_segments = (
            self.config.max_segments if num_segments is None else check_positive_int("num_segments", num_segments)
        )
        self.check_trajectories(num_trajectories, latent_noise, halt)
        num_puzzles = len(input_ids)
        input_ids = input_ids.repeat_interleave(num_trajectories, 0)
        if puzzle_ids is not None:
            puzzle_ids = puzzle_ids.repeat_interleave(num_trajectories, 0)
        # on the CPU, so that the noise does not depend on the device
        generator = torch.Generator().manual_seed(seed)
        carry: Any = None
        solution: Any = None
        is_done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for segment in range(1, num_segments + 1):
            if carry is not None and latent_noise:
                carry = self.perturb(carry, num_trajectories, latent_noise, generator)
            outputs: Any = model(input_ids, carry=carry, puzzle_ids=puzzle_ids, num_loops=num_loops)
            carry = outputs.carry
            solution = self.update_solution(solution, outputs, is_done, segment)
            if halt:
                is_done = is_done | self.halts(outputs.halt_logits)
                if is_done.all():
                    break
        if num_trajectories > 1:
            solution = choose(solution, num_puzzles)
        return solution

    def check_trajectories(self, num_trajectories: int, latent_noise: float, halt: bool):
        """Refuse trajectories without noise or without a halting head, and noise without trajectories."""
        check_positive_int("num_trajectories", num_trajectories)
        if latent_noise < 0:
            raise ValueError(f"`latent_noise` must not be negative, got {latent_noise}")
        if (num_trajectories > 1) != (latent_noise > 0):
            raise ValueError(
                "`num_trajectories` above 1 and `latent_noise` above 0 go together, got "
                f"{num_trajectories} and {latent_noise}"
            )
        if (num_trajectories > 1 or halt) and self.config.halting == "none":
            raise ValueError("`halt` and `num_trajectories` need a halting head, but `config.halting` is 'none'")

    def perturb(self, carry: Any, num_trajectories: int, latent_noise: float, generator: torch.Generator) -> Any:
        """Add noise to the fast (or only) state of every trajectory but the first of each puzzle."""
        name = "high" if carry.low is None else "low"
        state = getattr(carry, name)
        noise = torch.randn(state.shape, generator=generator).to(state) * latent_noise
        noise[::num_trajectories] = 0
        return type(carry)(**{**carry, name: state + noise})

    def update_solution(self, solution: Any, outputs: Any, is_done: torch.Tensor, segment: int) -> PuzzleSolution:
        """Update the solution with this segment's outputs, except for puzzles that have halted."""
        tokens, halt_logits = outputs.logits.argmax(-1), outputs.halt_logits
        segments = torch.full_like(is_done, segment, dtype=torch.long)
        if solution is None:
            return PuzzleSolution(tokens, outputs.logits, halt_logits, segments)
        return PuzzleSolution(
            torch.where(is_done[:, None], solution.tokens, tokens),
            torch.where(is_done[:, None, None], solution.logits, outputs.logits),
            None if halt_logits is None else torch.where(is_done[:, None], solution.halt_logits, halt_logits),
            torch.where(is_done, solution.segments, segments),
        )


def choose(solution: Any, num_puzzles: int) -> PuzzleSolution:
    """Select the trajectory with the highest halting value of each puzzle."""
    best = solution.halt_logits[:, 0].view(num_puzzles, -1).argmax(1)
    picked = best + torch.arange(num_puzzles, device=best.device) * (len(solution.tokens) // num_puzzles)
    return PuzzleSolution(
        solution.tokens[picked], solution.logits[picked], solution.halt_logits[picked], solution.segments[picked]
    )


__all__ = ["PuzzleSolution", "PuzzleSolvingMixin"]
