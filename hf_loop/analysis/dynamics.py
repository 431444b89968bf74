"""How the state moves over loops: steps, fixed points and cycles, dependence on the start, and answers that flip.

Where a state begins matters for the first step: `Captured.start_state` is known for looped cores only, and what needs
an earlier state than there is, is `nan`.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .capture import Captured, capture, check_has_loops
from .interventions import Intervention
from .watching import CallEvent


@dataclass
class LoopDynamics:
    """The steps of the state at every loop and token, each `[R, B, T]`; `h` are states, `d = h' - h` the steps.

    Args:
        step_norm (`torch.Tensor`): `|d_r| / |h_r|`, the size of a loop's step against the state that it starts from.
        cosine (`torch.Tensor`): the cosine of a step and the one before.
        acceleration (`torch.Tensor`): `|d_r - d_(r-1)|`, by which https://huggingface.co/papers/2509.23314 lets tokens
            exit.
        distance_to_final (`torch.Tensor`): `|h_r - h_R| / |h_R|` of the state after the loop to the last one.
    """

    step_norm: torch.Tensor
    cosine: torch.Tensor
    acceleration: torch.Tensor
    distance_to_final: torch.Tensor


def loop_dynamics(captured: Captured) -> LoopDynamics:
    """Measure the steps of a captured pass.

    Raises:
        ValueError: if the model has no loops.
    """
    states = _stack(captured)
    start = captured.start_state
    first = torch.full_like(states[0], torch.nan) if start is None else start.float()
    before = torch.cat([first[None], states[:-1]])
    steps = states - before
    earlier = torch.cat([torch.full_like(steps[:1], torch.nan), steps[:-1]])
    return LoopDynamics(
        step_norm=_norm(steps) / _norm(before),
        cosine=(steps * earlier).sum(dim=-1) / (_norm(steps) * _norm(earlier)),
        acceleration=_norm(steps - earlier),
        distance_to_final=_norm(states - states[-1]) / _norm(states[-1]),
    )


def find_cycles(captured: Captured, tolerance: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the fixed point or the cycle that the state of every token has reached.

    A state has the period `p` from loop `s` on if every state from there to the last is within `tolerance`, relative
    to its norm, of the one `p` loops before it; at least `p` states in a row must be. The smallest such period counts.

    Args:
        captured (`Captured`): the states. A period can be found if there are twice as many loops.
        tolerance (`float`, *optional*, defaults to 1e-3): the relative distance of states that count as equal.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor]`: the period, 1 for a fixed point and 0 for none, and the number of
        loops after which the state is first in the cycle, 0 for none; each `[B, T]`.

    Raises:
        ValueError: if the model has no loops, or the tolerance is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}")
    states = _stack(captured)
    num_loops = len(states)
    periods = torch.zeros(states.shape[1:3], dtype=torch.long, device=states.device)
    since = torch.zeros_like(periods)
    for period in range(1, num_loops // 2 + 1):
        is_same = _norm(states[period:] - states[:-period]) <= tolerance * _norm(states[period:])
        # states in a row, counted from the last, that are where they were a period before
        num_same = is_same.flip(0).long().cumprod(dim=0).sum(dim=0)
        is_new = (num_same >= period) & (periods == 0)
        periods = torch.where(is_new, period, periods)
        since = torch.where(is_new, num_loops - period - num_same + 1, since)
    return periods, since


@dataclass
class PathIndependence:
    """How runs from different starts come together, see [`path_independence`].

    Args:
        distance (`torch.Tensor` of shape `[R, B, T]`): mean distance of the states of two runs after every loop,
            relative to the mean norm of the states.
        agreement (`torch.Tensor` of shape `[B, T]`, *optional*): share of pairs of runs whose most probable next token
            is the same, of a model with a head.
    """

    distance: torch.Tensor
    agreement: torch.Tensor | None


def path_independence(
    model: Any,
    inputs: torch.Tensor | Mapping[str, Any],
    num_loops: int | None = None,
    num_starts: int = 4,
    scale: float = 0.5,
    seed: int = 0,
) -> PathIndependence:
    """Run a model from several starts and measure whether the loops forget them.

    A looped model whose state starts from noise gets other noise. In any other the state after the
    first loop is moved at random. A model that reaches one fixed point from anywhere is path independent
    (https://huggingface.co/papers/2211.09961), and more loops then cannot harm it.

    Args:
        model (`PreTrainedModel`): a model with loops.
        inputs (`torch.Tensor` or `Mapping`): as in [`capture`].
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        num_starts (`int`, *optional*, defaults to 4): number of runs.
        scale (`float`, *optional*, defaults to 0.5): norm of the random move against that of the state.
        seed (`int`, *optional*, defaults to 0): seed of the starts.

    Raises:
        ValueError: if there are fewer than two starts, or the model has no loops.
    """
    if num_starts < 2:
        raise ValueError(f"`num_starts` must be at least 2, got {num_starts}")
    check_has_loops(model)
    starts_from_noise = getattr(model.config, "starts_from_noise", False)
    runs = []
    for start in range(num_starts):
        if starts_from_noise:
            with _other_noise(model, seed + start):
                runs.append(capture(model, inputs, num_loops))
        else:
            runs.append(capture(model, inputs, num_loops, interventions=[_move(scale, seed + start)]))
    states = torch.stack([_stack(run) for run in runs])
    pairs = [(one, two) for one in range(num_starts) for two in range(one)]
    apart = torch.stack([_norm(states[one] - states[two]) for one, two in pairs]).mean(dim=0)
    logits = [run.logits for run in runs if run.logits is not None]
    agreement = None
    if logits:
        answers = [part.argmax(dim=-1) for part in logits]
        agreement = torch.stack([answers[one] == answers[two] for one, two in pairs]).float().mean(dim=0)
    return PathIndependence(apart / _norm(states).mean(dim=0), agreement)


def first_lasting_right(is_right: torch.Tensor) -> torch.Tensor:
    """Return the number of loops after which an answer is right and stays right, 0 if it is wrong in the end.

    Args:
        is_right (`torch.BoolTensor` of shape `[R, ...]`): whether the answer after every loop is right.

    Returns:
        `torch.LongTensor` of shape `[...]`: the numbers, from 1.
    """
    lasting = is_right.long().flip(0).cumprod(dim=0).sum(dim=0)
    return torch.where(lasting > 0, len(is_right) - lasting + 1, 0)


def count_flips(answers: torch.Tensor) -> torch.Tensor:
    """Count the loops after which the answer is another than before, `[...]`, from the answers `[R, ...]`."""
    return (answers[1:] != answers[:-1]).sum(dim=0)


def overthinking(accuracy: Sequence[float]) -> float:
    """Return what the deepest count of loops loses against the best: the largest accuracy minus the last.

    Args:
        accuracy (`Sequence[float]`): the accuracy after every number of loops, ascending.

    Raises:
        ValueError: if there is none.
    """
    if len(accuracy) == 0:
        raise ValueError("accuracy is empty; give the accuracy after every number of loops")
    return max(accuracy) - accuracy[-1]


@contextmanager
def _other_noise(model: Any, seed: int) -> Generator[None]:
    """Let a looped model start from the noise of another seed in the one forward pass inside the `with` block."""
    headless = model.base_model
    is_first = True

    def replace(module: Any, inputs: Any) -> Any:
        nonlocal is_first
        if not is_first:
            return None
        is_first = False
        encoded = inputs[1]
        positions = torch.arange(encoded.shape[1], device=encoded.device)[None]
        # the model itself has seed 0
        seeds = torch.full_like(positions[:, :1], 1 + seed)
        return headless.make_initial_state(encoded, positions, seeds), encoded

    hook = headless.injection.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def _move(scale: float, seed: int) -> Intervention:
    generator = torch.Generator().manual_seed(seed)

    def replace(event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(state.shape, generator=generator).to(state)
        return state + scale * _norm(state)[..., None] * noise / _norm(noise)[..., None]

    return Intervention(replace, loop=0)


def _stack(captured: Captured) -> torch.Tensor:
    """Stack the states after the loops, `[R, B, T, D]`, in float32."""
    if not captured.loop_states:
        raise ValueError("the captured model has no loops")
    return torch.stack(captured.loop_states).float()


def _norm(states: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(states, dim=-1)


__all__ = [
    "LoopDynamics",
    "PathIndependence",
    "count_flips",
    "find_cycles",
    "first_lasting_right",
    "loop_dynamics",
    "overthinking",
    "path_independence",
]
