"""What the state after every loop says about the next token: the logit lens, the model's own readout, a fitted lens.

The logit lens reads any state with the final norm and the head. Where layers follow the loops (a coda), the model's
own answer after a loop goes through them, too: see [`loop_answers`]. In between is the fitted lens, an affine map for
every loop from its state to the final one, by least squares (tuned lens: https://huggingface.co/papers/2303.08112).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..models.backbone import Backbone
from ..models.checks import check_positive_int
from ..models.evaluation_mode import evaluation_mode
from .capture import Captured, capture, check_has_loops, model_inputs


@dataclass
class LensReading:
    """Logits of the next token after every loop.

    Args:
        logits (`torch.Tensor` of shape `[R, B, T, V]`): the logits, in float32.
    """

    logits: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        """The probabilities of all tokens, `[R, B, T, V]`."""
        return self.logits.softmax(dim=-1)

    def top(self, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `k` most probable tokens and their probabilities, each `[R, B, T, k]`."""
        probabilities, tokens = self.probabilities.topk(k, dim=-1)
        return tokens, probabilities

    def probability(self, token: int | torch.Tensor) -> torch.Tensor:
        """Return the probability `[R, B, T]` of a token, or of a token at every position `[B, T]`."""
        return self._pick(self.probabilities, token)

    def rank(self, token: int | torch.Tensor) -> torch.Tensor:
        """Return the number of tokens that are more probable than `token`, `[R, B, T]`: 0 for the most probable."""
        return (self.logits > self._pick(self.logits, token)[..., None]).sum(dim=-1)

    def _pick(self, values: torch.Tensor, token: int | torch.Tensor) -> torch.Tensor:
        tokens = torch.as_tensor(token, device=values.device).expand(values.shape[:-1])
        return values.gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def read_state(model: Any, state: torch.Tensor, is_normed: bool = False) -> torch.Tensor:
    """Compute the logits of any state `[..., T, D]` with the final norm and the head, in float32.

    Args:
        model (`PreTrainedModel`): a causal language model.
        state (`torch.Tensor` of shape `[..., T, D]`): the state.
        is_normed (`bool`, *optional*, defaults to `False`): whether the final norm has been applied to it.

    Raises:
        ValueError: if the model has no language-model head.
    """
    if not hasattr(model, "read_logits"):
        raise ValueError(f"model must have a language-model head, got {type(model).__name__}")
    normed = state if is_normed else Backbone(model.base_model).norm(state)
    return model.read_logits(normed).float()


def logit_lens(model: Any, captured: Captured, layer: int | None = None, last: int = 0) -> LensReading:
    """Read the state after every loop, or after one layer in every loop, with the final norm and the head.

    Args:
        model (`PreTrainedModel`): the causal language model that was captured.
        captured (`Captured`): its states.
        layer (`int`, *optional*): the layer in the backbone, by default the state after the loop.
        last (`int`, *optional*, defaults to 0): read so many positions from the end; 0 for all. Logits of all
            positions and loops need much memory.

    Raises:
        ValueError: if the model has no loops or no head, or the layer is not called once in every loop.
    """
    states = [state[:, -last:] for state in states_over_loops(captured, layer)]
    is_normed = layer is None and Backbone(model.base_model).depth.ends_with_norm
    return LensReading(torch.stack([read_state(model, state, is_normed) for state in states]))


def states_over_loops(captured: Captured, layer: int | None = None) -> list[torch.Tensor]:
    """Return the state after every loop, or after one layer in every loop, each `[B, T, D]`.

    Raises:
        ValueError: if there are no loops, or the layer is not called once in every loop.
    """
    states = captured.loop_states
    if not states:
        raise ValueError("the captured model has no loops")
    return states if layer is None else [captured.state(loop, layer) for loop in range(len(states))]


def loop_answers(
    model: Any, inputs: torch.Tensor | Mapping[str, Any], num_loops: int | None = None, last: int = 0
) -> LensReading:
    """Compute what a model answers after every loop, through its coda.

    A looped model reads every loop of one pass. Others are run once for each number of loops: the memory of a feedback
    or sleep model is then one of so many loops, too.

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        inputs (`torch.Tensor` or `Mapping`): as in [`capture`].
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        last (`int`, *optional*, defaults to 0): read so many positions from the end; 0 for all.

    Raises:
        ValueError: if the model has no loops, or `num_loops` is no positive integer.
    """
    check_has_loops(model)
    num_loops = check_positive_int("num_loops", model.config.num_loops if num_loops is None else num_loops)
    given = model_inputs(model, inputs, logits_to_keep=last)
    with evaluation_mode(model):
        if model.config.model_type == "looped_lm":
            logits = model(**given, num_loops=num_loops, output_loop_logits=True).loop_logits
        else:
            logits = [model(**given, num_loops=count).logits for count in range(1, num_loops + 1)]
    return LensReading(torch.stack(list(logits)).float())


