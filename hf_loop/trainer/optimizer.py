"""Parameter groups: what decays, and what Muon trains."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn
from transformers import TrainingArguments

from .muon import Muon


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some parameter groups and AdamW for the others, behind one optimizer.

    A learning-rate scheduler, a gradient scaler and a checkpoint each see one list of groups and one state.

    Args:
        params (`list[dict]`): parameter groups, each a dict with `params`, `use_muon` and any option of
            `torch.optim.Muon` or `torch.optim.AdamW`.

    Raises:
        ValueError: if a Muon group holds a parameter that is not a matrix.
    """

    def __init__(self, params: list[dict[str, Any]]) -> None:
        inner: list[tuple[bool, torch.optim.Optimizer]] = []
        for use_muon, optimizer_class in ((True, Muon), (False, torch.optim.AdamW)):
            groups = [group for group in params if group["use_muon"] is use_muon]
            if groups:
                inner.append((use_muon, optimizer_class(groups)))
        super().__init__([group for _, optimizer in inner for group in optimizer.param_groups], defaults={})
        self._inner = inner

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step both optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for use_muon, optimizer in self._inner:
            # handed over anew every time: loading a checkpoint replaces the groups and the state
            optimizer.param_groups = [group for group in self.param_groups if group["use_muon"] is use_muon]
            optimizer.state = self.state
            optimizer.step()
        return loss


def muon_parameter_names(model: nn.Module) -> set[str]:
    """Name the parameters that Muon trains: the trainable matrices of the decoder layers.

    Not among them, and left to AdamW: embeddings and heads (outside the layers), norms and biases (no matrices), the
    injection, low-rank adapters, and weights stacked over experts (three dimensions).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    names = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        in_layers = any(part.isdigit() for part in parts)  # layers live in a ModuleList
        excluded = "injection" in parts or "lora" in name.lower() or id(parameter) in embeddings
        if parameter.requires_grad and parameter.ndim == 2 and in_layers and not excluded:
            names.add(name)
    return names


def undecayed_parameter_names(model: nn.Module) -> set[str]:
    """Name the parameters that weight decay must leave alone.

    They are the vectors (gains of norms, biases, a learned initial state, and their differences per loop, which are
    stacked) and the whole injection: its time constants mean something other than zero at rest, and its matrices start
    at the identity.
    """
    names = set()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        num_stacked = 1 if "loop_lora" in parts else 0
        if parameter.ndim < 2 + num_stacked or "injection" in parts:
            names.add(name)
    return names


def build_muon_adamw(
    model: nn.Module, args: TrainingArguments, muon_learning_rate: float | None, decay_parameters: set[str]
) -> MuonAdamW:
    """Put every trainable parameter of `model` in exactly one group.

    Muon runs with `adjust_lr_fn="match_rms_adamw"`, which scales the update to the root mean square of AdamW's
    (arXiv 2502.16982), so that a learning rate and a weight decay found for AdamW hold for both.

    Args:
        model (`nn.Module`): the model.
        args (`TrainingArguments`): gives `learning_rate`, `weight_decay` and AdamW's betas and epsilon.
        muon_learning_rate (`float`, *optional*): the learning rate of Muon; `None` takes `args.learning_rate`.
        decay_parameters (`set[str]`): names of the parameters that decay.

    Raises:
        ValueError: if no trainable matrix lies inside the layers, so that Muon has nothing to train.
    """
    muon_names = muon_parameter_names(model)
    if not muon_names:
        raise ValueError("use_muon=True, but the model has no trainable matrix inside its layers")
    muon_options = {
        "use_muon": True,
        "lr": args.learning_rate if muon_learning_rate is None else muon_learning_rate,
        "adjust_lr_fn": "match_rms_adamw",
    }
    adamw_options = {
        "use_muon": False,
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in muon_names, name in decay_parameters), []).append(parameter)
    return MuonAdamW(
        [
            {
                "params": parameters,
                "weight_decay": args.weight_decay if decays else 0.0,
                **(muon_options if use_muon else adamw_options),
            }
            for (use_muon, decays), parameters in groups.items()
        ]
    )
