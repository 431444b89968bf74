"""A sleep model out of a pretrained decoder."""

from typing import Any, Literal

from transformers import PreTrainedModel

from ..models import SleepForCausalLM
from .moving import materialize, move_into


def retrofit_sleep(
    base: PreTrainedModel,
    *,
    sleep_window: int = 1024,
    num_sleep_passes: int = 2,
    eviction: Literal["hard", "sliding"] = "hard",
    sleep_layers: list[int] | None = None,
    reset_conv: bool = True,
    position_mode: Literal["restart", "absolute"] | None = None,
    fast_weight_layers: list[int] | None = None,
    fast_weight_rule: Literal["hebbian", "delta", "gated_delta", "oja"] = "gated_delta",
    fast_weight_num_heads: int | None = None,
    fast_weight_head_dim: int | None = None,
    num_backprop_windows: int | None = None,
    sleep_over_labels: bool = True,
) -> SleepForCausalLM:
    """Let a pretrained causal model sleep: [`retrofit`] of the family `"sleep"`.

    A hybrid keeps its weights as they are, since its linear attention has the fast weights. A decoder that has
    attention alone is given fast-weight layers, whose output starts at zero: until they are trained they write and
    change nothing. Either way the logits of the first window are the original's, bit for bit; a token of a later
    window has lost sight of those before its own, and what it knows of them is what the fast weights hold.

    Args:
        base (`PreTrainedModel`): a causal model of a supported backbone, quantized or not, whose layers do not embed
            tokens themselves.
        sleep_window (`int`): tokens in a window.
        num_sleep_passes (`int`): passes over a full window, the first being the one that predicts its tokens.
        eviction (`str`): what a sleep does to keys and values, see [`SleepConfig`].
        sleep_layers (`list[int]`, *optional*): `[start, end]` of the layers that run in every pass, all by default.
        reset_conv (`bool`): whether short convolutions start anew in every pass.
        position_mode (`str`, *optional*): where positions are counted from, see [`SleepConfig`].
        fast_weight_layers (`list[int]`, *optional*): layers that a fast-weight layer is inserted after. None by
            default where the original has linear attention, otherwise every fourth layer.
        fast_weight_rule (`str`): how inserted layers write.
        fast_weight_num_heads (`int`, *optional*): heads of an inserted layer, as many as attention has by default.
        fast_weight_head_dim (`int`, *optional*): channels of a head, by default what makes the heads as wide as the
            model.
        num_backprop_windows (`int`, *optional*): windows that gradient crosses in training, all by default.
        sleep_over_labels (`bool`): whether a window with labels is slept over too, see [`SleepConfig`].

    Returns:
        `SleepForCausalLM`, on the device and in the dtype of the original.

    Raises:
        ValueError: the original's layers cannot sleep, or [`SleepConfig`] refuses an option.
    """
    fields = {
        "sleep_window": sleep_window,
        "num_sleep_passes": num_sleep_passes,
        "eviction": eviction,
        "sleep_layers": sleep_layers,
        "reset_conv": reset_conv,
        "position_mode": position_mode,
        "fast_weight_layers": fast_weight_layers,
        "fast_weight_rule": fast_weight_rule,
        "fast_weight_num_heads": fast_weight_num_heads,
        "fast_weight_head_dim": fast_weight_head_dim,
        "num_backprop_windows": num_backprop_windows,
        "sleep_over_labels": sleep_over_labels,
    }
    sleeper: Any = move_into(SleepForCausalLM, base, fields, not_quantized=["model.memory_layers"])
    for layer in sleeper.model.memory_layers:
        materialize(sleeper, layer, base)
        for part in layer.children():
            sleeper._init_weights(part)
    return sleeper
