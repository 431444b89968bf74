"""What is special about a looped model out of a pretrained decoder: which of its layers loop, dropped or folded ones,
and the scale of a diagonal injection.

With no layer dropped, one loop, the injections `none`, `add` and `concat` and no `loop_norm` the logits equal the
original's bit for bit. With `diagonal`, `orthogonal` and `unit_add` they do not: a norm gives every token's state the
same length, which no weights undo. With `diagonal` and `orthogonal` that is set to the median length of what the core
gets in the original, and the direction is the original's; without `injection_norm` they equal it to rounding. With
`unit_add` the length is one, for layers that were trained so.
"""

from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..layer_ranges import plan_layers
from ..models import FAMILIES, LoopedConfig, LoopedForCausalLM
from ..models.adapters import refuse_adapter
from ..models.backbone import backbone_spec, get_part
from ..models.evaluation_mode import evaluation_mode
from ..models.loop_lora import check_targets
from .folding import check_foldable, fold_layers, full_rank, shared_core
from .layer_selection import keep_layers, select_layers
from .moving import move_into


def looped_config(
    backbone_config: PreTrainedConfig,
    *,
    num_prelude_layers: int | None = None,
    num_coda_layers: int | None = None,
    core_layers: str | int | None = None,
    fold: Literal["average", "first"] | None = None,
    loop_lora_rank: int | None = 0,
    **fields: Any,
) -> LoopedConfig:
    """The configuration of the looped model that a pretrained one becomes.

    Args:
        backbone_config (`PreTrainedConfig`): the configuration of the original.
        num_prelude_layers (`int`, *optional*): layers that run once before the core, the first ones.
        num_coda_layers (`int`, *optional*): layers that run once after the core, the last ones.
        core_layers (`str`, *optional*): the layers of the core, `FIRST-LAST` counted from 0, both ends included; by
            default those between prelude and coda. A prelude or coda that is not given then reaches to the core;
            layers between given ones are dropped (https://huggingface.co/papers/2511.07384 keeps 4, `"6-11"`, 4 of
            OLMo-2-1B and Llama-3.2-1B, and 4, `"10-17"`, 4 of TinyLlama-1.1B).
        fold (`str`, *optional*): share the core's M layers between the loops: M / `num_loops` layers remain, each the
            `"average"` of those it stands for or the `"first"` of them, with the truncated singular value
            decomposition of the differences as per-loop LoRA (https://huggingface.co/papers/2410.20672). At full
            rank, in float32 and with nothing else between layers, the logits at `num_loops` are the original's to
            rounding.
        loop_lora_rank (`int`, *optional*): rank of the per-loop LoRA, 0 for none; with `fold`, `None` is full rank.
        fields: other fields of [`LoopedConfig`]. By default `state_init` is `"zeros"` where there is an injection,
            which keeps one loop equal to the original, and `loop_lora_vectors` is set with `fold`.

    Raises:
        ValueError: the ranges of layers do not fit, or a field is refused by [`LoopedConfig`].
    """
    plan = plan_layers(backbone_config.num_hidden_layers, num_prelude_layers, core_layers, num_coda_layers)
    if loop_lora_rank is None:
        if fold is None:
            raise ValueError("`loop_lora_rank` None is the full rank of what `fold` removes: it needs `fold`")
        # the weights say how much that is
        loop_lora_rank = 1
    if fields.get("injection", "none") != "none":
        fields.setdefault("state_init", "zeros")
    fields.setdefault("loop_lora_vectors", bool(fold and loop_lora_rank))
    core = plan.core
    if fold is not None:
        core = shared_core(core, fields.get("num_loops", LoopedConfig.num_loops))
    return LoopedConfig(
        backbone_config=select_layers(backbone_config, [*plan.prelude, *core, *plan.coda]),
        num_prelude_layers=len(plan.prelude),
        num_coda_layers=len(plan.coda),
        loop_lora_rank=loop_lora_rank,
        **fields,
    )


def retrofit_looped(base: PreTrainedModel, **fields: Any) -> LoopedForCausalLM:
    """Run the layers of a pretrained causal model on a looped schedule.

    Args:
        base (`PreTrainedModel`): a causal model of a supported backbone, quantized or not.
        fields: what [`looped_config`] takes.

    Raises:
        ValueError: `base` carries an adapter, or a field is refused.
    """
    refuse_adapter(base, "it is made recurrent")
    ranges = (fields.get(name) for name in ("num_prelude_layers", "core_layers", "num_coda_layers"))
    plan = plan_layers(base.config.num_hidden_layers, *ranges)
    layers = get_part(base.base_model, backbone_spec(base.config).layers)
    core = [layers[index] for index in plan.core]
    fold = fields.get("fold")
    if fold is not None and fields.get("loop_lora_rank", 0) is None:
        fields["loop_lora_rank"] = full_rank(core)
    # what is refused is refused before anything is changed
    config = looped_config(base.config, **fields)
    check_targets(config.loop_lora_target_modules, core)
    if fold is not None:
        check_foldable(core, plan.core, getattr(base.config, "layer_types", None), config.num_core_layers)
    keep_layers(base.base_model, [*plan.prelude, *plan.core[: config.num_core_layers], *plan.coda])

    own = {name: getattr(config, name) for name in FAMILIES["looped"].own_fields}
    looped: Any = move_into(LoopedForCausalLM, base, own)
    if fold is not None:
        fold_layers(core, config.num_loops, fold, looped.model.loop_lora)
    if config.injection in ("diagonal", "orthogonal"):
        _scale_diagonal(looped)
    return looped


@torch.no_grad()
def _scale_diagonal(looped: Any) -> None:
    """Let the first loop's input have the length that is usual in the original, over tokens of all kinds."""
    injection = looped.model.injection
    encoded: list[torch.Tensor] = []
    handle = injection.register_forward_pre_hook(lambda module, args: encoded.append(args[1]))
    input_ids = torch.linspace(0, looped.config.vocab_size - 1, 128).long()[None].to(looped.device)
    with evaluation_mode(looped):
        looped(input_ids, num_loops=1, use_cache=False)
    handle.remove()
    # the median, since the first token of a sequence is often very long
    length = encoded[0].float().square().mean(-1).sqrt().median()
    step = torch.nn.functional.softplus(injection.dt_bias.float())
    if injection.norm is None:
        injection.B.weight.div_(step[:, None])
    else:
        injection.norm.weight.copy_(length / step)
