"""Every way to generate gives what greedy decoding without a cache gives, at any number of slow cycles."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig, StaticCache

from .hierarchical_variants import VARIANTS, tiny_hierarchical
from .model_tester import random_ids


PROMPT = random_ids(2, 9)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=["plain", "hrm_text"])
def model(request):
    return tiny_hierarchical(**VARIANTS[request.param])


def greedy(model, num_loops: int, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    return model.generate(prompt, num_loops=num_loops, use_cache=False, **GREEDY)


@pytest.mark.parametrize("num_loops", [1, 3, 5])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}], ids=str)
def test_greedy_decoding(model, num_loops, options):
    assert torch.equal(model.generate(PROMPT, num_loops=num_loops, **GREEDY, **options), greedy(model, num_loops))


@pytest.mark.parametrize("num_loops", [1, 5])
def test_beams(model, num_loops):
    options = {**GREEDY, "num_beams": 3, "num_loops": num_loops}
    assert torch.equal(model.generate(PROMPT, **options), model.generate(PROMPT, use_cache=False, **options))


def test_drafting_with_fewer_cycles_gives_the_tokens_of_all(model):
    draft = model.with_num_loops(1)
    generated = model.generate(PROMPT[:1], assistant_model=draft, num_loops=5, **GREEDY)
    assert torch.equal(generated, greedy(model, 5, PROMPT[:1]))
    early_exit = model.generate(PROMPT[:1], assistant_early_exit=len(model.config.calls(num_loops=1)), **GREEDY)
    assert torch.equal(early_exit, greedy(model, 3, PROMPT[:1]))
    assert model.config.num_loops == 3


def test_compiled_decoding_with_a_static_cache(model):
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    cache = StaticCache(config=model.config.with_num_loops(4), max_cache_len=32)
    tokens = PROMPT
    with torch.no_grad():
        logits = model(PROMPT, past_key_values=cache, num_loops=4).logits
        for position in range(PROMPT.shape[1], PROMPT.shape[1] + 8):
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
            position_ids = torch.tensor([[position]])
            logits = compiled(tokens[:, -1:], position_ids=position_ids, past_key_values=cache, num_loops=4).logits
    assert torch.equal(tokens, greedy(model, 4))


# transformers' own HrmTextForCausalLM gives other tokens here: its attention hides the slot from a paged cache
@pytest.mark.parametrize("num_loops", [None, 5])
def test_continuous_batching(model, num_loops):
    prompts = [random_ids(1, length, length)[0].tolist() for length in (5, 9, 3)]
    # transformers asks for an end-of-sequence token here: one outside the vocabulary never comes
    options = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    depth = {} if num_loops is None else {"num_loops": num_loops}
    outputs = model.generate_batch(prompts, options, continuous_batching_config=batching, **depth)
    outputs = [outputs[key].generated_tokens for key in sorted(outputs)]
    for prompt, generated in zip(prompts, outputs, strict=True):
        expected = model.generate(torch.tensor([prompt]), num_loops=num_loops or 3, **{**GREEDY, "max_new_tokens": 6})
        assert generated == expected[0, len(prompt) :].tolist()
    # an ordinary cache still finds its slots afterwards
    assert torch.equal(model.generate(PROMPT, **GREEDY), greedy(model, 3))


def test_one_adapter_serves_every_cycle(model, tmp_path):
    expected = model(PROMPT).logits
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    torch.testing.assert_close(adapted(PROMPT).logits, expected)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()
    for _ in range(2):
        adapted(PROMPT, labels=PROMPT, num_loops=4, num_backprop_loops=2).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    trained = adapted(PROMPT, num_loops=5).logits
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(PROMPT).logits, expected)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(adapted.unload(), tmp_path).eval()
    torch.testing.assert_close(loaded(PROMPT, num_loops=5).logits, trained)
    assert not torch.allclose(trained, loaded.unload()(PROMPT, num_loops=5).logits, atol=1e-3)
