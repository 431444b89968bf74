"""One change of the states of a forward pass, by loop, layer and position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.checks import whole_number
from .places import Place
from .watching import CallEvent


# takes a call and its state at the tokens `[B, n, D]`, and returns what to put in its place, `[B or 1, n or 1, D]`
Replace = Callable[[CallEvent, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Intervention:
    """A change of the state after one layer call or one loop, or after the same of all later loops.

    It changes tokens only: the rows of a feedback memory stay as the layer computed them.

    Args:
        replace (`Callable`): takes a [`CallEvent`] and the state at its tokens `[B, n, D]`, returns the new one.
        loop (`int`, *optional*): the loop, from 0; `None` for a layer outside of loops.
        layer (`int`, *optional*): the layer in the backbone; `None` for the state after the loop.
        slot (`int`, *optional*): the cache slot, for one of several calls of a layer in a loop; by default all.
        remaining (`bool`, *optional*, defaults to `False`): whether to change all later loops, too.
        positions (`Sequence[int]` or `torch.BoolTensor` of shape `[B, T]` or `[1, T]`, *optional*): the tokens to
            change, by their positions from 0 in every row, or row by row; by default all.

    Raises:
        ValueError: if neither a loop nor a layer is given, one of them is negative, or `slot` is given for the state
            after a loop.
    """

    replace: Replace
    loop: int | None = None
    layer: int | None = None
    slot: int | None = None
    remaining: bool = False
    positions: Sequence[int] | torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.loop is None and (self.layer is None or self.remaining):
            raise ValueError(f"an intervention needs a loop, got layer={self.layer}, remaining={self.remaining}")
        if self.layer is None and self.slot is not None:
            raise ValueError(f"`slot` tells calls of one layer apart and needs `layer`, got slot={self.slot}")
        for name in ("loop", "layer"):
            value = getattr(self, name)
            number = whole_number(value)
            if value is not None and (number is None or number < 0):
                raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}")

    def after_call(self, event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        """Change the state after a layer call `[B, R, D]`, if it is meant."""
        is_call = self.layer == event.call.layer and self.slot in (None, event.call.slot)
        return self.change(event, state) if is_call and self.is_loop(event.call.loop) else state

    def after_loop(self, event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        """Change the state after a loop `[B, R, D]`, if it is meant."""
        return self.change(event, state) if self.layer is None and self.is_loop(event.call.loop) else state

    def is_loop(self, loop: int | None) -> bool:
        """Whether a loop is meant."""
        if self.remaining and loop is not None and self.loop is not None:
            return loop >= self.loop
        return loop == self.loop

    def layers_from(self, loop: int) -> int:
        """Return the loop whose layers run in a loop."""
        return loop

    def change(self, event: CallEvent, state: torch.Tensor) -> torch.Tensor:
        """Change the tokens of a state `[B, R, D]`."""
        rows = event.place.rows
        tokens = state[:, rows]
        new = self.replace(event, tokens).to(tokens).expand_as(tokens)
        if self.positions is not None:
            is_meant = _positions_at(self.positions, event.place, tokens.device)
            new = torch.where(is_meant[..., None], new, tokens)
        return torch.cat([state[:, : rows.start], new, state[:, rows.stop :]], dim=1)


@dataclass(frozen=True)
class Swap(Intervention):
    """Two loops that run each other's layers, where a low-rank update per loop tells them apart, see [`swap`]."""

    second: int = 0

    def layers_from(self, loop: int) -> int:
        first: Any = self.loop
        return {first: self.second, self.second: first}.get(loop, loop)


def _positions_at(positions: Any, place: Place, device: torch.device) -> torch.Tensor:
    """Return which tokens of a place are meant, `[B or 1, n]`."""
    if isinstance(positions, torch.Tensor) and positions.dtype == torch.bool:
        return positions[:, place.start : place.start + place.num_tokens].to(device)
    own = range(place.start, place.start + place.num_tokens)
    chosen = {int(position) for position in positions}
    return torch.tensor([[position in chosen for position in own]], device=device)


def check_interventions(
    interventions: Sequence[Intervention], model: Any, shape: tuple[int, int], num_loops: Any
) -> None:
    """Refuse interventions that a forward pass has no place for: they would change nothing without a word.

    Args:
        interventions (`Sequence[Intervention]`): the interventions.
        model (`PreTrainedModel`): the model.
        shape (`tuple[int, int]`): rows and tokens of the input.
        num_loops (`int`, *optional*): number of loops, by default that of the configuration.

    Raises:
        ValueError: if a loop, a layer or a position does not exist.
    """
    num_rows, num_tokens = shape
    depth = {} if num_loops is None else {"num_loops": num_loops}
    calls = model.config.calls(**depth)
    for item in interventions:
        if isinstance(item, Swap):
            _check_swap(item, model, num_loops)
        known = [call for call in calls if item.layer in (None, call.layer) and item.slot in (None, call.slot)]
        if not any(item.is_loop(call.loop) for call in known):
            raise ValueError(f"no layer call has loop={item.loop}, layer={item.layer}, slot={item.slot}")
        if item.positions is None:
            continue
        if isinstance(item.positions, torch.Tensor) and item.positions.dtype == torch.bool:
            if item.positions.shape not in ((num_rows, num_tokens), (1, num_tokens)):
                raise ValueError(
                    f"`positions` must be of shape [{num_rows}, {num_tokens}], got {list(item.positions.shape)}"
                )
        elif any((number := whole_number(place)) is None or not 0 <= number < num_tokens for place in item.positions):
            raise ValueError(f"`positions` must be from 0 to {num_tokens - 1}, got {list(item.positions)}")


def _check_swap(swap: Swap, model: Any, num_loops: int | None) -> None:
    config = model.config
    if not getattr(config, "loop_lora_rank", 0):
        raise ValueError("loops can be swapped in a model with `loop_lora_rank` only: those of others are the same")
    num_loops = config.num_loops if num_loops is None else num_loops
    if not 0 <= swap.second < num_loops:
        raise ValueError(f"`second` must be from 0 to {num_loops - 1}, got {swap.second}")


__all__ = ["Intervention", "Replace", "Swap", "check_interventions"]
