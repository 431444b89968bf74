"""Floating-point operations of a forward pass, a training step and generation, for comparisons at equal compute.

The count is analytic: layer calls come from the depth schedule, rows and keys from the time schedule, sizes from the
shapes of the weights, which may be on the meta device. It counts matrix products as
`torch.utils.flop_counter.FlopCounterMode` does, two operations for every multiplication and its addition:

- every linear map (also of low-rank updates, injections and the head, and convolutions; of routed experts only the
  picked ones), of every row that it is applied to, memory and padding included;
- attention by length: `q k^T` and `a v`, each `2 x queries x keys x heads x head_dim`. Keys that a mask hides are
  counted, of causal attention and sliding windows too: all `T x T` of a text. From a cache a layer with a sliding
  window reads only its window. Grouped queries save no operations;
- linear attention and fast weights (delta rules, Hebb's and Oja's): their projections, and what the form in chunks of
  64 tokens computes from keys, values and state; without the triangular solve of a chunk. A single token takes one
  product with the state to read, one to write, and one to correct (not for Hebb's rule). Of decoders with linear
  attention of their own (Qwen3-Next, OLMo hybrid) torch's counter counts more, since the fallback of transformers
  fills up the last chunk, and in training a sleep model over them is counted up to the end of the last layer that
  writes;
- the backward pass: twice the forward pass wherever gradient flows, for attention four products. (Flash attention
  computes five, as it repeats `q k^T`.) All weights are trained, the embeddings too. The first linear maps of a layer
  need no gradient of an input that carries none, as after a loop without gradient.

To compare with torch's counter on a CPU, set `attn_implementation="eager"`: it does not see the fused attention there.
It also counts the backward pass of a convolution by channel as if every channel met every other.

Norms, activations, biases, rotary embeddings, look-ups, the loss and the optimizer are left out, and what activation
checkpointing runs again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..models.backbone import Backbone
from ..models.backbone_parts import get_part, missing_parts
from ..models.backbone_specs import LOOPED_BACKBONES, REFUSED_BACKBONES, find_spec
from ..models.checks import check_positive_int
from ..models.configuration_recurrent import kind_of
from ..models.cost import Measure, Span, Work, count_work, head_work, steps_work, used_parameters
from ..models.fast_weights import CHUNK_SIZE


# layers that compute nothing between tokens, or only in a convolution, whose weights are counted
_WITHOUT_ATTENTION = ("conv", "mlp", "moe")
_ATTENTION = ("full_attention", "sliding_attention")


class MatrixProducts(Measure):
    """Multiplications in matrix products, attention by length included."""

    by_length = True

    def module(self, module: nn.Module, config: Any = None) -> int:
        return used_parameters(module, config, matrices_only=True)

    def attention(self, backbone: Backbone, index: int, spans: Sequence[Span]) -> int:
        config, layer = backbone.config, backbone.layers[index]
        layer_type = None if backbone.layer_types is None else backbone.layer_types[index]
        if layer_type in _WITHOUT_ATTENTION:
            return 0
        if layer_type == "linear_attention":
            names = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
            sizes = [_size(config, name, f"linear attention of a {config.model_type} decoder") for name in names]
            return sum(_fast_weight_products("gated_delta", *sizes, span.num_queries) for span in spans)
        _check_attention(config, layer, layer_type)
        if getattr(config, "kv_lora_rank", None) and any(span.num_keys != span.num_queries for span in spans):
            raise ValueError(
                f"a {config.model_type} decoder can only be counted without a cache: what it computes from compressed "
                "keys of earlier tokens depends on the release"
            )
        window = getattr(config, "sliding_window", None) if layer_type in (None, "sliding_attention") else None
        return sum(_attention_widths(config, layer)) * sum(
            span.num_queries * _keys_in_window(span, window) for span in spans
        )

    def inserted(self, module: Any, spans: Sequence[Span]) -> int:
        heads, size = module.num_heads, module.head_dim
        return sum(_fast_weight_products(module.rule, heads, size, size, span.num_queries) for span in spans)

    def entry(self, backbone: Backbone, index: int) -> int:
        layer = backbone.layers[index]
        entry = get_part(layer, backbone.spec.layer_entry)
        is_map = self.module(entry) > 0
        if not is_map and next(entry.parameters(), None) is not None:
            # a norm whose weights are trained
            return 0
        attention = entry if is_map else getattr(layer, "self_attn", None)
        maps: list[Any] = [getattr(attention, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        if None in maps:
            raise ValueError(
                f"a {backbone.config.model_type} decoder cannot be counted with truncated backward: its attention has "
                "no `q_proj`, `k_proj` and `v_proj`"
            )
        return sum(map(self.module, maps))


def forward_flops(model: Any, num_tokens: int, *, batch_size: int = 1, **depth: Any) -> int:
    """Count the floating-point operations of one forward pass without a cache, with logits at every position.

    Args:
        model (`PreTrainedModel`): a causal language model of transformers or hf_loop; only its sizes are read.
        num_tokens (`int`): length of every text.
        batch_size (`int`, *optional*, defaults to 1): number of texts.
        depth: `num_loops` or `num_sleep_passes`, by default those of the configuration.

    Raises:
        ValueError: if a part of the model cannot be counted, or an argument is none of this model's.
    """
    return 2 * _text_work(model, num_tokens, depth).applied * check_positive_int("batch_size", batch_size)


def training_flops(model: Any, num_tokens: int, *, batch_size: int = 1, **depth: Any) -> int:
    """Count the floating-point operations of the forward and backward pass of a training step with labels everywhere.

    Args:
        model, num_tokens, batch_size: as in [`forward_flops`].
        depth: `num_loops`, `num_backprop_loops` or `num_sleep_passes`, by default those of the configuration.

    Raises:
        ValueError: as [`forward_flops`], and if a weight is frozen.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not parameter.requires_grad:
            raise ValueError(f"all weights must be trained for their backward pass to be counted; {name} is frozen")
    return _text_work(model, num_tokens, depth, has_labels=True).operations * check_positive_int(
        "batch_size", batch_size
    )


