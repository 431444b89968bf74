"""A look inside the loops of a model at one prompt: what it would answer after every loop, and how its state moves."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..models.checks import check_positive_int
from .capture import Captured, capture
from .dynamics import find_cycles, loop_dynamics
from .inspection_results import ANSWER, Inspection, known
from .lens import LensReading, logit_lens, loop_answers


def inspect_prompt(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[int],
    *,
    num_loops: int | None = None,
    layer: int | None = None,
    last: int = 8,
    token: str | None = None,
    tolerance: float = 1e-3,
    label: str = "model",
) -> Inspection:
    """Look inside the loops of a model at the last tokens of a prompt.

    Args:
        model (`PreTrainedModel`): a causal language model with loops, of any family.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompt (`str` or `Sequence[int]`): the prompt, or its tokens.
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        layer (`int`, *optional*): read the output of this layer of the core in every loop with the final norm and the
            head (the logit lens); by default the model's own answer after every loop is read.
        last (`int`, *optional*, defaults to 8): tokens to look at, from the end of the prompt.
        token (`str`, *optional*): a token whose rank to follow.
        tolerance (`float`, *optional*, defaults to 1e-3): the relative distance of states that count as equal in
            [`find_cycles`].
        label (`str`, *optional*, defaults to `"model"`): the model's name.

    Returns:
        `Inspection`: what was found.

    Raises:
        ValueError: if the model has no loops, `last` is no positive integer, `token` is not one token, the prompt is
            empty, or the layer does not run once in every loop.
    """
    last = check_positive_int("last", last)
    if not model.config.has_loops:
        raise ValueError(f"{label} is a {model.config.model_type} model, which does not run in loops")
    followed = None if token is None else find_token(tokenizer, token)
    is_text = isinstance(prompt, str)
    input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"].long() if is_text else torch.tensor([list(prompt)])
    if input_ids.shape[1] == 0:
        raise ValueError("the prompt is empty")
    captured = capture(model, input_ids, num_loops)
    if layer is not None:
        check_core_layer(captured, layer)
        reading = logit_lens(model, captured, layer, last)
    else:
        reading = loop_answers(model, input_ids, num_loops, last)
    reading = LensReading(reading.logits.cpu())
    best, probability = (part[:, 0, :, 0] for part in reading.top())
    dynamics = loop_dynamics(captured)
    # of tokens that stand still there is no direction
    steps = {name: getattr(dynamics, name)[:, 0, -last:].nanmean(dim=-1) for name in vars(dynamics)}
    means: dict[str, Any] = {name: known(values) for name, values in steps.items()}
    follows: dict[str, Any] = {} if followed is None else _follow(reading, followed, str(token))
    periods, since = (found[0, -last:].tolist() for found in find_cycles(captured, tolerance))
    tokens = input_ids[0, -last:].tolist()
    start = input_ids.shape[1] - len(tokens)
    return Inspection(
        label=label,
        prompt=prompt if isinstance(prompt, str) else str(tokenizer.decode(list(prompt))),
        readout=ANSWER if layer is None else f"layer {layer}",
        trained_loops=model.config.num_loops,
        positions=list(range(start, start + len(tokens))),
        tokens=[show_token(tokenizer, index) for index in tokens],
        top=[[show_token(tokenizer, index) for index in row] for row in best.tolist()],
        probability=[known(row) for row in probability],
        **means,
        periods=periods,
        since=since,
        **follows,
    )


def _follow(reading: LensReading, index: int, token: str) -> dict[str, Any]:
    return {
        "followed": token,
        "followed_rank": reading.rank(index)[:, 0].tolist(),
        "followed_probability": [known(row) for row in reading.probability(index)[:, 0]],
    }


def check_core_layer(captured: Captured, layer: int) -> None:
    """Refuse a layer that does not run once in every loop.

    Raises:
        ValueError: if it does not; the message names those that do.
    """
    per_loop: dict[int, set[int]] = {}
    for item in captured.calls:
        if item.call.loop == 0:
            per_loop.setdefault(item.call.layer, set()).add(item.call.slot)
    once = sorted(index for index, slots in per_loop.items() if len(slots) == 1)
    if layer not in once:
        choice = f"one of {', '.join(map(str, once))}" if once else "None: every layer runs several times in a loop"
        raise ValueError(f"`layer` must be {choice}, got {layer}")


def find_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of the one token that a text is.

    Raises:
        ValueError: if it is none, or several.
    """
    found = tokenizer.encode(text, add_special_tokens=False)
    if len(found) != 1:
        pieces = ", ".join(repr(tokenizer.decode([index])) for index in found)
        raise ValueError(f"{text!r} is {len(found)} tokens ({pieces}) and not one; mind the space in front of a word")
    if found[0] == tokenizer.unk_token_id and text != tokenizer.unk_token:
        raise ValueError(f"{text!r} is no token of this model")
    return found[0]


def show_token(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """Return a token as text on one line, without the space in front of a word; blanks are quoted."""
    if index >= len(tokenizer):
        # rows of the embeddings beyond the vocabulary
        return f"[{index}]"
    text = str(tokenizer.decode([index]))
    return repr(text) if not text.strip() else repr(text.strip())[1:-1]


__all__ = ["inspect_prompt"]
