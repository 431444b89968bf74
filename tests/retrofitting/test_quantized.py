"""A quantized decoder is looped as it is: same one loop, same after saving and loading."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from hf_loop import LoopedForCausalLM, retrofit, unroll

from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


INPUT_IDS = random_ids(2, 9)


def torchao_int8():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes_4bit():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True)


def bitsandbytes_8bit():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.fixture(params=[torchao_int8, bitsandbytes_4bit, bitsandbytes_8bit])
def base(request, tmp_path):
    # bitsandbytes quantizes by blocks of 64 weights of a row
    tiny_decoder("llama", intermediate_size=128).save_pretrained(tmp_path / "plain")
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=request.param(), dtype=torch.float32
    )


@pytest.mark.parametrize("injection", ["none", "concat"])
@torch.no_grad()
def test_a_quantized_model_is_looped_saved_and_loaded(base, injection, tmp_path):
    expected = base(INPUT_IDS).logits
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=2, injection=injection)
    assert torch.equal(looped(INPUT_IDS, num_loops=1).logits, expected)
    size = looped.get_memory_footprint()
    looped.save_pretrained(tmp_path / "looped")
    loaded = LoopedForCausalLM.from_pretrained(tmp_path / "looped")
    assert loaded.get_memory_footprint() == size
    torch.testing.assert_close(loaded(INPUT_IDS).logits, looped(INPUT_IDS).logits, atol=1e-6, rtol=1e-6)
    if injection == "none":
        assert torch.equal(unroll(looped, 2)(INPUT_IDS).logits, looped(INPUT_IDS).logits)


def test_loops_differ_on_quantized_layers(base):
    quantized = base.model.layers[1].self_attn.q_proj.weight
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=2, loop_lora_rank=4)
    expected = looped(INPUT_IDS).logits
    looped.train()(INPUT_IDS, labels=INPUT_IDS).loss.backward()
    updates = looped.model.loop_lora[0]
    assert updates.self_attn_q_proj_B.dtype == torch.float32 and updates.self_attn_q_proj_B.grad.all(dim=(1, 2)).all()
    with torch.no_grad():
        updates.self_attn_q_proj_B.normal_()
        assert not torch.allclose(looped.eval()(INPUT_IDS).logits, expected)
    assert looped.model.backbone.layers[1].self_attn.q_proj.weight is quantized
    with pytest.raises(ValueError, match="'self_attn.q_proj.weight' is quantized"):
        unroll(looped, 2)


def test_quantized_layers_are_not_folded(base):
    with pytest.raises(ValueError, match="`fold` needs weights that are not quantized: self_attn.q_proj.weight of"):
        retrofit(base, num_loops=2, fold="average", loop_lora_rank=4)