def generation_flops(model: Any, prompt_length: int, new_tokens: int, *, batch_size: int = 1, **depth: Any) -> int:
    """Count the floating-point operations of `generate` with a cache: the prompt, then each new token but the last.

    Logits are computed at the last position of the prompt and at every new token that is read. Exits, drafts and
    several beams are not counted.

    Args:
        model, batch_size: as in [`forward_flops`].
        prompt_length (`int`): length of every prompt.
        new_tokens (`int`): number of tokens that are generated for each.
        depth: `num_loops` or `num_sleep_passes`, by default those of the configuration.

    Raises:
        ValueError: as [`forward_flops`].
    """
    _check_model(model, depth)
    steps = [check_positive_int("prompt_length", prompt_length)] + [1] * (
        check_positive_int("new_tokens", new_tokens) - 1
    )
    body, measure = model.base_model, MatrixProducts()
    if kind_of(model.config) is None:
        work = steps_work(body, {}, steps, measure)
    else:
        work = body.count_steps(steps, depth, measure)
    return 2 * (work + head_work(model, measure) * len(steps)).applied * check_positive_int("batch_size", batch_size)


def steps_at_equal_compute(reference_flops_per_step: int, num_steps: int, flops_per_step: int) -> int:
    """Return the number of training steps that cost as much as `num_steps` of a reference, rounded to the nearest.

    Args:
        reference_flops_per_step (`int`): operations of one step of the reference, see [`training_flops`].
        num_steps (`int`): steps of the reference.
        flops_per_step (`int`): operations of one step of the other model.

    Raises:
        ValueError: if a number is not a positive integer, or not even half a step costs as little.
    """
    total = check_positive_int("reference_flops_per_step", reference_flops_per_step) * check_positive_int(
        "num_steps", num_steps
    )
    steps = (2 * total + check_positive_int("flops_per_step", flops_per_step)) // (2 * flops_per_step)
    if steps == 0:
        raise ValueError(f"`flops_per_step` {flops_per_step} is more than twice the whole compute {total}")
    return steps


def _text_work(model: Any, num_tokens: int, depth: Mapping[str, Any], has_labels: bool = False) -> Work:
    _check_model(model, depth)
    length, measure = check_positive_int("num_tokens", num_tokens), MatrixProducts()
    if kind_of(model.config) is None:
        return steps_work(model.base_model, {}, [length], measure) + head_work(model, measure) * length
    input_ids = torch.zeros((1, length), dtype=torch.long)
    labels = {"labels": input_ids} if has_labels else {}
    return count_work(model, {"input_ids": input_ids, **labels, **depth}, measure)


