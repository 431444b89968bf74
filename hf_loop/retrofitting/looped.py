"""A looped model out of a pretrained decoder, by moving its modules."""

import os
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..models import LoopedConfig, LoopedForCausalLM


def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike,
    family: Literal["looped"] = "looped",
    *,
    num_prelude_layers: int = 0,
    num_coda_layers: int = 0,
    num_loops: int = 1,
    injection: Literal["none", "add", "concat", "diagonal"] = "none",
    state_init: Literal["input", "zeros", "normal", "learned"] | None = None,
    loop_norm: bool = False,
) -> LoopedForCausalLM:
    """Run the layers of a pretrained causal model on a looped schedule.

    The modules move: no weight is copied, and the model passed in should not be used afterwards. With one loop and the
    injections `none`, `add` and `concat` (and no `loop_norm`) the logits equal the original's bit for bit.

    Args:
        model_or_path (`PreTrainedModel` or `str`): a causal model of a supported backbone, or where to load one from.
        family (`str`): the kind of recurrent model; `"looped"`.
        num_prelude_layers (`int`): layers that run once before the core.
        num_coda_layers (`int`): layers that run once after the core.
        num_loops (`int`): times the core runs by default.
        injection (`str`): how the prelude's output enters each loop, see [`LoopedConfig`].
        state_init (`str`, *optional*): the first state; by default `"input"` without an injection, else `"zeros"`,
            which keeps one loop equal to the original.
        loop_norm (`bool`): whether an RMS norm ends every loop.

    Returns:
        `LoopedForCausalLM`, on the device and in the dtype of the original.

    Raises:
        ValueError: the family or the architecture is not supported, or the layer counts leave no core.
    """
    if family != "looped":
        raise ValueError(f"`family` must be 'looped', got {family!r}")
    base: Any = model_or_path
    if not isinstance(base, PreTrainedModel):
        base = AutoModelForCausalLM.from_pretrained(base)
    if isinstance(base, LoopedForCausalLM):
        raise ValueError("`model_or_path` is a looped model already")

    config = LoopedConfig(
        backbone_config=base.config,
        num_prelude_layers=num_prelude_layers,
        num_coda_layers=num_coda_layers,
        num_loops=num_loops,
        injection=injection,
        state_init=state_init or ("input" if injection == "none" else "zeros"),
        loop_norm=loop_norm,
        dtype=base.dtype,
    )
    with torch.device("meta"):
        looped: Any = LoopedForCausalLM(config)
    looped.model.backbone = base.base_model
    looped.lm_head = base.get_output_embeddings()
    _materialize(looped, base.device, base.dtype)
    looped.generation_config = base.generation_config
    looped.name_or_path = base.name_or_path
    return looped.train(base.training)


def _materialize(looped: LoopedForCausalLM, device: torch.device, dtype: torch.dtype) -> None:
    """Give the modules that the original did not have their initial weights."""
    new_modules: list[nn.Module] = [looped.model.injection, looped.model]
    if looped.config.loop_norm:
        new_modules.append(looped.model.loop_norm)
    for module in new_modules:
        recurse = module is not looped.model
        if recurse or looped.config.state_init == "learned":
            module.to_empty(device=device, recurse=recurse)
        for parameter in module.parameters(recurse=recurse):
            parameter.data = parameter.data.to(dtype)
        looped._init_weights(module)
