"""How well the exit gate of a looped model foresees that a loop gains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..models.checks import check_positive_int
from ..models.evaluation_mode import evaluation_mode
from .perplexity import batch_windows, cut_windows
from .running import trained_loops


NUM_BINS = 10


@dataclass(frozen=True)
class GateCalibration:
    """The gate after one loop, over all predicted tokens of a text.

    Args:
        loop (`int`): the loop after which it is asked, counted from 1.
        predicted (`float`): mean of its exit probability.
        measured (`float`): share of tokens whose loss the next loop does not lower by more than the threshold.
        error (`float`): expected calibration error: in each of ten equal ranges of the probability, the distance of
            its mean from the measured share, weighted by the tokens in the range.
        ranking (`float`): probability that of two tokens, one that gains nothing and one that gains, the gate rates
            the first one higher (area under the ROC curve; 0.5 is chance, and the value where all are of one kind).
    """

    loop: int
    predicted: float
    measured: float
    error: float
    ranking: float


def gate_calibration(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Sequence[torch.Tensor],
    *,
    num_loops: int | None = None,
    gain_threshold: float = 0.005,
    window: int = 256,
    batch_size: int = 4,
) -> list[GateCalibration]:
    """Compare the gate's exit probabilities with what the next loops gain.

    Args:
        model (`LoopedForCausalLM`): a model with `exit_gate=True`.
        input_ids (`torch.Tensor` or `Sequence[torch.Tensor]`): a text's tokens, as in [`perplexity_over_loops`].
        num_loops (`int`, *optional*): loops to run, by default the model's.
        gain_threshold (`float`, *optional*, defaults to 0.005): the gain, in nats, that is worth a loop.
        window (`int`, *optional*, defaults to 256): tokens in a window.
        batch_size (`int`, *optional*, defaults to 4): windows in a forward pass.

    Returns:
        `list[GateCalibration]`: one for every loop but the last.

    Raises:
        ValueError: if the model has no loops or no gate, or there is nothing to predict.
    """
    num_loops = int(trained_loops(model)) if num_loops is None else check_positive_int("num_loops", num_loops)
    looped: Any = model.base_model
    probabilities: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    with evaluation_mode(model):
        for batch in batch_windows(cut_windows(input_ids, window), check_positive_int("batch_size", batch_size)):
            batch = batch.to(model.device)
            outputs = model(input_ids=batch, num_loops=num_loops, output_loop_states=True, output_loop_logits=True)
            targets = batch[:, 1:].flatten()
            read = [logits[:, :-1].flatten(0, 1).float() for logits in outputs.loop_logits]
            losses.append(torch.stack([cross_entropy(logits, targets, reduction="none") for logits in read]).cpu())
            states = [state[:, :-1].flatten(0, 1) for state in outputs.loop_states]
            gate = [looped.exit_gate_probability(state) for state in states]
            probabilities.append(torch.stack(gate).cpu())
    # [num_loops, N]
    losses_, probabilities_ = torch.cat(losses, dim=1), torch.cat(probabilities, dim=1)
    gains_nothing = losses_[:-1] - losses_[1:] <= gain_threshold
    return [_calibrate(loop + 1, probabilities_[loop], gains_nothing[loop].float()) for loop in range(num_loops - 1)]


def _calibrate(loop: int, probabilities: torch.Tensor, gains_nothing: torch.Tensor) -> GateCalibration:
    bins = (probabilities * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    # the distance of two means times the tokens in a range is the distance of two sums
    distances = torch.zeros(NUM_BINS).index_add(0, bins, probabilities - gains_nothing).abs()
    return GateCalibration(
        loop=loop,
        predicted=probabilities.mean().item(),
        measured=gains_nothing.mean().item(),
        error=(distances.sum() / len(bins)).item(),
        ranking=_ranking(probabilities, gains_nothing.bool()),
    )


def _ranking(scores: torch.Tensor, is_positive: torch.Tensor) -> float:
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    if not num_positive or not num_negative:
        return 0.5
    values, index, counts = scores.unique(return_inverse=True, return_counts=True)
    # equal scores share the mean of their ranks
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2).cpu().double()[index.cpu()]
    above = ranks[is_positive.cpu()].sum().item() - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)
