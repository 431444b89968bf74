"""The size of a recurrent model's key-value cache for one token."""

import torch
from transformers import PreTrainedConfig

from ..models.checks import check_positive_int


# layers whose cache has a fixed size, whatever the length of the text
CONSTANT_STATE_LAYERS = ("linear_attention", "conv")


def kv_bytes_per_token(
    config: PreTrainedConfig, num_loops: int | None = None, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Count the bytes by which the cache grows for each further token of one sequence.

    Every call of an attention layer keeps its own keys and values, so the cache has one slot for every layer call:
    `num_prelude_layers + num_core_layers * num_loops + num_coda_layers` of a looped model. One slot holds
    `2 * num_key_value_heads * head_dim` numbers a token; with multi-head latent attention (`kv_lora_rank` in the
    config, as in DeepSeek-V3) it holds the latent and the rotary key, `kv_lora_rank + qk_rope_head_dim` numbers.
    Linear-attention and convolution layers keep a state of fixed size and count as 0 here. A sliding-window layer
    counts in full: it grows by that much until its window is full and stops there.

    Args:
        config (`PreTrainedConfig`): the configuration of a model whose cache keeps all tokens, or of a decoder.
        num_loops (`int`, *optional*, defaults to `config.num_loops`): the number of loops, where it has loops.
        dtype (`torch.dtype`, *optional*, defaults to `torch.bfloat16`): the type of keys and values.

    Returns:
        `int`: bytes for each token.

    Raises:
        ValueError: if `num_loops` is not a positive integer.
    """
    if num_loops is not None:
        config = config.with_num_loops(check_positive_int("num_loops", num_loops))
    return _growing_slots(config) * _numbers_per_slot(getattr(config, "decoder_config", config)) * dtype.itemsize


def kv_bytes_per_loop(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Count the bytes that one more loop adds to [`kv_bytes_per_token`]."""
    return kv_bytes_per_token(config, 2, dtype) - kv_bytes_per_token(config, 1, dtype)


def _growing_slots(config: PreTrainedConfig) -> int:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return config.num_hidden_layers
    return sum(layer_type not in CONSTANT_STATE_LAYERS for layer_type in layer_types)


def _numbers_per_slot(decoder_config: PreTrainedConfig) -> int:
    if getattr(decoder_config, "kv_lora_rank", None):
        return decoder_config.kv_lora_rank + decoder_config.qk_rope_head_dim
    num_heads = decoder_config.num_attention_heads
    num_key_value_heads = getattr(decoder_config, "num_key_value_heads", None) or num_heads
    head_dim = getattr(decoder_config, "head_dim", None) or decoder_config.hidden_size // num_heads
    return 2 * num_key_value_heads * head_dim
