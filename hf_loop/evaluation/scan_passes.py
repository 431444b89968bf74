"""The passes of a layer scan, which run once what ranges share. `scan.py` says how many layer calls that saves."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..models.backbone import Backbone, LayerInputs, compute_logits
from ..models.position_limit import check_length
from ..models.schedules import Call
from .perplexity import exp_or_infinity
from .scan_results import ScanCell


# float32 logits held at a time: with a large vocabulary those of one window would be larger than everything else
LOGITS_PER_CHUNK = 2**24


def count_layer_calls(first: int, last: int, counts: dict[str, list[int]], num_layers: int, calls_of_head: int) -> int:
    """Count the layer calls for one window and one range; the head counts as `calls_of_head` each time it runs.

    Args:
        first, last (`int`): The range.
        counts (`dict[str, list[int]]`): the loop counts by update.
        num_layers (`int`): layers of the model.
        calls_of_head (`int`): what the head costs, in layer calls.
    """
    num_core, num_coda = last - first + 1, num_layers - 1 - last
    readouts = sum(len(loops) for loops in counts.values())
    repeated = max(counts.get("replace") or [1]) - 1 + sum(count - 1 for count in counts.get("damped", ()))
    return repeated * num_core + readouts * (num_coda + calls_of_head)


class ScanPasses:
    """The base model's states at layer boundaries, and the passes that start from them.

    Making one runs the base model once over all batches. The model must be in evaluation mode, without gradients.

    Args:
        model (`PreTrainedModel`): a causal language model of a supported architecture.
        batches (`Sequence[torch.Tensor]`): token ids, `[B, T]` each.
        boundaries (`set[int]`): the layers whose input is kept; the number of layers stands for the last one's output.
        on_calls (`Callable[[int], object]`): told of layer calls as they are made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[torch.Tensor],
        boundaries: set[int],
        on_calls: Callable[[int], object],
    ) -> None:
        self.backbone = _backbone(model)
        self.head: Any = model.get_output_embeddings()
        self.device = model.device
        self.on_calls = on_calls
        self.calls_of_head = calls_of_head(model)
        self.batches = batches
        # positions and masks depend on a batch's shape alone
        self.inputs: dict[torch.Size, LayerInputs] = {}
        # in the main memory: bringing one state back costs little beside the layers that follow
        self.states: list[dict[int, torch.Tensor]] = []
        self.base_losses: list[torch.Tensor] = []
        for batch in batches:
            self._run_base(batch, boundaries)

    @property
    def base_perplexity(self) -> float:
        """Return the perplexity of the model as it is."""
        return exp_or_infinity(float(_joined(self.base_losses).mean()))

    def measure(self, first: int, last: int, counts: dict[str, list[int]]) -> list[ScanCell]:
        """Measure the cells of one range, whose ends must be among the boundaries.

        Args:
            first, last (`int`): The range.
            counts (`dict[str, list[int]]`): the loop counts by update, ascending.
        """
        losses: dict[tuple[str, int], list[torch.Tensor]] = {}
        for batch, states in zip(self.batches, self.states, strict=True):
            inputs = self.inputs[batch.shape]
            entering, after_one = states[first].to(self.device), states[last + 1].to(self.device)
            for update, loops in counts.items():
                looped = self._replaced if update == "replace" else self._damped
                for num_loops, state in looped(range(first, last + 1), entering, after_one, inputs, loops):
                    state = self._run(range(last + 1, len(self.backbone.layers)), state, inputs)
                    losses.setdefault((update, num_loops), []).append(self._losses(state, batch))
        base = _joined(self.base_losses)
        return [
            _cell(first, last, num_loops, update, _joined(parts), base)
            for (update, num_loops), parts in losses.items()
        ]

    def _run_base(self, batch: torch.Tensor, boundaries: set[int]) -> None:
        inputs_embeds = self.backbone.embed(batch.to(self.device))
        if batch.shape not in self.inputs:
            position_ids = torch.arange(batch.shape[1], device=self.device)[None]
            check_length(self.backbone.model, self.backbone, batch.shape[1], None, position_ids)
            self.inputs[batch.shape] = self.backbone.prepare(inputs_embeds, None, position_ids, None, False)
        state = self.backbone.enter(inputs_embeds, self.inputs[batch.shape].position_ids)
        states = {}
        for index in range(len(self.backbone.layers)):
            if index in boundaries:
                states[index] = state.cpu()
            state = self._run(range(index, index + 1), state, self.inputs[batch.shape])
        if len(self.backbone.layers) in boundaries:
            states[len(self.backbone.layers)] = state.cpu()
        self.states.append(states)
        self.base_losses.append(self._losses(state, batch))

    def _run(self, layers: range, state: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        for index in layers:
            # without a cache the slot means nothing
            state = self.backbone.run_call(Call(index, index), state, inputs)
        self.on_calls(len(layers))
        return state

    def _replaced(
        self, core: range, entering: torch.Tensor, state: torch.Tensor, inputs: LayerInputs, loops: list[int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for num_loops in range(2, max(loops, default=1) + 1):
            state = self._run(core, state, inputs)
            if num_loops in loops:
                yield num_loops, state

    def _damped(
        self, core: range, entering: torch.Tensor, after_one: torch.Tensor, inputs: LayerInputs, loops: list[int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        for num_loops in loops:
            state = entering + (after_one - entering) / num_loops
            for _ in range(num_loops - 1):
                state = state + (self._run(core, state, inputs) - state) / num_loops
            yield num_loops, state

    def _losses(self, state: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of every predicted token `[B * (T - 1)]`, in the main memory."""
        rows = self.backbone.norm(state)[:, :-1].flatten(0, 1)
        targets = batch[:, 1:].flatten().to(self.device)
        chunk = max(1, LOGITS_PER_CHUNK // self.backbone.config.vocab_size)
        losses = [
            cross_entropy(
                compute_logits(self.backbone.config, self.head, part).float(), part_targets, reduction="none"
            )
            for part, part_targets in zip(rows.split(chunk), targets.split(chunk), strict=True)
        ]
        self.on_calls(self.calls_of_head)
        return torch.cat(losses).cpu()


def calls_of_head(model: PreTrainedModel) -> int:
    """Estimate the cost of the head in calls of an average layer, by its number of weights."""
    layers = _backbone(model).layers
    per_layer = sum(parameter.numel() for layer in layers for parameter in layer.parameters()) / len(layers)
    head: Any = model.get_output_embeddings()
    return max(1, round(sum(parameter.numel() for parameter in head.parameters()) / max(per_layer, 1)))


def _backbone(model: PreTrainedModel) -> Backbone:
    decoder: Any = model.base_model
    return Backbone(decoder)


def _joined(losses: list[torch.Tensor]) -> torch.Tensor:
    # float64 only in the main memory: some devices have none
    return torch.cat(losses).cpu().double()


def _cell(first: int, last: int, num_loops: int, update: Any, losses: torch.Tensor, base: torch.Tensor) -> ScanCell:
    difference = losses - base
    mean = float(difference.mean())
    error = float(difference.std(correction=0)) / len(base) ** 0.5
    return ScanCell(first, last, num_loops, update, exp_or_infinity(float(base.mean()) + mean), error)
