"""Readouts that are fitted to the states of a cut model, so that what a head cannot read is not taken for lost.

A head is trained on the states of full depth. Between it and the states of another depth one may put a map, fitted on
other text than the one that is measured: what it recovers was there and only unreadable to the head. The first two
maps are those of the Depth Control Protocol (https://huggingface.co/papers/2609.19934); the third is that of the tuned
lens (https://huggingface.co/papers/2303.08112).

    temperature   logits / T
    gains         head(a * z + b), a gain and a bias for every feature of the normed state z
    affine        head(A z + b), a whole matrix
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy


# computes logits [N, V] of the normed states [N, D] that the head reads
Head = Callable[[torch.Tensor], torch.Tensor]

# states whose logits are held at once
CHUNK_SIZE = 1024
# weights of the penalty on the squared distance from the start, of which the best on held-out states is taken
PENALTIES = (1e-1, 1e-2, 1e-3)
MAX_ITERATIONS = 20
# share of the states that maps are fitted to; the others choose one
FITTED_SHARE = 0.8
# of least-squares maps, relative to the mean variance of a feature
RIDGES = (1e-3, 1e-1)
# a temperature further from 1 than this tells only that the logits say nothing, or that all of them are right
MAX_TEMPERATURE = 1e3
NEWTON_STEPS = 60


class AffineMap(NamedTuple):
    """A map of states before the head.

    Args:
        weight (`torch.Tensor` of shape `[D]` or `[D, D]`): the gains, or the matrix that a state `[D]` is multiplied
            with from the right.
        bias (`torch.Tensor` of shape `[D]`): what is added.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Map states `[N, D]`."""
        return (states * self.weight if self.weight.ndim == 1 else states @ self.weight) + self.bias


def sum_of_losses(head: Head, states: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the sum of the cross-entropies, in nats, of what a head reads of states `[N, D]` to labels `[N]`."""
    return sum(
        float(cross_entropy(head(chunk).float(), target, reduction="sum"))
        for chunk, target in _chunks(states, labels)
        if len(target)
    )