@dataclass
class FittedLens:
    """An affine map for every loop, from its state to the final state, see [`fit_lens`].

    Args:
        weights (`torch.Tensor` of shape `[R, D, D]`): what is added to the identity: `final = s + s W + b`.
        biases (`torch.Tensor` of shape `[R, D]`): the biases.
        layer (`int`, *optional*): the layer whose states are mapped, `None` for the state after the loop.
    """

    weights: torch.Tensor
    biases: torch.Tensor
    layer: int | None = None

    def read(self, model: Any, captured: Captured) -> LensReading:
        """Read the states of every loop.

        Raises:
            ValueError: if there are more loops than the lens was fitted for.
        """
        states = states_over_loops(captured, self.layer)
        if len(states) > len(self.weights):
            raise ValueError(f"the lens was fitted for {len(self.weights)} loops, got {len(states)}")
        is_normed = Backbone(model.base_model).depth.ends_with_norm
        maps = zip(states, self.weights.to(states[0]), self.biases.to(states[0]))
        mapped = [state + state @ weight + bias for state, weight, bias in maps]
        return LensReading(torch.stack([read_state(model, state, is_normed) for state in mapped]))


def fit_lens(
    model: Any,
    batches: Iterable[torch.Tensor | Mapping[str, Any]],
    num_loops: int | None = None,
    layer: int | None = None,
    ridge: float = 1e-4,
) -> FittedLens:
    """Fit the affine maps from the states of every loop to the final state by least squares.

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        batches (`Iterable`): inputs as in [`capture`], not those that the lens shall read. Padding is left out.
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.
        layer (`int`, *optional*): the layer whose states to map, by default the state after the loop.
        ridge (`float`, *optional*, defaults to 1e-4): weight of the pull towards the identity (the logit lens), in
            units of the mean square of the state's entries.

    Raises:
        ValueError: if there is no batch, `ridge` is not positive, or a state is no finite number.
    """
    if not ridge > 0:
        raise ValueError(f"`ridge` must be positive, got {ridge}")
    squares: list[Any] = []
    for batch in batches:
        captured = capture(model, batch, num_loops)
        final = captured.tokens_of(final_state(captured)).cpu().double()
        states = [captured.tokens_of(state).cpu().double() for state in states_over_loops(captured, layer)]
        for loop, state in enumerate([*states, final], 1):
            if not state.isfinite().all():
                where = f"after loop {loop}" if loop <= len(states) else "at the end"
                raise ValueError(f"a lens cannot be fitted: the state {where} has entries that are no finite numbers")
        squares = squares or [0] * len(states)
        for loop, state in enumerate(states):
            ones = torch.cat([state, torch.ones_like(state[:, :1])], dim=1)
            squares[loop] = squares[loop] + ones.T @ torch.cat([ones, final - state], dim=1)
    if not squares:
        raise ValueError("batches is empty; there is nothing to fit")
    solved = []
    for square in squares:
        size = square.shape[0]
        gram, target = square[:, :size], square[:, size:]
        # the constant is not pulled
        pull = gram.diagonal()[:-1].mean() * torch.ones(size, dtype=gram.dtype)
        pull[-1] = 0
        solved.append(torch.linalg.solve(gram + ridge * pull.diag(), target))
    stacked = torch.stack(solved).float()
    return FittedLens(stacked[:, :-1], stacked[:, -1], layer)


def final_state(captured: Captured) -> torch.Tensor:
    """Return the state that the pass ended with `[B, T, D]`: the last of the coda's, or that after the last loop."""
    last = [item.call for item in captured.calls if item.place[:2] == (0, 0)][-1]
    return captured.state(None, last.layer) if last.loop is None else captured.loop_states[-1]


__all__ = ["FittedLens", "LensReading", "fit_lens", "logit_lens", "loop_answers", "read_state"]
