"""How the tensors of a foreign checkpoint become ours: one rule for each tensor of the source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Rule:
    """One tensor of the source and what it becomes.

    Args:
        source (`str`): its name in the checkpoint.
        targets (`tuple[str, ...]`): the names in our model that it fills, one or more.
        split (`Callable`, *optional*): makes the tensors of `targets` from it, in their order; without it the one
            target is the tensor itself.
    """

    source: str
    targets: tuple[str, ...]
    split: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None


def rename(source: str, target: str) -> Rule:
    """The rule of a tensor that only has another name."""
    return Rule(source, (target,))


def apply_rules(rules: Sequence[Rule], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors from the checkpoint's.

    Args:
        rules (`Sequence[Rule]`): one for every tensor that the checkpoint must hold.
        tensors (`dict[str, torch.Tensor]`): the checkpoint's tensors by name. What a rule uses is taken out, so that
            what is left over afterwards is what no rule knows.

    Raises:
        ValueError: tensors are missing, or of a shape that cannot be split; the message names them.
    """
    missing = [rule.source for rule in rules if rule.source not in tensors]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} tensors: {', '.join(missing)}")
    converted: dict[str, torch.Tensor] = {}
    for rule in rules:
        tensor = tensors.pop(rule.source)
        try:
            # parts of one tensor get memory of their own, as parameters elsewhere have
            parts = [tensor] if rule.split is None else [part.clone() for part in rule.split(tensor)]
        except RuntimeError as error:
            raise ValueError(f"{rule.source} of shape {tuple(tensor.shape)} does not fit the configuration") from error
        converted |= dict(zip(rule.targets, parts, strict=True))
    return converted


def split_rows(*sizes: int) -> Callable[[torch.Tensor], Sequence[torch.Tensor]]:
    """Splits a fused projection into those it was made of, by their numbers of rows."""
    return partial(torch.split, split_size_or_sections=list(sizes))


def half_split_rotary(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Query or key rows for a rotation of channels i and i + head_dim/2, from those for channels 2i and 2i + 1.

    Args:
        rows (`torch.Tensor` of shape `[H * head_dim, ...]`): weight or bias of the projection.
        head_dim (`int`): channels of one head.
    """
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(rows.shape)


def drop_tied_head(tensors: dict[str, torch.Tensor], head: str, embedding: str) -> None:
    """Take the second copy of a tied embedding out of a checkpoint that stores both.

    Args:
        tensors (`dict[str, torch.Tensor]`): the checkpoint's tensors by name.
        head, embedding (`str`): the names of the head's weight, which may be absent, and of the token embedding.

    Raises:
        ValueError: the two are not equal, so that they were not tied.
    """
    copy = tensors.pop(head, None)
    if copy is not None and embedding in tensors and not torch.equal(copy, tensors[embedding]):
        raise ValueError(f"the checkpoint ties {head} to {embedding}, but they differ")


def check_settings(config: dict, supported: dict[str, tuple]) -> None:
    """Refuse settings that have no counterpart here.

    Args:
        config (`dict`): the source's configuration.
        supported (`dict[str, tuple]`): the values that a field may have, its default first.

    Raises:
        ValueError: a field has another value; the message names both.
    """
    for name, values in supported.items():
        if config.get(name, values[0]) not in values:
            known = " or ".join(repr(value) for value in values)
            raise ValueError(f"`{name}` of the checkpoint is {config[name]!r}; only {known} can be converted")


def check_schedule(config: PreTrainedConfig, schedule: dict[str, Any], layout: str) -> None:
    """Refuse to write a model whose schedule a published layout cannot say.

    Args:
        config (`PreTrainedConfig`): the model's configuration.
        schedule (`dict`): the fields that the layout has no choice in, with their values.
        layout (`str`): its name, for the message.

    Raises:
        ValueError: a field has another value; the message names both.
    """
    for name, value in schedule.items():
        if getattr(config, name) != value:
            raise ValueError(f"`{name}` of {layout} is always {value!r}, got {getattr(config, name)!r}")
