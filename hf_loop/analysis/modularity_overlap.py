"""How much of two masks is the same: intersection over union."""

from collections.abc import Iterator

import torch

from .masks import LoopMasks, WeightMasks


def overlap(first: WeightMasks, second: WeightMasks) -> float:
    """Return the intersection over union of two sets of hard masks, over all their weights.

    Args:
        first, second (`dict[str, torch.Tensor]`): masks of 0 and 1 by name of weight, of the same weights.

    Returns:
        `float`: 1 for equal masks (also for two that keep nothing), 0 for disjoint ones.

    Raises:
        ValueError: if they are masks of other weights.
    """
    pairs = [(a.bool(), b.bool()) for a, b in _pairs(first, second)]
    both = sum(int((a & b).sum()) for a, b in pairs)
    either = sum(int((a | b).sum()) for a, b in pairs)
    return both / either if either else 1.0


def chance_overlap(first: WeightMasks, second: WeightMasks) -> float:
    """Return the intersection over union to expect of random masks that keep as many weights of every matrix.

    It is the ratio of the expected intersection and the expected union, to which the expected ratio is close as soon
    as the masks keep more than a few weights.

    Args:
        first, second (`dict[str, torch.Tensor]`): as in [`overlap`].

    Raises:
        ValueError: if they are masks of other weights.
    """
    both = either = 0.0
    for a, b in _pairs(first, second):
        kept_a, kept_b = float(a.sum()), float(b.sum())
        intersection = kept_a * kept_b / a.numel()
        both += intersection
        either += kept_a + kept_b - intersection
    return both / either if either else 1.0


def loop_overlaps(masks: LoopMasks) -> tuple[list[list[float]], list[list[float]]]:
    """Return the overlap of the masks of every two loops, and what random masks of these sizes would give.

    Args:
        masks (`dict`): hard masks by loop; loops without masks and calls outside of loops are left out.

    Returns:
        `tuple[list[list[float]], list[list[float]]]`: both as matrices, rows and columns in the order of the loops.
    """
    loops = [weights for loop, weights in masks.items() if loop is not None and weights]
    return (
        [[overlap(a, b) for b in loops] for a in loops],
        [[1.0 if a is b else chance_overlap(a, b) for b in loops] for a in loops],
    )


def kept_share(masks: LoopMasks) -> float:
    """Return the share of masked weights that is kept; masks that loops share count once."""
    sets = {id(weights): weights for weights in masks.values()}.values()
    tensors = [mask for weights in sets for mask in weights.values()]
    return sum(float(mask.sum()) for mask in tensors) / sum(mask.numel() for mask in tensors)


def _pairs(first: WeightMasks, second: WeightMasks) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if first.keys() != second.keys():
        name = sorted(first.keys() ^ second.keys())[0]
        raise ValueError(f"both masks must be of the same weights, and one has no mask of {name}")
    return ((mask, second[name]) for name, mask in first.items())


__all__ = ["chance_overlap", "kept_share", "loop_overlaps", "overlap"]
