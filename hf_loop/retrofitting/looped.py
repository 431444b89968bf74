"""A looped model out of a pretrained decoder."""

import copy
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ..layer_ranges import plan_layers
from ..models import LoopedConfig, LoopedForCausalLM
from ..models.adapters import refuse_adapter
from ..models.backbone import backbone_spec, get_part
from ..models.loop_lora import check_targets
from .folding import check_foldable, fold_layers, full_rank
from .layer_selection import keep_layers
from .moving import materialize, move_into


def retrofit_looped(
    base: PreTrainedModel,
    *,
    num_prelude_layers: int | None = None,
    num_coda_layers: int | None = None,
    core_layers: str | None = None,
    num_loops: int = 1,
    injection: Literal["none", "add", "concat", "diagonal"] = "none",
    state_init: Literal["input", "zeros", "normal", "learned"] | None = None,
    loop_update: Literal["replace", "damped"] = "replace",
    loop_norm: Literal["none", "own", "final"] = "none",
    fold: Literal["average", "first"] | None = None,
    loop_lora_rank: int | None = 0,
    loop_lora_beyond: Literal["last", "cyclic", "none"] = "last",
    loop_lora_target_modules: list[str] | None = None,
    loop_lora_vectors: bool | None = None,
) -> LoopedForCausalLM:
    """Run the layers of a pretrained causal model on a looped schedule: [`retrofit`] of the family `"looped"`.

    With no layer dropped, one loop, the injections `none`, `add` and `concat` and no `loop_norm` the logits equal the
    original's bit for bit. With `diagonal` they do not: its norm gives every token's state the same length, which no
    weights undo. That is set to the median length of what the core gets in the original, and the direction is the
    original's.

    Args:
        base (`PreTrainedModel`): a causal model of a supported backbone, quantized or not.
        num_prelude_layers (`int`, *optional*): layers that run once before the core, the first ones.
        num_coda_layers (`int`, *optional*): layers that run once after the core, the last ones.
        core_layers (`str`, *optional*): the layers of the core, `FIRST-LAST` counted from 0, both ends included; by
            default those between prelude and coda. A prelude or coda that is not given then reaches to the core;
            layers between given ones are dropped (https://huggingface.co/papers/2511.07384 keeps 4, `"6-11"`, 4 of
            OLMo-2-1B and Llama-3.2-1B, and 4, `"10-17"`, 4 of TinyLlama-1.1B).
        num_loops (`int`): times the core runs by default.
        injection (`str`): how the prelude's output enters each loop, see [`LoopedConfig`].
        state_init (`str`, *optional*): the first state; by default `"input"` without an injection, else `"zeros"`,
            which keeps one loop equal to the original.
        loop_update (`str`): what a loop does with the core's result, see [`LoopedConfig`].
        loop_norm (`str`): the norm at every loop's end, see [`LoopedConfig`].
        fold (`str`, *optional*): share the core's M layers between the loops: M / `num_loops` layers remain, each the
            `"average"` of those it stands for or the `"first"` of them, with the truncated singular value
            decomposition of the differences as per-loop LoRA (https://huggingface.co/papers/2410.20672). At full
            rank, in float32 and with nothing else between layers, the logits at `num_loops` are the original's to
            rounding.
        loop_lora_rank (`int`, *optional*): rank of the per-loop LoRA, 0 for none; with `fold`, `None` is full rank.
        loop_lora_beyond (`str`): which update loops after `num_loops` use, see [`LoopedConfig`].
        loop_lora_target_modules (`list[str]`, *optional*): the linear maps that get it, see [`LoopedConfig`].
        loop_lora_vectors (`bool`, *optional*): whether norms and biases differ per loop too; by default with `fold`.

    Returns:
        `LoopedForCausalLM`, on the device and in the dtype of the original.

    Raises:
        ValueError: `base` carries an adapter, the ranges of layers do not fit, or an option is refused by
            [`LoopedConfig`].
    """
    refuse_adapter(base, "it is made recurrent")
    plan = plan_layers(base.config.num_hidden_layers, num_prelude_layers, core_layers, num_coda_layers)
    layers = get_part(base.base_model, backbone_spec(base.config).layers)
    core = [layers[index] for index in plan.core]
    if loop_lora_rank is None:
        if fold is None:
            raise ValueError("`loop_lora_rank` None is the full rank of what `fold` removes: it needs `fold`")
        loop_lora_rank = full_rank(core)
    schedule: dict[str, Any] = {
        "num_loops": num_loops,
        "injection": injection,
        "state_init": state_init or ("input" if injection == "none" else "zeros"),
        "loop_update": loop_update,
        "loop_norm": loop_norm,
        "loop_lora_rank": loop_lora_rank,
        "loop_lora_num_loops": num_loops if loop_lora_rank else None,
        "loop_lora_beyond": loop_lora_beyond,
        "loop_lora_target_modules": loop_lora_target_modules,
        "loop_lora_vectors": bool(fold and loop_lora_rank) if loop_lora_vectors is None else loop_lora_vectors,
    }
    # what the configuration refuses is refused before anything is changed
    LoopedConfig(backbone_config=copy.deepcopy(base.config), **schedule)
    check_targets(loop_lora_target_modules, core)
    kept_core = plan.core
    if fold is not None:
        check_foldable(core, plan.core, getattr(base.config, "layer_types", None), num_loops, fold)
        kept_core = plan.core[: len(core) // num_loops]
    keep_layers(base.base_model, [*plan.prelude, *kept_core, *plan.coda])

    layout = {"num_prelude_layers": len(plan.prelude), "num_coda_layers": len(plan.coda)}
    looped: Any = move_into(LoopedForCausalLM, base, layout | schedule, not_quantized=["model.injection"])
    _materialize(looped, base)
    if fold is not None:
        fold_layers(core, num_loops, fold, looped.model.loop_lora)
    if injection == "diagonal":
        _scale_diagonal(looped)
    return looped


def _materialize(looped: LoopedForCausalLM, base: PreTrainedModel) -> None:
    """Give the modules that the original did not have their initial weights."""
    materialize(looped, looped.model.injection, base)
    if looped.config.state_init == "learned":
        materialize(looped, looped.model, base, recurse=False)
    if looped.config.loop_norm == "own":
        materialize(looped, looped.model.loop_norm, base)
    for updates in looped.model.loop_lora or []:
        materialize(looped, updates, base)


@torch.no_grad()
def _scale_diagonal(looped: Any) -> None:
    """Let the first loop's input have the length that is usual in the original, over tokens of all kinds."""
    injection = looped.model.injection
    encoded: list[torch.Tensor] = []
    handle = injection.register_forward_pre_hook(lambda module, args: encoded.append(args[1]))
    input_ids = torch.linspace(0, looped.config.vocab_size - 1, 128).long()[None].to(looped.device)
    was_training = looped.training
    looped.eval()(input_ids, num_loops=1, use_cache=False)
    looped.train(was_training)
    handle.remove()
    # the median, since the first token of a sequence is often very long
    length = encoded[0].float().square().mean(-1).sqrt().median()
    step = torch.nn.functional.softplus(injection.dt_bias.float())
    injection.norm.weight.copy_(length / step)
