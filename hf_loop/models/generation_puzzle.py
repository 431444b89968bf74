# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Solving puzzles: segments until a row is done, several trajectories, and a choice among them."""

from dataclasses import dataclass
from typing import Any

import torch

from .checks import check_positive_int


@dataclass
class PuzzleSolution:
    """
    Args:
        tokens (`torch.LongTensor` of shape `[B, T]`): the most likely token of every cell.
        logits (`torch.Tensor` of shape `[B, T, V]`): their scores.
        halt_logits (`torch.Tensor` of shape `[B, 1]` or `[B, 2]`, *optional*): what the halting head said then.
        segments (`torch.LongTensor` of shape `[B]`): the segment that they were read after, counted from 1.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    halt_logits: torch.Tensor | None
    segments: torch.Tensor


class PuzzleSolvingMixin:
    """Gives a puzzle model `solve`."""

    config: Any

    def halts(self, halt_logits: torch.Tensor | None) -> torch.Tensor | bool:
        """Whether a row is done `[B]`, by its `halt_logits`; never where there are none."""
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
        """Run segments and read the answer.

        With several trajectories, noise is added before every segment but the first to the fast state (or the only
        one), and of each row the trajectory is kept that the halting head thinks most of
        (https://huggingface.co/papers/2605.19943). The first trajectory has no noise.

        Args:
            input_ids (`torch.LongTensor` of shape `[B, T]`): the puzzles.
            puzzle_ids (`torch.LongTensor` of shape `[B]`, *optional*): which puzzle's embedding a row has.
            num_segments (`int`, *optional*): segments at most, `config.max_segments` if not given.
            halt (`bool`): whether a row is read where the model halts, or after the last segment.
            num_trajectories (`int`): trajectories of each row.
            latent_noise (`float`): standard deviation of the noise.
            seed (`int`): seed of the noise.
            num_loops (`int`, *optional*): slow cycles in a segment.

        Raises:
            ValueError: if a count is not a positive integer; trajectories without noise, or without a halting head to
                choose by; or noise without a second trajectory.
        """
        model: Any = self
        num_segments = (
            self.config.max_segments if num_segments is None else check_positive_int("num_segments", num_segments)
        )
        self.check_trajectories(num_trajectories, latent_noise, halt)
        num_rows = len(input_ids)
        input_ids = input_ids.repeat_interleave(num_trajectories, 0)
        if puzzle_ids is not None:
            puzzle_ids = puzzle_ids.repeat_interleave(num_trajectories, 0)
        # drawn on the CPU, so that every device sees the same
        generator = torch.Generator().manual_seed(seed)
        carry: Any = None
        solution: Any = None
        is_done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for segment in range(1, num_segments + 1):
            if carry is not None and latent_noise:
                carry = self.perturb(carry, num_trajectories, latent_noise, generator)
            outputs: Any = model(input_ids, carry=carry, puzzle_ids=puzzle_ids, num_loops=num_loops)
            carry = outputs.carry
            solution = self.read_open_rows(solution, outputs, is_done, segment)
            if halt:
                is_done = is_done | self.halts(outputs.halt_logits)
                if is_done.all():
                    break
        if num_trajectories > 1:
            solution = choose(solution, num_rows)
        return solution

    def check_trajectories(self, num_trajectories: int, latent_noise: float, halt: bool):
        """Refuse what could not make a difference, or a choice."""
        check_positive_int("num_trajectories", num_trajectories)
        if latent_noise < 0:
            raise ValueError(f"`latent_noise` must not be negative, got {latent_noise}")
        if (num_trajectories > 1) != (latent_noise > 0):
            raise ValueError(
                "`num_trajectories` above 1 and `latent_noise` above 0 go together, got "
                f"{num_trajectories} and {latent_noise}"
            )
        if (num_trajectories > 1 or halt) and self.config.halting == "none":
            raise ValueError("`halt` and `num_trajectories` need a model that says when it is done: `halting='none'`")

    def perturb(self, carry: Any, num_trajectories: int, latent_noise: float, generator: torch.Generator) -> Any:
        """The carry with noise on the fast state of every trajectory but the first of a row."""
        name = "high" if carry.low is None else "low"
        state = getattr(carry, name)
        noise = torch.randn(state.shape, generator=generator).to(state) * latent_noise
        noise[::num_trajectories] = 0
        return type(carry)(**{**carry, name: state + noise})

    def read_open_rows(self, solution: Any, outputs: Any, is_done: torch.Tensor, segment: int) -> PuzzleSolution:
        """The answers after this segment, and of rows that were done before, the old ones."""
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


def choose(solution: Any, num_rows: int) -> PuzzleSolution:
    """Of each row's trajectories the one with the highest value of halting."""
    best = solution.halt_logits[:, 0].view(num_rows, -1).argmax(1)
    picked = best + torch.arange(num_rows, device=best.device) * (len(solution.tokens) // num_rows)
    return PuzzleSolution(
        solution.tokens[picked], solution.logits[picked], solution.halt_logits[picked], solution.segments[picked]
    )


__all__ = ["PuzzleSolution", "PuzzleSolvingMixin"]
