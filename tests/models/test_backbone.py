"""Every supported backbone: one loop is the base model, and a cache changes nothing."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from hf_loop import LoopedConfig, LoopedForCausalLM, retrofit

from .tiny_backbones import MODEL_TYPES, tiny_backbone


@pytest.fixture
def base(model_type):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_backbone(model_type)).eval()
    # larger weights than the default of 0.02 tell apart what two layer orders or masks compute
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_one_loop_is_the_base_model(base, model_type):
    torch.manual_seed(1)
    input_ids = torch.randint(3, 97, (3, 13))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, :4] = 0
    attention_mask[1, :1] = 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    expected = base(**inputs, use_cache=False).logits
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=1)
    logits = looped(**inputs, use_cache=False).logits
    visible = attention_mask.bool()
    assert torch.equal(logits[visible], expected[visible])


@pytest.mark.parametrize("num_loops", [1, 3])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_cached_equals_uncached(base, model_type, num_loops):
    torch.manual_seed(2)
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=3)
    input_ids = torch.randint(3, 97, (2, 14))
    expected = looped(input_ids, num_loops=num_loops, use_cache=False).logits
    cache = DynamicCache(config=looped.config.with_num_loops(num_loops))
    # a prompt in two chunks, then token by token
    pieces = [
        looped(piece, num_loops=num_loops, past_key_values=cache, use_cache=True).logits
        for piece in input_ids.split([5, 3] + [1] * 6, dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=5e-5, rtol=5e-5)


def test_an_unsupported_architecture_says_what_it_lacks():
    with pytest.raises(ValueError, match="'openai-gpt' cannot be opened: it has no cache and no final norm"):
        LoopedForCausalLM(LoopedConfig(backbone_config={"model_type": "openai-gpt", "n_layer": 2}))
    with pytest.raises(ValueError, match="'nope' is not a transformers model type"):
        LoopedConfig(backbone_config={"model_type": "nope"})


def test_a_router_loss_is_refused():
    with pytest.raises(ValueError, match="output_router_logits"):
        LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("mixtral", output_router_logits=True)))


def test_what_the_backbone_declares_reaches_the_outer_model():
    config = LoopedConfig(backbone_config=tiny_backbone("llama"), num_prelude_layers=1, num_coda_layers=1)
    model = LoopedForCausalLM(config)
    assert "LlamaDecoderLayer" in model._no_split_modules
    assert model._can_compile_fullgraph
    assert model.tp_plan["model.backbone.layers.*.self_attn.q_proj"] == "colwise"
    # what runs once is gathered when it runs, what runs in every loop is kept
    strategies = [model.fsdp_plan[f"model.backbone.layers.{index}"] for index in range(4)]
    assert strategies == ["free_full_weight", "keep_full_weight", "keep_full_weight", "free_full_weight"]
