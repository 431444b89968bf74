"""What a way to decode costs in quality: perplexity and next-token accuracy of a text, measured as it decodes.

In one pass over a window every token sees the others of its pass at the same loop. Token by token with a cache it sees
what the cache holds. Under an approximate cache policy, and under a rule that reads logits through a coda, these are
two numbers; such settings are therefore measured token by token, many windows side by side. All others are measured in
one pass, which gives the same.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..models import GivenExits
from ..models.evaluation_mode import evaluation_mode
from ..models.exits import RULES, ExitRule, LoopStep, Memory
from ..models.loop_cache import parse_policy
from ..models.transformers_seams import cache_of, named_cache
from .perplexity import exp_or_infinity


# windows in one pass
PASS_ROWS = 4
EXACT_POLICIES = ("own", "window")


@dataclass
class Quality:
    """How well a text was predicted.

    Args:
        perplexity (`float`): `exp` of the mean negative log-likelihood of the predicted tokens.
        accuracy (`float`): share of them that were the most probable token.
        loops (`float`, *optional*): mean number of loops of the tokens that they were predicted from; `None` of a
            model without loops.
    """

    perplexity: float
    accuracy: float
    loops: float | None = None


class _Sums:
    def __init__(self) -> None:
        self.loss, self.right, self.loops, self.count = 0.0, 0, 0.0, 0

    def add(self, outputs: Any, targets: torch.Tensor) -> None:
        logits = outputs.logits.float()
        self.loss += float(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        self.right += int((logits.argmax(dim=-1) == targets).sum())
        self.count += targets.numel()
        loops = getattr(outputs, "exit_loops", None)
        if loops is None and getattr(outputs, "num_loops", None) is not None:
            loops = outputs.num_loops[:, None].expand_as(targets)
        self.loops += math.nan if loops is None else float(loops.sum())

    def quality(self) -> Quality:
        loops = self.loops / self.count
        return Quality(
            exp_or_infinity(self.loss / self.count), self.right / self.count, None if math.isnan(loops) else loops
        )


def decodes_in_steps(model: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether reading a text in one pass differs from decoding it token by token.

    Args:
        model (`PreTrainedModel`): the model.
        arguments (`Mapping`): arguments of `forward`.
    """
    rule = RULES.get(arguments.get("exit_criterion", ""))
    reads_coda = rule is not None and rule.needs_logits and getattr(model.config, "num_coda_layers", 0) > 0
    return reads_coda or parse_policy(arguments.get("cache_policy")).name not in EXACT_POLICIES


def score(
    model: Any, windows: Sequence[torch.Tensor], arguments: Mapping[str, Any], in_steps: bool | None = None
) -> Quality:
    """Measure how well a model predicts every token of the windows but the first of each.

    Args:
        model (`PreTrainedModel`): a causal language model.
        windows (`Sequence[torch.Tensor]`): windows of a text, `[B, T]` each.
        arguments (`Mapping`): arguments of `forward`.
        in_steps (`bool`, *optional*): whether to decode token by token, by default where one pass would differ.

    Raises:
        ValueError: if the model refuses the arguments.
        TypeError: if it does not know them.
    """
    in_steps = decodes_in_steps(model, arguments) if in_steps is None else in_steps
    sums = _Sums()
    with evaluation_mode(model):
        for window in windows:
            window = window.to(model.device)
            inputs, targets = window[:, :-1], window[:, 1:]
            if in_steps:
                cache = None
                for step in range(inputs.shape[1]):
                    part = slice(step, step + 1)
                    outputs = model(inputs[:, part], use_cache=True, **named_cache(cache), **arguments)
                    cache = cache_of(outputs)
                    sums.add(outputs, targets[:, part])
                continue
            for rows in _passes(inputs):
                sums.add(model(inputs[rows], use_cache=False, **arguments), targets[rows])
    return sums.quality()


def oracle_loops(model: Any, window: torch.Tensor, num_loops: int, margin: float | None = None) -> torch.Tensor:
    """Find after how many loops every token's prediction is as good as after the last one.

    Args:
        model (`LoopedForCausalLM`): the model.
        window (`torch.LongTensor` of shape `[B, T]`): a text.
        num_loops (`int`): number of loops.
        margin (`float`, *optional*): by default the prediction must be the same most probable token; with a margin,
            the loss of the text's next token may be larger by so many nats at most.

    Returns:
        `torch.LongTensor` of shape `[B, T - 1]`: the fewest loops, from 1.
    """
    inputs, targets = window[:, :-1], window[:, 1:]
    found = []
    with evaluation_mode(model):
        # one window at a time: the logits of all loops are large
        for row in range(len(inputs)):
            outputs = model(inputs[row : row + 1], num_loops=num_loops, output_loop_logits=True)
            if margin is None:
                best = torch.cat([logits.argmax(dim=-1) for logits in outputs.loop_logits])
                is_good = best == best[-1]
            else:
                logits = torch.cat(outputs.loop_logits).float()
                losses = cross_entropy(logits.mT, targets[row].expand(num_loops, -1), reduction="none")
                is_good = losses <= losses[-1] + margin
            # the first of equal largest values
            found.append(is_good.int().argmax(dim=0) + 1)
    return torch.stack(found)


def score_oracle(model: Any, windows: Sequence[torch.Tensor], num_loops: int, margin: float | None) -> Quality:
    """Measure a text as [`score`], every token with the loops of [`oracle_loops`].

    This is no way to decode, but what a rule could reach: the loops come from the results that they lead to.
    """
    sums = _Sums()
    with evaluation_mode(model):
        for window in windows:
            window = window.to(model.device)
            exit_loops = oracle_loops(model, window, num_loops, margin)
            for rows in _passes(window):
                rule = GivenExits(exit_loops[rows])
                outputs = model(window[rows, :-1], use_cache=False, num_loops=num_loops, exit_criterion=rule)
                sums.add(outputs, window[rows, 1:])
    return sums.quality()


class ScriptedExits(ExitRule):
    """Done after given numbers of loops, of which every further pass takes as many as it has tokens.

    Args:
        exit_loops (`torch.LongTensor` of shape `[B, T]`): loops of every token of all passes.
    """

    name = "scripted"

    def __init__(self, exit_loops: torch.Tensor):
        super().__init__()
        self.exit_loops, self.num_read = exit_loops, 0

    def __call__(self, step: LoopStep, memory: Memory) -> tuple[torch.Tensor, Memory]:
        if memory is None:
            first, self.num_read = self.num_read, self.num_read + step.state.shape[1]
            memory = self.exit_loops[:, first : self.num_read]
        return step.loops[:, None] >= memory, memory


def _passes(rows: torch.Tensor) -> Iterator[slice]:
    for first in range(0, len(rows), PASS_ROWS):
        yield slice(first, first + PASS_ROWS)