def fit_temperature(head: Head, states: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature by which logits are divided for the least cross-entropy.

    The loss is convex in the inverse temperature, so that Newton's method, kept inside a bracket, finds its minimum.

    Args:
        head (`Callable`): computes logits `[N, V]` of states.
        states (`torch.Tensor` of shape `[N, D]`): the states.
        labels (`torch.LongTensor` of shape `[N]`): the tokens to predict.

    Returns:
        `float`: the temperature, between 1/1000 and 1000.
    """
    low, high = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE
    inverse = 1.0
    for _ in range(NEWTON_STEPS):
        slope, curvature = _slope_and_curvature(head, states, labels, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        proposed = inverse - slope / curvature if curvature > 0 else math.nan
        # written so that NaN is replaced too
        if not low < proposed < high:
            proposed = math.sqrt(low * high)
        if abs(proposed - inverse) <= 1e-6 * inverse:
            break
        inverse = proposed
    return 1 / inverse


@torch.no_grad()
def _slope_and_curvature(
    head: Head, states: torch.Tensor, labels: torch.Tensor, inverse: float
) -> tuple[float, float]:
    """Return the first two derivatives of the loss in the inverse temperature."""
    slope = curvature = 0.0
    for chunk, target in _chunks(states, labels):
        logits = head(chunk).float()
        probabilities = (inverse * logits).softmax(dim=-1)
        mean = (probabilities * logits).sum(dim=-1)
        slope += float((mean - logits.gather(1, target[:, None])[:, 0]).sum())
        curvature += float((probabilities * (logits - mean[:, None]).square()).sum())
    return slope / len(labels), curvature / len(labels)


def fit_gains(head: Head, states: torch.Tensor, labels: torch.Tensor) -> AffineMap:
    """Fit a gain and a bias for every feature, with a penalty on their distance from 1 and 0.

    Args:
        head (`Callable`): computes logits `[N, V]` of states; gradient must pass through it.
        states (`torch.Tensor` of shape `[N, D]`): the states.
        labels (`torch.LongTensor` of shape `[N]`): the tokens to predict.
    """
    size = states.shape[1]
    start = AffineMap(states.new_ones(size), states.new_zeros(size))
    return _fit_from([lambda *_: start], head, states, labels, states)


def fit_affine(head: Head, states: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> AffineMap:
    """Fit a whole affine map.

    It starts at the better one of the identity and the least-squares map onto the states of full depth, judged on
    held-out states, and moves from there with a penalty on the distance.

    Args:
        head (`Callable`): computes logits `[N, V]` of states; gradient must pass through it.
        states (`torch.Tensor` of shape `[N, D]`): the states.
        labels (`torch.LongTensor` of shape `[N]`): the tokens to predict.
        targets (`torch.Tensor` of shape `[N, D]`): the states of the same tokens at full depth.
    """
    identity = AffineMap(torch.eye(states.shape[1]).to(states), states.new_zeros(states.shape[1]))
    maps = [partial(least_squares_map, ridge=ridge) for ridge in RIDGES]
    return _fit_from([lambda *_: identity, *maps], head, states, labels, targets)


def least_squares_map(states: torch.Tensor, targets: torch.Tensor, ridge: float = RIDGES[0]) -> AffineMap:
    """Return the affine map of least squares from states to targets, each `[N, D]`, drawn to the identity."""
    # in double precision, which not every accelerator has
    inputs, outputs = states.cpu().double(), targets.cpu().double()
    mean, target_mean = inputs.mean(dim=0), outputs.mean(dim=0)
    centered = inputs - mean
    covariance = centered.T @ centered
    size = covariance.shape[0]
    penalty = ridge * covariance.diagonal().mean().clamp(min=1e-12)
    identity = torch.eye(size, dtype=covariance.dtype)
    difference = centered.T @ (outputs - target_mean - centered)
    weight = identity + torch.linalg.solve(covariance + penalty * identity, difference)
    return AffineMap(weight.to(states), (target_mean - mean @ weight).to(states))


Start = Callable[[torch.Tensor, torch.Tensor], AffineMap]


def _fit_from(
    starts: Sequence[Start], head: Head, states: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
) -> AffineMap:
    """Fit with the start and the penalty that are best on held-out states, or keep the start where none is better.

    The map is the one that was judged. One that is fitted again to all states may be much worse, where there are about
    as many states as features.
    """
    cut = max(1, int(FITTED_SHARE * len(labels)))
    if cut == len(labels):
        raise ValueError(f"a readout needs at least 2 labelled tokens to be fitted to, got {len(labels)}")
    held_out = states[cut:], labels[cut:]

    def held_out_loss(fitted: AffineMap) -> float:
        loss = sum_of_losses(lambda chunk: head(fitted(chunk)), *held_out)
        return math.inf if math.isnan(loss) else loss

    with torch.no_grad():
        begun = [start(states[:cut], targets[:cut]) for start in starts]
        losses = [held_out_loss(start) for start in begun]
    best_loss = min(losses)
    best = fitted = center = begun[losses.index(best_loss)]
    # from the strongest to the weakest, each from where the one before ended
    for penalty in PENALTIES:
        fitted = _descend(head, states[:cut], labels[:cut], center, fitted, penalty)
        with torch.no_grad():
            loss = held_out_loss(fitted)
        if loss < best_loss:
            best_loss, best = loss, fitted
    return best


def _descend(
    head: Head, states: torch.Tensor, labels: torch.Tensor, center: AffineMap, start: AffineMap, penalty: float
) -> AffineMap:
    """Minimize the mean loss plus `penalty` times the squared distance from `center`, by L-BFGS from `start`."""
    parameters = [tensor.clone().requires_grad_() for tensor in start]
    moving = AffineMap(*parameters)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=MAX_ITERATIONS, history_size=10, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        with torch.enable_grad():
            loss = torch.zeros((), device=states.device)
            for tensor, fixed in zip(moving, center, strict=True):
                loss = loss + penalty * (tensor - fixed).square().sum()
            gradients = torch.autograd.grad(loss, parameters)
            total = float(loss.detach())
            for chunk, target in _chunks(states, labels):
                loss = cross_entropy(head(moving(chunk)).float(), target, reduction="sum") / len(labels)
                # not `backward`, which would leave gradients in the model's head
                added = torch.autograd.grad(loss, parameters)
                gradients = [one + other for one, other in zip(gradients, added, strict=True)]
                total += float(loss.detach())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return total

    optimizer.step(closure)
    return AffineMap(*(parameter.detach() for parameter in parameters))


def _chunks(states: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(states.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True)
