"""Training masks on a frozen model, on rows that need one subroutine of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..evaluation.accuracy import padded_batches
from ..models.checks import check_positive_int
from ..models.evaluation_mode import kept_modes
from ..models.puzzle_loss import IGNORE_INDEX
from .masks import MaskScores, masked_weights, temperature_at


Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class MaskTraining:
    """How masks are trained.

    The procedure is that of https://huggingface.co/papers/2301.10884 (90 epochs, maximal temperature 200, Adam), with
    the temperature growing in every step, and the L0 penalty on the share of weights that are kept instead of their
    number, so that one value serves models of all sizes.

    Args:
        num_epochs (`int`, *optional*, defaults to 15): passes over the rows.
        batch_size (`int`, *optional*, defaults to 64): rows in a step.
        learning_rate (`float`, *optional*, defaults to 0.02): of Adam, on the scores.
        l0_penalty (`float`, *optional*, defaults to 2.0): weight of the share of kept weights in the loss.
        max_temperature (`float`, *optional*, defaults to 200.0): temperature of the soft masks at the end.
        initial_score (`float`, *optional*, defaults to 0.05): every score at the start.

    Raises:
        ValueError: if a value is out of range.
    """

    num_epochs: int = 15
    batch_size: int = 64
    learning_rate: float = 0.02
    l0_penalty: float = 2.0
    max_temperature: float = 200.0
    initial_score: float = 0.05

    def __post_init__(self) -> None:
        check_positive_int("num_epochs", self.num_epochs)
        check_positive_int("batch_size", self.batch_size)
        for name, low in (("learning_rate", 0.0), ("max_temperature", 1.0)):
            if not low < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above {low:g}, got {getattr(self, name)}")
        if not 0 <= self.l0_penalty < math.inf:
            raise ValueError(f"l0_penalty must not be negative, got {self.l0_penalty}")
        if not math.isfinite(self.initial_score):
            raise ValueError(f"initial_score must be a finite number, got {self.initial_score}")

    def num_steps(self, num_rows: int) -> int:
        """Count the steps on so many rows."""
        return self.num_epochs * math.ceil(num_rows / self.batch_size)


def train_masks(
    model: Any,
    rows: Rows,
    training: MaskTraining | None = None,
    *,
    per_loop: bool = False,
    outside: bool = False,
    seed: int = 0,
    after_step: Callable[[float], Any] | None = None,
) -> MaskScores:
    """Find the weights of looped layers that a model needs for some rows; the weights themselves stay as they are.

    Args:
        model (`PreTrainedModel`): a causal language model of any family.
        rows (`Sequence[Mapping]`): rows with `input_ids` and `labels`, as [`accuracy_over_loops`] takes them; every
            labelled token is in the loss.
        training (`MaskTraining`, *optional*): how the masks are trained.
        per_loop (`bool`, *optional*, defaults to `False`): whether every loop has a mask of its own.
        outside (`bool`, *optional*, defaults to `False`): whether layers outside of loops are masked too.
        seed (`int`, *optional*, defaults to 0): of the order of the rows.
        after_step (`Callable`, *optional*): called with the loss of every step.

    Returns:
        `MaskScores`: the scores; their [`~MaskScores.hard`] masks are the result.

    Raises:
        ValueError: if there are no rows, one has nothing to score, or no weight can be masked.
    """
    training = training or MaskTraining()
    if len(rows) == 0:
        raise ValueError("rows is empty; there is nothing to train masks on")
    scores = MaskScores(model, per_loop=per_loop, outside=outside, initial=training.initial_score)
    optimizer = torch.optim.Adam(scores.parameters(), lr=training.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    num_steps, step = training.num_steps(len(rows)), 0
    with kept_modes(model):
        model.eval()
        for _ in range(training.num_epochs):
            order = torch.randperm(len(rows), generator=generator).tolist()
            for batch in padded_batches([rows[index] for index in order], training.batch_size):
                # the first step is at temperature 1, the last one at the highest
                temperature = temperature_at(step, max(1, num_steps - 1), training.max_temperature)
                loss = _answer_loss(model, scores, batch, temperature)
                (loss + training.l0_penalty * scores.kept(temperature)).backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if after_step is not None:
                    after_step(loss.item())
    return scores


def _answer_loss(model: Any, scores: MaskScores, batch: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """Compute the mean loss of the labelled tokens with soft masks."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    with torch.enable_grad(), masked_weights(model, scores.soft(temperature)):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


__all__ = ["MaskTraining", "Rows", "train_masks"]
