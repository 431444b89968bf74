"""A looped model out of a pretrained decoder, by moving its modules."""

import copy
import os
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..layer_ranges import plan_layers
from ..models import LoopedConfig, LoopedForCausalLM
from ..models.backbone import backbone_spec
from ..models.loop_lora import check_targets
from .folding import check_foldable, fold_layers, full_rank
from .layer_selection import keep_layers


def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike,
    family: Literal["looped"] = "looped",
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
    """Run the layers of a pretrained causal model on a looped schedule.

    The modules move: no weight is copied, and the model passed in should not be used afterwards. With no layer
    dropped, one loop, the injections `none`, `add` and `concat` and no `loop_norm` the logits equal the original's bit
    for bit. With `diagonal` they do not: its norm gives every token's state the same length, which no weights undo.
    That is set to the median length of what the core gets in the original, and the direction is the original's.

    Args:
        model_or_path (`PreTrainedModel` or `str`): a causal model of a supported backbone, quantized or not, or where
            to load one from.
        family (`str`): the kind of recurrent model; `"looped"`.
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
        ValueError: the family or the architecture is not supported, the ranges of layers do not fit, or an option is
            refused by [`LoopedConfig`].
    """
    if family != "looped":
        raise ValueError(f"`family` must be 'looped', got {family!r}")
    base: Any = model_or_path
    if not isinstance(base, PreTrainedModel):
        base = AutoModelForCausalLM.from_pretrained(base)
    if isinstance(base, LoopedForCausalLM):
        raise ValueError("`model_or_path` is a looped model already")
    _check_causal(base)
    plan = plan_layers(base.config.num_hidden_layers, num_prelude_layers, core_layers, num_coda_layers)
    layers = getattr(base.base_model, backbone_spec(base.config).layers)
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

    # a configuration that becomes part of another forgets which attention function was chosen
    attn_implementation = base.config._attn_implementation
    config = LoopedConfig(
        backbone_config=base.config,
        num_prelude_layers=len(plan.prelude),
        num_coda_layers=len(plan.coda),
        dtype=base.dtype,
        **schedule,
    )
    config._attn_implementation = attn_implementation
    with torch.device("meta"):
        looped: Any = LoopedForCausalLM(config)
    looped.model.backbone = base.base_model
    looped.lm_head = base.get_output_embeddings()
    _materialize(looped, base.device, base.dtype)
    if fold is not None:
        fold_layers(core, num_loops, fold, looped.model.loop_lora)
    if injection == "diagonal":
        _scale_diagonal(looped)
    _stay_quantized(looped, base)
    looped.generation_config = base.generation_config
    looped.name_or_path = base.name_or_path
    return looped.train(base.training)


def _check_causal(base: PreTrainedModel) -> None:
    """Refuse what is no decoder with a head, such as an encoder or a bare decoder."""
    backbone_spec(base.config)
    if base.get_output_embeddings() is None or base.base_model is base:
        raise ValueError(
            f"`model_or_path` must be a causal language model, got {type(base).__name__}, which has no head over the "
            "vocabulary"
        )


def _materialize(looped: LoopedForCausalLM, device: torch.device, dtype: torch.dtype) -> None:
    """Give the modules that the original did not have their initial weights."""
    new_modules: list[nn.Module] = [looped.model.injection, looped.model]
    if looped.config.loop_norm == "own":
        new_modules.append(looped.model.loop_norm)
    if looped.model.loop_lora is not None:
        new_modules.extend(looped.model.loop_lora)
    for module in new_modules:
        recurse = module is not looped.model
        if recurse or looped.config.state_init == "learned":
            module.to_empty(device=device, recurse=recurse)
        for parameter in module.parameters(recurse=recurse):
            parameter.data = parameter.data.to(dtype)
        looped._init_weights(module)


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


def _stay_quantized(looped: Any, base: Any) -> None:
    """Let a quantized original's looped model be saved, loaded and trained as the quantized model that it is."""
    if getattr(base, "hf_quantizer", None) is None:
        return
    looped.hf_quantizer = base.hf_quantizer
    looped.quantization_method = getattr(base, "quantization_method", None)
    looped.is_quantized = True
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(base, name):
            setattr(looped, name, getattr(base, name))
    quantization_config = base.config.quantization_config
    looped.config.quantization_config = quantization_config
    # the new parts are not quantized: without this, loading would look for quantized weights of the injection
    kept = list(getattr(base.hf_quantizer, "modules_to_not_convert", None) or [])
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(quantization_config, name):
            setattr(quantization_config, name, [*kept, "model.injection"])
