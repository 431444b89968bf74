"""Every supported backbone, pretrained: in one window the original, asleep something else, saved, adapted."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, TorchAoConfig

from hf_loop import SleepForCausalLM, retrofit

from ..models.model_tester import left_pad, random_ids
from ..models.sleep_variants import HYBRIDS
from ..models.tiny_backbones import ADD_POSITIONS, EMBED_TOKENS, KINDS
from .tiny_models import tiny_decoder


CANNOT_SLEEP = [*EMBED_TOKENS, *ADD_POSITIONS]
SLEEPERS = [model_type for model_type in KINDS if model_type not in CANNOT_SLEEP]
WINDOWS = {"sleep_window": 4, "num_sleep_passes": 2}
INPUT_IDS, ATTENTION_MASK = left_pad([random_ids(1, length, length)[0] for length in (9, 12, 13)])
INPUTS = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}
CLOSE = {"atol": 3e-5, "rtol": 3e-5}


def sleeper(model_type: str, **options) -> SleepForCausalLM:
    """A retrofitted model whose inserted layers are as if trained."""
    model = retrofit(tiny_decoder(model_type), "sleep", **{**WINDOWS, **options})
    with torch.no_grad():
        for layer in model.model.memory_layers:
            layer.o_proj.weight.normal_(std=0.2)
    return model


@pytest.mark.parametrize("num_sleep_passes", [1, 3])
@pytest.mark.parametrize("model_type", SLEEPERS)
@torch.no_grad()
def test_one_window_is_the_original_bit_for_bit(model_type, num_sleep_passes):
    base, input_ids = tiny_decoder(model_type), random_ids(2, 13)
    expected = base(input_ids, use_cache=False).logits
    weights = {id(parameter) for parameter in base.parameters()}
    model = retrofit(base, "sleep", sleep_window=13, num_sleep_passes=num_sleep_passes)
    assert torch.equal(model(input_ids, use_cache=False).logits, expected)
    # moved, not copied, and what is new are the inserted layers
    new = {id(parameter) for parameter in model.model.memory_layers.parameters()}
    assert weights | new == {id(parameter) for parameter in model.parameters()}
    assert bool(new) == (model_type not in HYBRIDS)


@pytest.mark.parametrize("model_type", SLEEPERS)
@torch.no_grad()
def test_later_windows_know_the_first_by_the_fast_weights(model_type):
    model, input_ids = sleeper(model_type), random_ids(2, 12)
    changed = input_ids.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 90 + 3
    outputs = [model(ids, use_cache=False).logits for ids in (input_ids, changed)]
    assert not torch.allclose(outputs[0][:, -1], outputs[1][:, -1], atol=1e-6)
    once = model(input_ids, use_cache=False, num_sleep_passes=1).logits
    torch.testing.assert_close(once[:, :4], outputs[0][:, :4], **CLOSE)
    assert not torch.allclose(once[:, 4:], outputs[0][:, 4:], atol=1e-5)


@pytest.mark.parametrize("model_type", SLEEPERS)
@torch.no_grad()
def test_a_cache_changes_nothing(model_type):
    model, input_ids = sleeper(model_type), random_ids(2, 15)
    expected = model(input_ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits for piece in input_ids.split([6, 3] + [1] * 6, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **CLOSE)


@pytest.mark.parametrize("model_type", SLEEPERS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(model_type, tmp_path):
    model = sleeper(model_type)
    model.save_pretrained(tmp_path)
    expected = model(**INPUTS).logits
    for loaded in (SleepForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        torch.testing.assert_close(loaded(**INPUTS).logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", *HYBRIDS])
def test_an_adapter_is_trained_saved_and_loaded(model_type, tmp_path):
    model = sleeper(model_type)
    plain = model(**INPUTS).logits.detach()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    torch.testing.assert_close(adapted(**INPUTS).logits, plain)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()(**INPUTS, labels=INPUT_IDS).loss.backward()
    optimizer.step()
    adapted.eval()
    trained = adapted(**INPUTS).logits.detach()
    assert not torch.allclose(trained, plain, atol=1e-4)
    adapted.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = retrofit(tiny_decoder(model_type), "sleep", **WINDOWS)
    again.model.memory_layers.load_state_dict(
        {name.replace(".base_layer", ""): weight for name, weight in model.model.memory_layers.state_dict().items()
         if "lora_" not in name}
    )  # fmt: skip
    loaded = PeftModel.from_pretrained(again, tmp_path)
    torch.testing.assert_close(loaded(**INPUTS).logits, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["hebbian", "delta", "gated_delta", "oja"])
def test_inserted_layers_start_as_those_of_a_new_model_do(rule):
    torch.manual_seed(0)
    model = retrofit(
        tiny_decoder("llama").to(torch.bfloat16), "sleep", fast_weight_layers=[0, 2], fast_weight_rule=rule
    )
    new = SleepForCausalLM(model.config)
    assert len(model.model.memory_layers) == 2
    for layer, expected in zip(model.model.memory_layers, new.model.memory_layers):
        for name, parameter in layer.named_parameters():
            other = expected.get_parameter(name)
            assert parameter.dtype == torch.bfloat16 and parameter.device.type == "cpu"
            assert parameter.std().item() == pytest.approx(other.std().item(), rel=0.2, abs=1e-6), name
            assert parameter.mean().item() == pytest.approx(other.mean().item(), rel=0.2, abs=0.1), name


def test_every_new_parameter_trains():
    model = sleeper("gemma3_text", fast_weight_layers=[0, 3]).train()
    model(**INPUTS, labels=INPUT_IDS).loss.backward()
    for name, parameter in model.model.memory_layers.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("model_type", CANNOT_SLEEP)
def test_layers_that_embed_tokens_are_refused(model_type):
    base = tiny_decoder(model_type)
    expected = base(INPUT_IDS).logits
    with pytest.raises(ValueError, match=f"'{base.config.model_type}' cannot sleep") as error:
        retrofit(base, "sleep")
    assert "\n" not in str(error.value)
    assert torch.equal(base(INPUT_IDS).logits, expected)


def test_options_reach_the_configuration():
    options = {
        "sleep_window": 8,
        "num_sleep_passes": 3,
        "eviction": "sliding",
        "sleep_layers": [1, 4],
        "reset_conv": False,
        "position_mode": "absolute",
        "fast_weight_layers": [1, 2],
        "fast_weight_rule": "delta",
        "fast_weight_num_heads": 2,
        "fast_weight_head_dim": 8,
        "num_backprop_windows": 5,
        "sleep_over_labels": False,
    }
    model = retrofit(tiny_decoder("llama"), "sleep", **options)
    assert {name: getattr(model.config, name) for name in options} == options


def test_what_the_configuration_refuses_leaves_the_original_as_it_was():
    base = tiny_decoder("llama")
    expected = base(**INPUTS).logits
    with pytest.raises(ValueError, match="`sleep_window` must be an integer of at least 1, got 0"):
        retrofit(base, "sleep", sleep_window=0)
    assert torch.equal(base(**INPUTS).logits, expected)


def torchao_int8():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes_8bit():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


@pytest.mark.parametrize("quantization", [torchao_int8, bitsandbytes_8bit])
@torch.no_grad()
def test_a_quantized_model_stays_quantized(quantization, tmp_path):
    tiny_decoder("llama", intermediate_size=128).save_pretrained(tmp_path / "plain")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=quantization(), dtype=torch.float32
    )
    input_ids = random_ids(2, 9)
    expected = base(input_ids).logits
    model = retrofit(base, "sleep", **WINDOWS)
    assert model.model.memory_layers[0].qkv_proj.weight.dtype == torch.float32
    for layer in model.model.memory_layers:
        layer.o_proj.weight.normal_(std=0.2)
    model.save_pretrained(tmp_path / "sleep")
    loaded = SleepForCausalLM.from_pretrained(tmp_path / "sleep")
    assert loaded.get_memory_footprint() == model.get_memory_footprint()
    torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits, atol=1e-6, rtol=1e-6)
    for layer in model.model.memory_layers:
        layer.o_proj.weight.zero_()
    torch.testing.assert_close(model(input_ids).logits[:, :4], expected[:, :4], atol=1e-5, rtol=1e-5)
