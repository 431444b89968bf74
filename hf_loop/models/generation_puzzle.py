# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Solving puzzles: running segments until a puzzle halts, and choosing among several trajectories."""

from dataclasses import dataclass
from typing import Any

import torch

from .checks import check_count, check_positive_int
from .puzzle_inputs import check_puzzles
from .state_noise import example_seeds, trajectory_seeds


@dataclass
class PuzzleSolution:
    """
    Args:
        tokens (`torch.LongTensor` of shape `[B, T]`): the most likely token of every cell.
        logits (`torch.Tensor` of shape `[B, T, V]`): logits of the cells.
        halt_logits (`torch.Tensor` of shape `[B, 1]` or `[B, 2]`, *optional*): logits of the halting head.
        segments (`torch.LongTensor` of shape `[B]`): number of segments after which each puzzle was read.
        kept (`torch.BoolTensor` of shape `[B]`, *optional*): whether each answer leaves the given cells as they are,
            which an answer that solves the puzzle does; `None` if `solve` is not told which cells are blank.

    Of a single board without a batch dimension, all have none either.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    halt_logits: torch.Tensor | None
    segments: torch.Tensor
    kept: torch.Tensor | None = None

    def first(self) -> "PuzzleSolution":
        """Return the solution of the first puzzle, without a batch dimension."""
        values: list[Any] = [None if value is None else value[0] for value in vars(self).values()]
        return PuzzleSolution(*values)


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
        attention_mask: torch.Tensor | None = None,
        blank_token_id: int | None = None,
    ) -> PuzzleSolution:
        """Run segments and return the solutions.

        With several trajectories, noise is added to the fast (or only) state before every segment but the first, and
        the trajectory with the highest halting value is returned (https://huggingface.co/papers/2605.19943). The first
        trajectory has no noise.

        Args:
            input_ids (`torch.LongTensor` of shape `[B, T]` or `[T]`): the puzzles, or a single one.
            puzzle_ids (`torch.LongTensor` of shape `[B]`, *optional*): index of each puzzle's embedding, by default 0.
            num_segments (`int`, *optional*): largest number of segments, by default `config.max_segments`.
            halt (`bool`, *optional*, defaults to `False`): whether to read a puzzle when it halts, instead of after
                the last segment.
            num_trajectories (`int`, *optional*, defaults to 1): number of trajectories of each puzzle.
            latent_noise (`float`, *optional*, defaults to 0.0): standard deviation of the noise.
            seed (`int`, *optional*, defaults to 0): seed of the noise, which follows from it and the puzzle alone.
            num_loops (`int`, *optional*): number of slow cycles in a segment, by default `config.num_loops`.
            attention_mask (`torch.Tensor` of shape `[B, T]`, *optional*): 0 at the padding that follows the cells of a
                smaller puzzle; answers there are 0.
            blank_token_id (`int`, *optional*): token of the cells to fill in. All others are given, and `kept` of the
                solution tells whether the answer leaves them as they are.

        Returns:
            [`PuzzleSolution`]: the solutions.

        Raises:
            ValueError: if a cell or an id is out of range, a count is not a positive integer, only one of
                `num_trajectories` above 1 and `latent_noise` above 0 is given, or halting or trajectories are
                requested without a halting head.
        """
        model: Any = self
        num_segments = self.config.max_segments if num_segments is None else check_count("num_segments", num_segments)
        self.check_trajectories(num_trajectories, latent_noise, halt)
        is_single = input_ids.ndim == 1
        if is_single:
            input_ids = input_ids[None]
            puzzle_ids = None if puzzle_ids is None else puzzle_ids.reshape(1)
            attention_mask = None if attention_mask is None else attention_mask.reshape(1, -1)
        check_puzzles(self.config, input_ids, puzzle_ids)
        puzzles = input_ids
        generators = self.generators(input_ids, attention_mask, num_trajectories, seed) if latent_noise else []
        options = {"input_ids": input_ids, "puzzle_ids": puzzle_ids, "attention_mask": attention_mask}
        options = {
            name: None if tensor is None else tensor.repeat_interleave(num_trajectories, 0)
            for name, tensor in options.items()
        }
        carry: Any = None
        solution: Any = None
        is_done = torch.zeros(len(puzzles) * num_trajectories, dtype=torch.bool, device=puzzles.device)
        for segment in range(1, num_segments + 1):
            if carry is not None and latent_noise:
                carry = self.perturb(carry, latent_noise, generators)
            outputs: Any = model(**options, carry=carry, num_loops=num_loops)
            carry = outputs.carry
            solution = self.update_solution(solution, outputs, is_done, segment)
            if halt:
                is_done = is_done | self.halts(outputs.halt_logits)
                if is_done.all():
                    break
        if num_trajectories > 1:
            solution = choose(solution, len(puzzles))
        is_cell = torch.ones_like(puzzles, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        solution.tokens = solution.tokens.masked_fill(~is_cell, 0)
        if blank_token_id is not None:
            is_given = is_cell & (puzzles != blank_token_id)
            solution.kept = ((solution.tokens == puzzles) | ~is_given).all(1)
        return solution.first() if is_single else solution

    def generators(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, num_trajectories: int, seed: int
    ) -> list[torch.Generator | None]:
        """Make the generator of every trajectory's noise; the first trajectory of each puzzle has none."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seeds = trajectory_seeds(example_seeds(input_ids, positions, mask), num_trajectories, seed)
        # on the CPU, so that the noise does not depend on the device
        return [
            torch.Generator().manual_seed(number) if index % num_trajectories else None
            for index, number in enumerate(seeds.flatten().tolist())
        ]

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

    def perturb(self, carry: Any, latent_noise: float, generators: list[torch.Generator | None]) -> Any:
        """Add noise to the fast (or only) state of every trajectory with a generator."""
        name = "high" if carry.low is None else "low"
        state = getattr(carry, name)
        # cell by cell: a cell's noise does not depend on the padding that follows it
        noise = torch.stack(
            [
                torch.zeros(state.shape[1:])
                if generator is None
                else torch.randn(state.shape[1:], generator=generator)
                for generator in generators
            ]
        )
        return type(carry)(**{**carry, name: state + noise.to(state) * latent_noise})

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
