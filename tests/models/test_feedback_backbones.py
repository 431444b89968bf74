"""Every supported backbone with attention layers: without a memory it is itself, and a memory works through it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from hf_loop import FeedbackConfig, FeedbackForCausalLM

from .model_tester import left_pad, random_ids
from .tiny_backbones import COUNT_COLUMNS, EMBED_TOKENS, HYBRIDS, KINDS, MODEL_TYPES, tiny_backbone


WITHOUT_BLOCKS = HYBRIDS
ATTENTION_TYPES = [model_type for model_type in MODEL_TYPES if model_type not in [*HYBRIDS, *COUNT_COLUMNS]]
WITHOUT_MEMORY = EMBED_TOKENS
MEMORY_TYPES = [
    model_type for model_type in ATTENTION_TYPES if model_type in KINDS and model_type not in WITHOUT_MEMORY
]


def make_pair(model_type: str, **fields):
    """A base model with larger than default weights, and the feedback model with the same weights."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_backbone(model_type)).eval()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    feedback = FeedbackForCausalLM(FeedbackConfig(backbone_config=base.config, **fields)).eval()
    feedback.model.backbone = base.base_model
    feedback.lm_head = base.get_output_embeddings()
    return base, feedback


@pytest.mark.parametrize("model_type", ATTENTION_TYPES)
@torch.no_grad()
def test_all_segments_without_a_memory_are_the_base_model(model_type):
    base, model = make_pair(model_type, block_size=5, num_memory_segments=None, feedback_length=0)
    rows = [random_ids(1, length, length)[0] for length in (17, 8, 13)]
    input_ids, attention_mask = left_pad(rows)
    expected = base(input_ids, attention_mask=attention_mask, use_cache=False).logits
    logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits
    visible = attention_mask.bool()
    torch.testing.assert_close(logits[visible], expected[visible], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("model_type", ATTENTION_TYPES)
@torch.no_grad()
def test_one_block_without_a_memory_is_the_base_model_bit_for_bit(model_type):
    base, model = make_pair(model_type, block_size=16, num_memory_segments=0, feedback_length=0)
    # within the sliding windows of the tiny backbones, whose masks make sdpa take another kernel
    input_ids = random_ids(2, 5)
    assert torch.equal(model(input_ids, use_cache=False).logits, base(input_ids, use_cache=False).logits)


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_a_memory_is_causal_and_reaches_across_blocks(model_type):
    _, model = make_pair(model_type, block_size=4, num_memory_segments=0, feedback_length=2)
    model.model.feedback_embedding.weight.normal_()
    input_ids = random_ids(1, 14)
    expected = model(input_ids, use_cache=False).logits
    for changed in (0, 2, 3, 4, 9):
        other_ids = input_ids.clone()
        other_ids[:, changed] = 3 + (input_ids[:, changed] - 2) % 94
        logits = model(other_ids, use_cache=False).logits
        # to rounding: which tokens an expert computes together depends on all of them
        torch.testing.assert_close(logits[:, :changed], expected[:, :changed], atol=1e-5, rtol=1e-5)
        # the last block sees the change through the memory alone
        assert (logits - expected)[:, 12:].abs().max() > 1e-4


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_token_by_token_equals_the_whole(model_type):
    _, model = make_pair(model_type, block_size=4, num_memory_segments=1, feedback_length=2)
    input_ids = random_ids(2, 15)
    expected = model(input_ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits for piece in input_ids.split([6, 3] + [1] * 6, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("model_type", WITHOUT_BLOCKS)
def test_layers_that_are_no_attention_are_refused(model_type):
    with pytest.raises(ValueError, match=f"`backbone_config.layer_types` must be attention layers.*{model_type}"):
        FeedbackConfig(backbone_config=tiny_backbone(model_type))


@pytest.mark.parametrize("model_type", WITHOUT_MEMORY)
def test_layers_that_embed_tokens_are_refused_a_memory(model_type):
    with pytest.raises(ValueError, match=f"`feedback_length` must be 0 for a {model_type} backbone, got 2"):
        FeedbackForCausalLM(FeedbackConfig(backbone_config=tiny_backbone(model_type), feedback_length=2))


@pytest.mark.parametrize("model_type", COUNT_COLUMNS)
def test_layers_that_count_columns_are_refused(model_type):
    with pytest.raises(ValueError, match=f"'{model_type}' cannot have blocks: its layers depend on the columns"):
        FeedbackForCausalLM(FeedbackConfig(backbone_config=tiny_backbone(model_type), feedback_length=0))
