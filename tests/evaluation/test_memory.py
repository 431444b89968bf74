from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3NextConfig,
)

from hf_loop.evaluation import kv_bytes_per_loop, kv_bytes_per_token
from hf_loop.models import LoopedConfig, LoopedForCausalLM

from ..models.hierarchical_variants import VARIANTS, tiny_hierarchical


SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MANY_HEADS: dict[str, Any] = SIZES | {"num_key_value_heads": 4}
BACKBONES = {
    "llama": LlamaConfig(**SIZES),
    "llama with wide heads": LlamaConfig(**SIZES, head_dim=8),
    "sliding window": Gemma3TextConfig(**SIZES, head_dim=4, sliding_window=32),
    "multi-head latent attention": DeepseekV3Config(
        **MANY_HEADS,
        kv_lora_rank=6,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
        first_k_dense_replace=4,
    ),
}


def cache_bytes(model: PreTrainedModel, num_tokens: int, num_loops: int) -> int:
    """The memory of the cache that a forward pass over `num_tokens` tokens leaves."""
    input_ids = torch.zeros(1, num_tokens, dtype=torch.long)
    cache = model(input_ids, num_loops=num_loops, past_key_values=DynamicCache()).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("num_loops", [1, 3])
def test_it_is_what_the_cache_grows_by(name, num_loops):
    config = LoopedConfig(backbone_config=BACKBONES[name], num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    model = LoopedForCausalLM(config).eval()
    with torch.no_grad():
        growth = cache_bytes(model, 6, num_loops) - cache_bytes(model, 5, num_loops)
    assert kv_bytes_per_token(config, num_loops, torch.float32) == growth


@pytest.mark.parametrize("name", ["plain", "shared stack", "hrm_text"])
@pytest.mark.parametrize("num_loops", [1, 5])
def test_it_is_what_the_cache_of_a_hierarchical_model_grows_by(name, num_loops):
    model = tiny_hierarchical(**VARIANTS[name])
    with torch.no_grad():
        growth = cache_bytes(model, 6, num_loops) - cache_bytes(model, 5, num_loops)
    assert kv_bytes_per_token(model.config, num_loops, torch.float32) == growth


def test_the_config_gives_the_loop_count():
    config = LoopedConfig(backbone_config=BACKBONES["llama"], num_prelude_layers=1, num_coda_layers=1, num_loops=5)
    # 1 + 2 * 5 + 1 slots of 2 * 2 heads * 4 numbers, two bytes each
    assert kv_bytes_per_token(config) == 12 * 16 * 2
    assert kv_bytes_per_loop(config) == 2 * 16 * 2
    assert kv_bytes_per_loop(config, torch.float32) == 2 * 16 * 4


def test_a_state_of_fixed_size_does_not_grow():
    backbone_config = Qwen3NextConfig(
        **SIZES, head_dim=4, layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention"]
    )
    config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_loops=2)
    assert kv_bytes_per_token(config, 3, torch.float32) == (1 + 3) * 2 * 2 * 4 * 4


@pytest.mark.parametrize("num_loops", [0, -1, 2.5, "x", True])
def test_a_bad_loop_count_gets_a_clear_error(num_loops):
    with pytest.raises(ValueError, match="`num_loops` must be an integer"):
        kv_bytes_per_token(LoopedConfig(backbone_config=BACKBONES["llama"]), num_loops)
