"""How many loops a training step runs.

Training at one fixed depth gives a model that works at that depth only; drawing the depth anew for every step gives
one that stays good when it is given more or fewer loops. The draw here is a pure function of the seed, the step and
the length of the run: every rank computes the same depth without talking to the others, a resumed run repeats the
depths of the uninterrupted one, and no global random state moves.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..models.checks import check_positive_int


LoopSampling = Literal["fixed", "uniform", "poisson_lognormal"]


@dataclass(frozen=True)
class StepDepth:
    """The depth of one optimizer step, shared by all of its micro-batches and by all ranks.

    Attributes:
        num_loops (`int`): loops in total.
        num_backprop_loops (`int`, *optional*): how many of them, counted from the last, carry gradient; `None` means
            all.
    """

    num_loops: int
    num_backprop_loops: int | None = None


@dataclass(frozen=True)
class DepthSchedule:
    """Draws the depth of each optimizer step.

    - `"fixed"`: always `mean_loops`.
    - `"uniform"`: an integer from `min_loops` to `max_loops`, both included.
    - `"poisson_lognormal"` (Huginn, arXiv 2502.05171): `rate = exp(N(log(mean_loops) - sigma^2 / 2, sigma))`, then
      `Poisson(rate) + 1`, clipped to `[min_loops, max_loops]` where they are given. The rate has mean `mean_loops`, so
      the depth has mean `mean_loops + 1`; the formula is kept as published, so that published settings carry over.

    With `curriculum` W > 0 the depth grows over the first fraction W of the run, as `curriculum_depth` says: the mean
    (for `"uniform"`, the upper bound) grows to its full value. Before the fraction `start` of the run every step runs
    one loop: in a public ablation (openai/parameter-golf, 1726) looping from about a third of the run on was best.

    Args:
        sampling (`str`): one of the three names above.
        mean_loops (`float`): the mean. Read by `"fixed"` and `"poisson_lognormal"`.
        min_loops (`int`): the lower bound.
        max_loops (`int`, *optional*): the upper bound. `None` means no bound, which `"uniform"` does not accept.
        sigma (`float`): standard deviation of the rate's logarithm.
        num_backprop_loops (`int`, *optional*): truncated back-propagation: gradient flows through the last
            `min(num_backprop_loops, n)` of `n` loops. `None` means through all.
        curriculum (`float`): fraction of the run over which the depth grows. 0 turns it off.
        start (`float`): fraction of the run before which every step runs one loop.
        seed (`int`): seed of the draws.
    """

    sampling: LoopSampling
    mean_loops: float
    min_loops: int = 1
    max_loops: int | None = None
    sigma: float = 0.5
    num_backprop_loops: int | None = None
    curriculum: float = 0.0
    start: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("min_loops", "max_loops", "num_backprop_loops"):
            if getattr(self, name) is not None:
                # the instance is frozen once it is made
                object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))
        if self.sampling == "uniform" and self.max_loops is None:
            raise ValueError("max_loops must be given for loop_sampling='uniform', got None")
        if self.max_loops is not None and self.max_loops < self.min_loops:
            raise ValueError(f"max_loops must be at least min_loops={self.min_loops}, got {self.max_loops}")

    def depth_at(self, step: int, total_steps: int) -> StepDepth:
        """Draw the depth of optimizer step `step` (from 0) in a run of `total_steps`.

        Raises:
            ValueError: if `step` is negative or `total_steps` is not positive.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be positive, got {total_steps}")
        num_loops = self._draw(step, progress=step / total_steps)
        if self.num_backprop_loops is None:
            return StepDepth(num_loops)
        return StepDepth(num_loops, min(self.num_backprop_loops, num_loops))

    def _draw(self, step: int, progress: float) -> int:
        if progress < self.start:
            return 1
        if self.sampling == "fixed":
            return int(self._grown(self.mean_loops, progress))
        # a fresh generator for every step: the draw does not depend on the draws before it
        rng = np.random.default_rng([self.seed, step])
        if self.sampling == "uniform":
            upper = max(self.min_loops, int(self._grown(self.max_loops or self.min_loops, progress)))
            return int(rng.integers(self.min_loops, upper, endpoint=True))
        num_loops = poisson_lognormal(self._grown(self.mean_loops, progress), self.sigma, rng)
        num_loops = max(num_loops, self.min_loops)
        return num_loops if self.max_loops is None else min(num_loops, self.max_loops)

    def _grown(self, full: float, progress: float) -> float:
        return curriculum_depth(full, progress, self.curriculum) if self.curriculum > 0 else full


def poisson_lognormal(mean: float, sigma: float, rng: np.random.Generator) -> int:
    """Draw `Poisson(rate) + 1` with `rate = exp(N(log(mean) - sigma^2 / 2, sigma))`; its mean is `mean + 1`."""
    rate = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma)
    return int(rng.poisson(rate)) + 1


def curriculum_depth(full: float, progress: float, warmup: float) -> float:
    """Grow a depth by the "1-sqrt" curriculum of retrofitted recurrence (arXiv 2511.07384).

    `ceil(full * (1 - sqrt(1 - progress / warmup)))` while `progress < warmup`, at least 1; then `full`.

    Args:
        full (`float`): the depth at the end of the warm-up.
        progress (`float`): the fraction of the run that is over, in [0, 1].
        warmup (`float`): the fraction of the run over which the depth grows, in (0, 1].
    """
    if progress >= warmup:
        return full
    grown = math.ceil(full * (1 - math.sqrt(1 - progress / warmup)))
    # rounding up may pass a mean that is not whole
    return min(max(1, grown), full)
