"""Masks over the weights of looped layers, one for all loops or one for each, on a model whose weights stay.

A mask says of every weight of a linear map whether a subnetwork holds it. It is found by continuous sparsification
(https://huggingface.co/papers/1912.04427), as in "Break It Down" (https://huggingface.co/papers/2301.10884): a score
`s` for each weight, a soft mask `sigmoid(tau s)` whose temperature `tau` grows over training, and the hard mask
`1[s > 0]` in the end. The loop of every layer call is known here, so that a mask can be another one in each loop, or
work in one of them only.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..models.backbone import Backbone
from ..models.call_hooks import RunLayer, hook_calls
from ..models.schedules import Call


# name of a weight in the model -> its mask, of the weight's shape, from 0 (left out) to 1 (kept)
WeightMasks = dict[str, torch.Tensor]
# loop, `None` for the calls outside of loops -> the masks of its layer calls, empty where nothing is masked. Loops
# with one mask for all share one dictionary
LoopMasks = dict[int | None, WeightMasks]


def temperature_at(epoch: float, num_epochs: float, most: float = 200.0) -> float:
    """Return the temperature `most ** (epoch / num_epochs)`, from 1 at the start to `most` at the end."""
    return most ** (epoch / num_epochs)


def maskable_weights(model: Any, outside: bool = False) -> dict[str, nn.Parameter]:
    """Return the weights of the linear maps in the looped layers: the parameters with two dimensions or more.

    Args:
        model (`PreTrainedModel`): a model of any family, with or without a head.
        outside (`bool`, *optional*, defaults to `False`): whether layers outside of loops count too.

    Returns:
        `dict[str, nn.Parameter]`: the weights by their names in the model; one that several modules share is there
        once.

    Raises:
        ValueError: if there are none.
    """
    by_loop = _weights_by_loop(model, outside)
    found = {name: weight for weights in by_loop.values() for name, weight in weights.items()}
    if not found:
        hint = "" if outside else "; without loops, `outside=True` masks the other layers"
        raise ValueError(f"the {model.config.model_type} model has no looped layer with weights to mask{hint}")
    return found


def _weights_by_loop(model: Any, outside: bool) -> dict[int | None, dict[str, nn.Parameter]]:
    """Return the maskable weights of the layers that run in each loop."""
    layers = Backbone(model.base_model).layers
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_loop: dict[int | None, dict[str, nn.Parameter]] = {}
    for call in model.config.calls():
        if outside or call.loop is not None:
            weights = [weight for weight in layers[call.layer].parameters() if _is_linear(weight)]
            by_loop.setdefault(call.loop, {}).update({names[id(weight)]: weight for weight in weights})
    return by_loop


def _is_linear(weight: nn.Parameter) -> bool:
    # weights that a quantizer packed cannot be multiplied by a mask
    return weight.ndim >= 2 and weight.is_floating_point()


class MaskScores(nn.Module):
    """A trainable score for every maskable weight of a model, in all loops or in each.

    Args:
        model (`PreTrainedModel`): a model of any family; only the shapes of its weights are used.
        per_loop (`bool`, *optional*, defaults to `False`): whether every loop of the model's configuration has scores
            of its own. Calls outside of loops have one set of scores in any case.
        outside (`bool`, *optional*, defaults to `False`): whether calls outside of loops are masked too; with one set
            of scores for all loops they share it.
        initial (`float`, *optional*, defaults to 0.05): every score at the start. Above 0 a weight is kept unless
            training says otherwise.

    Raises:
        ValueError: if no weight can be masked.
    """

    def __init__(self, model: Any, *, per_loop: bool = False, outside: bool = False, initial: float = 0.05):
        super().__init__()
        weights = maskable_weights(model, outside)
        by_loop = _weights_by_loop(model, outside)
        # every loop of the model, with the index of its group where it is masked
        self.group_of = {
            loop: (list(by_loop).index(loop) if per_loop else 0) if loop in by_loop else None
            for loop in dict.fromkeys(call.loop for call in model.config.calls())
        }
        # the names of the weights that have a score in each group
        self.groups = [list(names) for names in by_loop.values()] if per_loop else [list(weights)]
        self.scores = nn.ParameterList(
            nn.Parameter(torch.full_like(weights[name], initial, dtype=torch.float32))
            for names in self.groups
            for name in names
        )

    def soft(self, temperature: float) -> LoopMasks:
        """Return the masks `sigmoid(temperature * s)`, through which gradient reaches the scores."""
        return self._masks(lambda score: torch.sigmoid(temperature * score))

    @torch.no_grad()
    def hard(self) -> LoopMasks:
        """Return the masks `1[s > 0]`."""
        return self._masks(lambda score: (score > 0).float())

    def kept(self, temperature: float) -> torch.Tensor:
        """Return the mean of the soft masks, which is the L0 penalty over the number of weights."""
        total = sum((torch.sigmoid(temperature * score).sum() for score in self.scores), torch.zeros(()))
        return total / sum(score.numel() for score in self.scores)

    def _masks(self, function: Callable[[torch.Tensor], torch.Tensor]) -> LoopMasks:
        masks = iter([function(score) for score in self.scores])
        groups = [{name: next(masks) for name in names} for names in self.groups]
        return {loop: {} if index is None else groups[index] for loop, index in self.group_of.items()}


def map_masks(masks: LoopMasks, function: Callable[[str, torch.Tensor], torch.Tensor]) -> LoopMasks:
    """Apply `function` to the name and the mask of every weight; what loops share they share afterwards."""
    done: dict[int, WeightMasks] = {}
    for weights in masks.values():
        if id(weights) not in done:
            done[id(weights)] = {name: function(name, mask) for name, mask in weights.items()}
    return {loop: done[id(weights)] for loop, weights in masks.items()}


def inverted(masks: LoopMasks) -> LoopMasks:
    """Return masks that keep what `masks` leave out, which ablates a subnetwork."""
    return map_masks(masks, lambda name, mask: 1 - mask)


def only_in(masks: LoopMasks, loops: Iterable[int | None]) -> LoopMasks:
    """Return masks that work in these loops only and leave the weights of the others whole.

    Raises:
        ValueError: if `masks` have no such loop.
    """
    loops = set(loops)
    missing = loops - masks.keys()
    if missing:
        raise ValueError(f"`loops` must be among {list(masks)}, got {', '.join(map(str, missing))}")
    return {loop: weights if loop in loops else {} for loop, weights in masks.items()}


def random_masks(masks: LoopMasks, seed: int) -> LoopMasks:
    """Return hard masks that keep as many weights of every matrix as `masks` do, drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def shuffle(name: str, mask: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        return mask.flatten()[order].view_as(mask)

    return map_masks(masks, shuffle)


@contextmanager
def masked_weights(model: Any, masks: LoopMasks, replacements: WeightMasks | None = None) -> Generator[None]:
    """Run every layer call inside the `with` block with masked weights, `mask * weight`.

    The weights themselves never change and get no gradient; gradient reaches the masks. It is computed right inside
    the block and after it.

    Args:
        model (`PreTrainedModel`): a model of any family, in evaluation mode: recomputing a layer for the backward pass
            (gradient checkpointing) would not find the masks.
        masks (`dict`): masks by loop and weight, from [`MaskScores`].
        replacements (`dict`, *optional*): values by name of weight for what is left out, by default zero: a layer then
            runs with `mask * weight + (1 - mask) * replacement`.

    Raises:
        ValueError: if a layer runs in a loop that `masks` do not name, or they name a weight that is not there.
    """
    weights = dict(model.named_parameters())
    unknown = {name for loop_masks in masks.values() for name in loop_masks} - weights.keys()
    if unknown:
        raise ValueError(f"`masks` name weights that the model does not have: {', '.join(sorted(unknown)[:3])}")
    names = {id(weight): name for name, weight in weights.items()}

    def apply(name: str, mask: torch.Tensor) -> torch.Tensor:
        weight = weights[name].detach()
        mask = mask.to(weight)
        masked = mask * weight
        return masked if replacements is None else masked + (1 - mask) * replacements[name].to(weight)

    # once for a pass, not at every call
    by_loop = map_masks(masks, apply)

    def hook(call: Call, layer: nn.Module, hidden_states: torch.Tensor, run_layer: RunLayer) -> torch.Tensor:
        if call.loop not in by_loop:
            raise ValueError(f"`masks` have no entry for loop {call.loop}; they were made for {list(by_loop)}")
        masked = by_loop[call.loop]
        if not masked:
            return run_layer(layer, hidden_states)
        tensors = {
            f"layer.{name}": masked[names[id(weight)]]
            for name, weight in layer.named_parameters()
            if names.get(id(weight)) in masked
        }
        return torch.func.functional_call(_LayerCall(layer), tensors, (run_layer, hidden_states))

    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trainable:
        weight.requires_grad_(False)
    try:
        with hook_calls(model, hook):
            yield
    finally:
        for weight in trainable:
            weight.requires_grad_(True)


class _LayerCall(nn.Module):
    """One call of a layer as a module, for `functional_call`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, run_layer: RunLayer, hidden_states: torch.Tensor) -> torch.Tensor:
        return run_layer(self.layer, hidden_states)


__all__ = [
    "LoopMasks",
    "MaskScores",
    "WeightMasks",
    "inverted",
    "map_masks",
    "maskable_weights",
    "masked_weights",
    "only_in",
    "random_masks",
    "temperature_at",
]
