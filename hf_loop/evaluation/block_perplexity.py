"""Perplexity of a causal language model along a long text, block by block."""

from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..models.checks import check_int, check_positive_int
from ..models.evaluation_mode import evaluation_mode
from ..models.transformers_seams import cache_of, named_cache
from .perplexity import exp_or_infinity


@dataclass
class BlockCurve:
    """The loss along long texts.

    Args:
        label (`str`): what was measured, as the figure's legend names it.
        block_size (`int`): tokens in a block.
        losses (`list[list[float]]`): of each text, the mean negative log-likelihood of the tokens of every block.
        num_predicted (`list[int]`): the number of tokens of every block that were predicted, the same for all texts.

    Raises:
        ValueError: if there is no text, or a text has another number of blocks than `num_predicted`.
    """

    label: str
    block_size: int
    losses: list[list[float]]
    num_predicted: list[int]

    def __post_init__(self) -> None:
        lengths = {len(losses) for losses in self.losses}
        if lengths != {len(self.num_predicted)}:
            raise ValueError(f"losses must hold {len(self.num_predicted)} blocks of every text, got {sorted(lengths)}")

    @property
    def perplexity(self) -> float:
        """`exp` of the mean negative log-likelihood over all predicted tokens."""
        return exp_or_infinity(_weighted_mean(self.losses, self.num_predicted))

    def perplexities(self) -> list[float]:
        """Return the perplexity of every block, over all texts."""
        return [exp_or_infinity(fmean(losses)) for losses in zip(*self.losses, strict=True)]

    def difference_from(self, other: "BlockCurve") -> tuple[float, float]:
        """Compute how much higher the mean loss is than another model's on the same texts.

        Returns:
            `tuple[float, float]`: the difference in nats a token, and its standard error over blocks.

        Raises:
            ValueError: if the curves are not of the same blocks.
        """
        if (self.block_size, len(self.losses), len(self.num_predicted)) != (
            other.block_size,
            len(other.losses),
            len(other.num_predicted),
        ):
            raise ValueError(f"{self.label!r} and {other.label!r} must be measured on the same blocks")
        differences = [
            mine - theirs
            for own_losses, other_losses in zip(self.losses, other.losses, strict=True)
            for mine, theirs in zip(own_losses, other_losses, strict=True)
        ]
        error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        return fmean(differences), error


def perplexity_by_block(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    block_size: int = 256,
    window: int | None = None,
    label: str = "model",
    progress: bool = False,
) -> BlockCurve:
    """Measure how well a causal language model predicts long texts, block by block.

    A text is read from its beginning, one block after the other, with the model's cache of what was before: everything
    in a plain transformers model, the kept blocks and the memory in a feedback model. Only the logits of one block are
    held at a time. The first token is not predicted.

    Args:
        model (`PreTrainedModel`): any causal language model with a cache.
        input_ids (`torch.Tensor` of shape `[B, T]` or `[T]`): texts of equal length, without padding.
        block_size (`int`, *optional*, defaults to 256): tokens in a block, which need not be the model's own.
        window (`int`, *optional*): forget everything after so many tokens, a multiple of `block_size`, as a model must
            that was trained on such windows; the first token of a window is then not predicted either. By default
            nothing is forgotten.
        label (`str`, *optional*, defaults to `"model"`): the curve's name.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `BlockCurve`: the losses; a rest of the text that fills no block is left out.

    Raises:
        ValueError: if the text is shorter than a block, or an argument has another form.
    """
    block_size = check_int("block_size", block_size, 2)
    window = None if window is None else check_positive_int("window", window)
    if window is not None and (window < block_size or window % block_size):
        raise ValueError(f"window must be a multiple of block_size {block_size}, got {window}")
    if input_ids.dim() not in (1, 2):
        raise ValueError(f"input_ids must have the shape [B, T] or [T], got {list(input_ids.shape)}")
    texts = input_ids.reshape(-1, input_ids.shape[-1])
    num_blocks = texts.shape[1] // block_size
    if num_blocks == 0:
        raise ValueError(f"input_ids must hold at least a block of {block_size} tokens, got {texts.shape[1]}")
    losses, num_predicted = [], []
    cache = last_logits = None
    blocks = texts[:, : num_blocks * block_size].split(block_size, dim=1)
    with evaluation_mode(model):
        for index, block in enumerate(tqdm(blocks, disable=not progress, desc=label)):
            if window is not None and index * block_size % window == 0:
                cache = last_logits = None
            outputs = model(input_ids=block.to(model.device), **named_cache(cache), use_cache=True)
            # the first token of a block is predicted by the last one before it
            logits, targets = outputs.logits[:, :-1], block[:, 1:]
            if last_logits is not None:
                logits, targets = torch.cat([last_logits, logits], dim=1), block
            losses.append(_mean_losses(logits, targets.to(logits.device)))
            num_predicted.append(targets.shape[1])
            cache, last_logits = cache_of(outputs), outputs.logits[:, -1:]
    return BlockCurve(label, block_size, torch.stack(losses, dim=1).tolist(), num_predicted)


def _mean_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood `[B]` of targets `[B, n]`."""
    losses = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(-1).cpu().double()


def _weighted_mean(losses: list[list[float]], weights: list[int]) -> float:
    total = sum(loss * weight for row in losses for loss, weight in zip(row, weights, strict=True))
    return total / (len(losses) * sum(weights))