def _check_model(model: Any, depth: Mapping[str, Any]) -> None:
    """Refuse models that cannot be counted, and arguments that are not theirs."""
    config = model.config
    if kind_of(config) == "puzzle":
        raise ValueError(f"a {config.model_type} model cannot be counted: it has no causal language model head")
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} cannot be counted: it has no language model head")
    names = [
        *getattr(config, "depth_arguments", ()),
        *(["num_sleep_passes"] if hasattr(config, "sleep_window") else []),
    ]
    for name, value in depth.items():
        if name not in names:
            known = f"are {', '.join(names)}" if names else "do not exist"
            raise ValueError(f"`{name}` is no argument of a {config.model_type} model; its arguments of depth {known}")
        if value is not None:
            check_positive_int(name, value)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(f"quantized weights cannot be counted: {name} is of type {parameter.dtype}")
    decoder_config = config if kind_of(config) is None else config.decoder_config
    # what loops by itself calls its layers more often than a decoder, but not as a backbone of ours
    is_refused = kind_of(config) is None or decoder_config.model_type not in LOOPED_BACKBONES
    if is_refused and decoder_config.model_type in REFUSED_BACKBONES:
        reason = REFUSED_BACKBONES[decoder_config.model_type]
        raise ValueError(f"a {decoder_config.model_type} decoder cannot be counted: {reason}")
    missing = missing_parts(model.base_model, find_spec(config)) if kind_of(config) is None else []
    if missing:
        raise ValueError(f"a {config.model_type} model cannot be counted: it has no {', '.join(missing)}")


def _check_attention(config: Any, layer: nn.Module, layer_type: str | None) -> None:
    """Refuse layers whose operations between tokens are not those of attention with heads of one size."""
    if layer_type not in (None, *_ATTENTION):
        raise ValueError(f"layers of type {layer_type!r} of a {config.model_type} decoder cannot be counted")
    has_state = any(name.endswith("A_log") for name, _ in layer.named_parameters())
    width = _attention_widths(config, layer)[1]
    has_width = any(parameter.ndim == 2 and width in parameter.shape for parameter in layer.parameters())
    if has_state or not has_width:
        found = "a state space" if has_state else f"no linear map of {width} features, its heads times their size"
        raise ValueError(f"the layers of a {config.model_type} decoder cannot be counted: {found}")


def _attention_widths(config: Any, layer: nn.Module) -> tuple[int, int]:
    """Return the number of query heads times the size of their keys, and of their values."""
    heads = _size(config, "num_attention_heads", f"a {config.model_type} decoder")
    if getattr(config, "kv_lora_rank", None):
        return heads * (config.qk_nope_head_dim + config.qk_rope_head_dim), heads * config.v_head_dim
    try:
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
    except Exception as error:  # transformers has classes of its own for fields that differ between layers
        raise ValueError(f"a {config.model_type} decoder cannot be counted: {error}") from error
    return heads * size, heads * size


def _keys_in_window(span: Span, window: int | None) -> int:
    if window is None:
        return span.num_keys
    # a cache keeps as many keys as the next token sees
    return span.num_keys - max(0, span.num_cached - (window - 1))


def _fast_weight_products(rule: str, heads: int, key_size: int, value_size: int, num_tokens: int) -> int:
    """Count the multiplications of `fast_weights` over tokens that are run at once, see `models/fast_weights.py`."""
    # the read and the write
    per_token, per_pair = 2 * key_size * value_size, key_size + value_size
    if rule != "hebbian":
        # the correction: of the values by the keys, or by Oja's rule of the keys by the values
        per_token += key_size * value_size
        per_pair += value_size if rule == "oja" else key_size
    if num_tokens == 1:
        return heads * per_token
    whole, rest = divmod(num_tokens, CHUNK_SIZE)
    return heads * (per_token * num_tokens + per_pair * (whole * CHUNK_SIZE**2 + rest**2))


def _size(config: Any, name: str, whose: str) -> int:
    size = getattr(config, name, None)
    if size is None:
        raise ValueError(f"{whose} cannot be counted: its configuration has no `{name}`")
    return size


__all__ = ["MatrixProducts", "forward_flops", "generation_flops", "steps_at_equal_compute", "training_flops"]
