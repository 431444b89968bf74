"""Perplexity of a causal language model as a function of the number of loops."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..models.checks import check_positive_int, whole_number
from ..models.evaluation_mode import evaluation_mode
from .curves import LoopCurve, check_loops
from .running import trained_loops


def perplexity_over_loops(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Sequence[torch.Tensor],
    loops: Sequence[int],
    *,
    window: int = 512,
    batch_size: int = 1,
    label: str = "model",
    progress: bool = False,
) -> LoopCurve:
    """Measure the perplexity of a text at several loop counts.

    The text is cut into windows of `window` tokens that do not overlap; the last one may be shorter. Each window is
    read on its own, so its first token is not predicted. The value is `exp` of the mean negative log-likelihood over
    **all** predicted tokens (a short window weighs what its tokens weigh), computed in float32. It is higher than a
    sliding-window perplexity of the same text, in which every token has a long context.

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        input_ids (`torch.Tensor` of shape `[1, T]` or `[T]`, or a sequence of tensors `[T_i]`): the text's tokens, or
            windows that are already cut (`window` then does not matter).
        loops (`Sequence[int]`): the loop counts.
        window (`int`, *optional*, defaults to 512): tokens in a window.
        batch_size (`int`, *optional*, defaults to 1): windows of equal length in one forward pass.
        label (`str`, *optional*, defaults to `"model"`): the curve's name.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `LoopCurve`: with metric `"perplexity"`.

    Raises:
        ValueError: if the model is no causal language model with loops, a loop count is not a positive integer, or
            there are fewer than two tokens to predict from.
    """
    trained = trained_loops(model)
    loops = sorted(check_loops(loops))
    batch_size = check_positive_int("batch_size", batch_size)
    batches = batch_windows(cut_windows(input_ids, window), batch_size)
    num_predicted = sum(batch.shape[0] * (batch.shape[1] - 1) for batch in batches)
    values = []
    with evaluation_mode(model), tqdm(total=len(loops) * len(batches), disable=not progress, desc=label) as bar:
        for num_loops in loops:
            total = 0.0
            for batch in batches:
                total += _negative_log_likelihood(model, batch.to(model.device), num_loops)
                bar.update()
            values.append(exp_or_infinity(total / num_predicted))
    return LoopCurve(
        metric="perplexity",
        label=label,
        num_loops=loops,
        values=values,
        trained_loops=trained,
    )


def cut_windows(input_ids: torch.Tensor | Sequence[torch.Tensor], window: int) -> list[torch.Tensor]:
    """Cut a text into windows `[T]` that do not overlap, as [`perplexity_over_loops`] describes.

    Raises:
        ValueError: if there are fewer than two tokens to predict from, or an argument has another form.
    """
    window = check_window(window)
    if isinstance(input_ids, torch.Tensor):
        if input_ids.dim() > 2 or (input_ids.dim() == 2 and input_ids.shape[0] != 1):
            raise ValueError(f"input_ids must have the shape [1, T] or [T], got {list(input_ids.shape)}")
        windows = list(input_ids.reshape(-1).split(window))
    else:
        windows = [torch.as_tensor(tokens).reshape(-1) for tokens in input_ids]
    # a window of one token predicts nothing
    windows = [tokens for tokens in windows if len(tokens) >= 2]
    if not windows:
        raise ValueError("input_ids holds fewer than two tokens; there is nothing to predict")
    return windows


def check_window(window: int) -> int:
    """Return the tokens in a window after checking that they are a whole number, with one to predict.

    Raises:
        ValueError: if they are not.
    """
    number = whole_number(window)
    if number is None or number < 2:
        raise ValueError(f"window must be an integer of at least 2 (the first is not predicted), got {window!r}")
    return number


def batch_windows(windows: list[torch.Tensor], batch_size: int) -> list[torch.Tensor]:
    """Group consecutive windows of equal length, `[B, T]` each, so that nothing needs padding."""
    groups: list[list[torch.Tensor]] = []
    for tokens in windows:
        if groups and len(groups[-1]) < batch_size and len(groups[-1][0]) == len(tokens):
            groups[-1].append(tokens)
        else:
            groups.append([tokens])
    return [torch.stack(group) for group in groups]


def _negative_log_likelihood(model: PreTrainedModel, input_ids: torch.Tensor, num_loops: int) -> float:
    logits = model(input_ids=input_ids, num_loops=num_loops, use_cache=False).logits
    return float(cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="sum"))


def exp_or_infinity(mean: float) -> float:
    """Return `exp(mean)`, or infinity where that is too large for a float, or `mean` is no number.

    A model whose state overflowed predicts nothing.
    """
    try:
        return math.inf if math.isnan(mean) else math.exp(mean)
    except OverflowError:
        return math.inf
