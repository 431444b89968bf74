"""A backbone of every kind, pretrained: looped, cached, saved, adapted, and written out as a plain model again."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache

from hf_loop import LoopedForCausalLM, retrofit, unroll

from ..models.tiny_backbones import KINDS, SCALED_BY_DEPTH
from .tiny_models import tiny_decoder


PRELUDE_AND_CODA = {"num_prelude_layers": 1, "num_coda_layers": 1}
# rotary tables and masks must not depend on what else is in the batch
ATTENTION_MASK = torch.tensor([[0] * 4 + [1] * 9, [0] + [1] * 12, [1] * 13])

pytestmark = pytest.mark.parametrize("model_type", KINDS)


def make_inputs(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {"input_ids": torch.randint(3, 97, ATTENTION_MASK.shape), "attention_mask": ATTENTION_MASK}


@pytest.mark.parametrize("injection", ["none", "add", "concat"])
@torch.no_grad()
def test_one_loop_is_the_original_bit_for_bit(model_type, injection):
    base, inputs = tiny_decoder(model_type), make_inputs()
    expected = base(**inputs, use_cache=False).logits
    looped = retrofit(base, **PRELUDE_AND_CODA, num_loops=3, injection=injection)
    logits = looped(**inputs, num_loops=1, use_cache=False).logits
    visible = ATTENTION_MASK.bool()
    assert torch.equal(logits[visible], expected[visible])


@pytest.mark.parametrize("injection", ["none", "add", "diagonal"])
@torch.no_grad()
def test_a_cache_changes_nothing_at_three_loops(model_type, injection):
    looped = retrofit(tiny_decoder(model_type), **PRELUDE_AND_CODA, num_loops=3, injection=injection)
    input_ids = make_inputs(2)["input_ids"]
    expected = looped(input_ids, use_cache=False).logits
    cache = DynamicCache(config=looped.config)
    pieces = [looped(piece, past_key_values=cache).logits for piece in input_ids.split([5, 3] + [1] * 5, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(model_type, tmp_path):
    looped = retrofit(tiny_decoder(model_type), **PRELUDE_AND_CODA, num_loops=2, injection="concat")
    looped.model.injection.proj.weight.add_(0.05)
    looped.save_pretrained(tmp_path)
    loaded = LoopedForCausalLM.from_pretrained(tmp_path)
    inputs = make_inputs()
    torch.testing.assert_close(loaded(**inputs).logits, looped(**inputs).logits, atol=1e-6, rtol=1e-6)
    # and by the Auto class, at another loop count
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=3)
    torch.testing.assert_close(loaded(**inputs).logits, looped(**inputs, num_loops=3).logits, atol=1e-6, rtol=1e-6)


def test_an_adapter_is_trained_saved_and_loaded(model_type, tmp_path):
    inputs = make_inputs()
    looped = retrofit(tiny_decoder(model_type), **PRELUDE_AND_CODA, num_loops=2)
    plain = looped(**inputs).logits.detach()
    adapted = get_peft_model(looped, LoraConfig(r=2, target_modules="all-linear"))
    torch.testing.assert_close(adapted(**inputs).logits, plain)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    adapted.eval()
    trained = adapted(**inputs, num_loops=3).logits.detach()
    assert not torch.allclose(trained, looped_again(model_type)(**inputs, num_loops=3).logits)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(looped_again(model_type), tmp_path)
    torch.testing.assert_close(loaded(**inputs, num_loops=3).logits, trained, atol=1e-6, rtol=1e-6)


def looped_again(model_type: str) -> LoopedForCausalLM:
    return retrofit(tiny_decoder(model_type), **PRELUDE_AND_CODA, num_loops=2)


@torch.no_grad()
def test_unrolled_it_is_a_plain_model_with_the_same_logits(model_type, tmp_path):
    base, inputs = tiny_decoder(model_type), make_inputs()
    plain_class = type(base)
    looped = retrofit(base, core_layers=REPEATABLE.get(model_type, "1-2"), num_loops=3)
    expected = looped(**inputs, use_cache=False).logits
    if model_type in SCALED_BY_DEPTH:
        with pytest.raises(ValueError, match="residual_scale would differ"):
            unroll(looped)
        return
    unrolled = unroll(looped)
    assert type(unrolled) is plain_class
    visible = ATTENTION_MASK.bool()
    assert torch.equal(unrolled(**inputs, use_cache=False).logits[visible], expected[visible])
    unrolled.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits[visible], expected[visible], atol=1e-6, rtol=1e-6)


# deepseek's configuration counts its leading dense layers: with one of them in the core no plain model could follow
REPEATABLE = {"deepseek_v3": "2-3"}
