"""Every supported backbone with attention layers, pretrained: given a memory, cached, saved, adapted."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, TorchAoConfig

from hf_loop import FeedbackForCausalLM, retrofit
from hf_loop.models.backbone import Backbone

from ..models.model_tester import left_pad, random_ids
from ..models.tiny_backbones import COUNT_COLUMNS, EMBED_TOKENS, HYBRIDS, KINDS
from .tiny_models import tiny_decoder


WITHOUT_BLOCKS = HYBRIDS
WITHOUT_MEMORY = EMBED_TOKENS
ATTENTION_TYPES = [model_type for model_type in KINDS if model_type not in [*HYBRIDS, *COUNT_COLUMNS]]
MEMORY_TYPES = [model_type for model_type in ATTENTION_TYPES if model_type not in WITHOUT_MEMORY]
BLOCKS = {"block_size": 4, "num_memory_segments": 1, "feedback_length": 2}
INPUT_IDS, ATTENTION_MASK = left_pad([random_ids(1, length, length)[0] for length in (9, 12, 13)])
INPUTS = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK}
VISIBLE = ATTENTION_MASK.bool()


@pytest.mark.parametrize("model_type", ATTENTION_TYPES)
@torch.no_grad()
def test_without_a_memory_it_is_the_original(model_type):
    base = tiny_decoder(model_type)
    # within the windows of the backbones that have some: there the original runs without a mask, and so does a block
    short_ids = random_ids(2, 5)
    expected, expected_short = base(**INPUTS, use_cache=False).logits, base(short_ids, use_cache=False).logits
    weights = {id(parameter) for parameter in base.parameters()}
    feedback = retrofit(base, "feedback", block_size=16, num_memory_segments=None, feedback_length=0)
    assert torch.equal(feedback(short_ids, use_cache=False).logits, expected_short)
    # moved, not copied, and nothing is new
    assert weights == {id(parameter) for parameter in feedback.parameters()}
    feedback.config.block_size = 4
    torch.testing.assert_close(
        feedback(**INPUTS, use_cache=False).logits[VISIBLE], expected[VISIBLE], atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_the_first_block_is_the_originals_and_the_next_sees_a_memory(model_type):
    base, input_ids = tiny_decoder(model_type), random_ids(2, 8)
    expected = base(input_ids, use_cache=False).logits
    feedback = retrofit(base, "feedback", **BLOCKS)
    logits = feedback(input_ids, use_cache=False).logits
    torch.testing.assert_close(logits[:, :4], expected[:, :4], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(logits[:, 4:], expected[:, 4:], atol=1e-3)


@pytest.mark.parametrize("feedback_init", ["prompt", "prefix"])
@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_the_memory_starts_from_tokens_as_they_enter_the_first_layer(model_type, feedback_init):
    base = tiny_decoder(model_type).to(torch.bfloat16).train()
    feedback = retrofit(base, "feedback", feedback_length=8, feedback_init=feedback_init)
    assert feedback.training and feedback.model.training and feedback.model.backbone.training
    memory = feedback.eval().model.feedback_embedding.weight
    entered = Backbone(feedback.model.backbone).enter(
        feedback.get_input_embeddings()(torch.arange(97)[None]), torch.zeros(1, 1, dtype=torch.long)
    )[0]
    distances = torch.cdist(memory.flatten(0, -2).float(), entered.float()).min(dim=-1)
    assert memory.dtype == torch.bfloat16 and distances.values.max() < 1e-2
    assert len(distances.indices.unique()) > 4


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_a_cache_changes_nothing(model_type):
    feedback = retrofit(tiny_decoder(model_type), "feedback", **BLOCKS)
    input_ids = random_ids(2, 15)
    expected = feedback(input_ids, use_cache=False).logits
    cache = DynamicCache(config=feedback.config)
    pieces = [feedback(piece, past_key_values=cache).logits for piece in input_ids.split([6, 3] + [1] * 6, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(model_type, tmp_path):
    feedback = retrofit(tiny_decoder(model_type), "feedback", **BLOCKS)
    feedback.save_pretrained(tmp_path)
    expected = feedback(**INPUTS).logits
    for loaded in (FeedbackForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        torch.testing.assert_close(loaded(**INPUTS).logits, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("model_type", MEMORY_TYPES)
def test_an_adapter_and_the_memory_are_trained_saved_and_loaded(model_type, tmp_path):
    feedback = retrofit(tiny_decoder(model_type), "feedback", **BLOCKS)
    # as the paper trains: LoRA on every linear map, and the memory that a sequence starts from
    lora = LoraConfig(r=2, target_modules="all-linear")
    plain = feedback(**INPUTS).logits.detach()
    before = feedback.model.feedback_embedding.weight.detach().clone()
    adapted = get_peft_model(feedback, lora)
    feedback.model.feedback_embedding.weight.requires_grad_(True)
    torch.testing.assert_close(adapted(**INPUTS).logits, plain)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()(**INPUTS, labels=INPUT_IDS).loss.backward()
    optimizer.step()
    adapted.eval()
    assert not torch.equal(feedback.model.feedback_embedding.weight, before)
    trained = adapted(**INPUTS).logits.detach()
    assert not torch.allclose(trained, plain, atol=1e-4)
    adapted.save_pretrained(tmp_path)
    again = retrofit(tiny_decoder(model_type), "feedback", **BLOCKS)
    again.model.feedback_embedding.weight.data = feedback.model.feedback_embedding.weight.data
    loaded = PeftModel.from_pretrained(again, tmp_path)
    torch.testing.assert_close(loaded(**INPUTS).logits, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", WITHOUT_BLOCKS)
def test_layers_that_are_no_attention_are_refused(model_type):
    base = tiny_decoder(model_type)
    with pytest.raises(ValueError, match=f"must be attention layers, got .* of a {model_type}") as error:
        retrofit(base, "feedback")
    assert "\n" not in str(error.value)
    # and the original still works
    assert base(**INPUTS).logits[VISIBLE].isfinite().all()


@pytest.mark.parametrize("model_type", WITHOUT_MEMORY)
def test_layers_that_embed_tokens_are_refused_a_memory(model_type):
    with pytest.raises(ValueError, match=f"`feedback_length` must be 0 for a {model_type} backbone"):
        retrofit(tiny_decoder(model_type), "feedback")


@pytest.mark.parametrize(("feedback_init", "shape"), [("prompt", (2, 64)), ("prefix", (4, 2, 64))])
def test_every_new_parameter_trains(feedback_init, shape):
    feedback = retrofit(tiny_decoder("gemma3_text").train(), "feedback", **BLOCKS, feedback_init=feedback_init)
    assert feedback.model.feedback_embedding.weight.shape == shape
    feedback(**INPUTS, labels=INPUT_IDS).loss.backward()
    gradient = feedback.model.feedback_embedding.weight.grad
    assert gradient is not None and gradient.any(dim=-1).all()


def test_options_reach_the_configuration():
    options = {
        "block_size": 8,
        "num_memory_segments": None,
        "feedback_length": 3,
        "feedback_source": "top",
        "zero_first_residual": False,
        "stop_gradient": True,
        "random_state_passing": 0.5,
        "random_position_offset": 7,
    }
    feedback = retrofit(tiny_decoder("llama"), "feedback", **options)
    assert {name: getattr(feedback.config, name) for name in options} == options


def test_what_the_configuration_refuses_leaves_the_original_as_it_was():
    base = tiny_decoder("llama")
    expected = base(**INPUTS).logits
    with pytest.raises(ValueError, match="`block_size` must be an integer of at least 1, got 0"):
        retrofit(base, "feedback", block_size=0)
    assert torch.equal(base(**INPUTS).logits, expected)


def test_a_path_is_loaded_and_does_not_name_the_model(tmp_path):
    base = tiny_decoder("llama")
    base.save_pretrained(tmp_path)
    feedback = retrofit(tmp_path, "feedback", **BLOCKS)
    # what is named would be loaded as the base of an adapter
    assert feedback.name_or_path == ""
    input_ids = INPUT_IDS[-1:, :4]
    torch.testing.assert_close(feedback(input_ids).logits, base(input_ids).logits)


def test_the_attention_function_stays_the_one_that_was_chosen():
    base = tiny_decoder("llama")
    base.set_attn_implementation("eager")
    feedback = retrofit(base, "feedback")
    assert feedback.config._attn_implementation == "eager"
    assert feedback.model.backbone.config._attn_implementation == "eager"


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
    feedback = retrofit(base, "feedback", **BLOCKS)
    logits = feedback(input_ids).logits
    torch.testing.assert_close(logits[:, :4], expected[:, :4], atol=1e-5, rtol=1e-5)
    feedback.save_pretrained(tmp_path / "feedback")
    loaded = FeedbackForCausalLM.from_pretrained(tmp_path / "feedback")
    assert loaded.get_memory_footprint() == feedback.get_memory_footprint()
    torch.testing.assert_close(loaded(input_ids).logits, logits, atol=1e-6, rtol=1e-6)
