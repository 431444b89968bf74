"""A looped model written out as the plain decoder that computes the same."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..models import LoopedForCausalLM
from ..models.adapters import refuse_adapter
from ..models.backbone import backbone_spec, get_part, set_part
from ..models.checks import check_positive_int
from ..models.configuration_recurrent import COPIED_FIELDS
from ..models.offloading import check_weights_are_here
from ..models.schedules import Call
from .layer_selection import check_same_kind, number_layers, select_layers
from .plain_generation import plain_generation_config


def unroll(model: LoopedForCausalLM, num_loops: int | None = None) -> PreTrainedModel:
    """Write the loops out: a plain transformers model with one layer for every layer call.

    Its logits are the looped model's, to rounding where per-loop LoRA is merged into the weights. Its checkpoint is an
    ordinary one of the backbone's architecture, which any engine serves at the price of the repeated layers' memory.
    It shares nothing with `model`, and an exit gate, which changes no logits, is left out.

    Args:
        model (`LoopedForCausalLM`): the looped model.
        num_loops (`int`, *optional*): loops to write out, `model.config.num_loops` if not given.

    Returns:
        `PreTrainedModel`: the backbone's causal model with prelude + `num_loops` * core + coda layers.

    Raises:
        ValueError: the schedule does something between layers that a plain decoder cannot: an injection that has
            learned something or adds to a state, a damped update, a norm or a map of the state, an initial state of
            its own; its generation configuration has a setting that does so, such as an exit; `model` carries an
            adapter that was not merged; or its weights are offloaded.
    """
    refuse_adapter(model, "it is unrolled")
    if not isinstance(model, LoopedForCausalLM):
        raise ValueError(f"`model` must be a LoopedForCausalLM, got {type(model).__name__}")
    check_weights_are_here(model, "model")
    num_loops = model.config.num_loops if num_loops is None else check_positive_int("num_loops", num_loops)
    generation_config = plain_generation_config(model)
    calls = _layer_calls(model, range(num_loops - _plain_loops(model, num_loops), num_loops))
    indices = [call.layer for call in calls]

    backbone: Any = model.model.backbone
    layers_name = backbone_spec(backbone.config).layers
    layers = [get_part(backbone, layers_name)[index] for index in indices]
    config: Any = select_layers(backbone.config, indices)
    check_same_kind(config, layers, indices)
    config.dtype = model.dtype
    for name in COPIED_FIELDS:
        setattr(config, name, getattr(model.config, name))

    with torch.device("meta"):
        unrolled: Any = AutoModelForCausalLM.from_config(config)
    # modules point to the configuration of their decoder, and tied weights to one tensor
    copies: dict[int, Any] = {id(backbone.config): config}
    decoder = copy.deepcopy(backbone, copies)
    copied = nn.ModuleList(_copy_layer(model, call, config) for call in calls)
    set_part(decoder, layers_name, copied)
    number_layers(copied)
    setattr(unrolled, unrolled.base_model_prefix, decoder)
    unrolled.set_output_embeddings(copy.deepcopy(model.lm_head, copies))
    unrolled.generation_config = generation_config
    return unrolled.train(model.training)


def _layer_calls(model: LoopedForCausalLM, loops: range) -> list[Call]:
    """The calls of some of the loops, in order, between those of the prelude and the coda."""
    depth = model.config.depth()
    core = [call for loop in loops for call in depth.core_calls(loop)]
    return [*depth.prelude_calls(), *core, *depth.coda_calls()]


def _copy_layer(model: LoopedForCausalLM, call: Call, config: PreTrainedConfig) -> nn.Module:
    """A copy of the layer of `call` as it computes in its loop, which asks `config`."""
    backbone: Any = model.model.backbone
    layer = get_part(backbone, backbone_spec(backbone.config).layers)[call.layer]
    copied = copy.deepcopy(layer, {id(backbone.config): config})
    if model.config.loop_lora_rank and call.loop is not None:
        core_index = call.layer - model.config.num_prelude_layers
        copied.load_state_dict(model.model.loop_lora.merged_state_dict(layer, core_index, call.loop))
    return copied


def _plain_loops(model: LoopedForCausalLM, num_loops: int) -> int:
    """How many of the last loops a plain decoder must run to equal `num_loops` loops.

    Raises:
        ValueError: no number of times does.
    """
    config: Any = model.config
    for name in ("coda_norm", "state_projection"):
        if getattr(config, name):
            raise ValueError(f"`{name}` acts between layers, which a plain decoder cannot")
    ends_with_norm = config.loop_norm == "final" and num_loops == 1 and config.num_coda_layers == 0
    if config.loop_norm != "none" and not ends_with_norm:
        raise ValueError(f"`loop_norm` {config.loop_norm!r} acts between layers, which a plain decoder cannot")
    if config.injection == "concat":
        return _plain_concat_loops(model, num_loops)
    if config.injection in ("unit_add", "diagonal", "orthogonal") or (config.injection == "add" and num_loops > 1):
        raise ValueError(
            f"`injection` {config.injection!r} at num_loops={num_loops} brings the prelude's output to layers that a "
            "plain decoder keeps it from"
        )
    if config.injection == "add" and config.state_init != "zeros":
        raise ValueError(f"`state_init` {config.state_init!r} adds to the input of the core; a plain decoder does not")
    if config.depth().update_share(num_loops) < 1:
        raise ValueError(f"`loop_update` 'damped' at num_loops={num_loops} mixes states; a plain decoder does not")
    return num_loops


def _plain_concat_loops(model: LoopedForCausalLM, num_loops: int) -> int:
    injection: Any = model.model.injection
    weight: torch.Tensor = injection.proj.weight
    of_state, of_input = weight.split(weight.shape[0], dim=1)
    has_bias = injection.proj.bias is not None and bool(injection.proj.bias.any())
    identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
    passes_input = not has_bias and torch.equal(of_input, identity)
    # the core's input is then the prelude's output in every loop: the last loop alone counts
    drops_state = not of_state.any() or (num_loops == 1 and model.config.state_init == "zeros")
    if not passes_input or not drops_state or model.config.depth().update_share(num_loops) < 1:
        raise ValueError(
            f"`injection` 'concat' at num_loops={num_loops} mixes the state and the prelude's output; a plain decoder "
            "does not"
        )
    return 1
