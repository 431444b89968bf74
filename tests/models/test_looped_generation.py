"""Every way to generate gives what greedy decoding without a cache gives, at any loop count."""

import functools
import threading

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
)

from .looped_variants import tiny_looped
from .model_tester import random_ids


PROMPT = random_ids(2, 9)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=["llama", "gemma3_text"])
def model(request):
    return tiny_looped(request.param, num_prelude_layers=1, num_coda_layers=1, injection="add", state_init="zeros")


@pytest.fixture
def llama():
    return tiny_looped(num_prelude_layers=1, num_coda_layers=1)


def greedy(model, num_loops: int, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    return model.generate(prompt, num_loops=num_loops, use_cache=False, **GREEDY)


@pytest.mark.parametrize("num_loops", [1, 3, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_greedy_decoding(model, num_loops, options):
    assert torch.equal(model.generate(PROMPT, num_loops=num_loops, **GREEDY, **options), greedy(model, num_loops))


@pytest.mark.parametrize("num_loops", [1, 5])
def test_beams(model, num_loops):
    options = {**GREEDY, "num_beams": 3, "num_loops": num_loops}
    assert torch.equal(model.generate(PROMPT, **options), model.generate(PROMPT, use_cache=False, **options))


@pytest.mark.parametrize("num_loops", [1, 5])
def test_sampling(model, num_loops):
    options = {**GREEDY, "do_sample": True, "num_loops": num_loops, "num_return_sequences": 3, "top_k": 5}
    torch.manual_seed(0)
    cached = model.generate(PROMPT, **options)
    torch.manual_seed(0)
    assert torch.equal(cached, model.generate(PROMPT, use_cache=False, **options))


@pytest.mark.parametrize("num_loops", [1, 5])
def test_prompt_lookup(llama, num_loops):
    prompt = PROMPT[:1].repeat(1, 3)
    generated = llama.generate(prompt, prompt_lookup_num_tokens=3, num_loops=num_loops, **GREEDY)
    assert torch.equal(generated, greedy(llama, num_loops, prompt))


def test_drafting_with_fewer_loops_gives_the_tokens_of_all_loops(llama, monkeypatch):
    draft = llama.with_num_loops(1)
    loops_run = []

    def record(forward, *args, **kwargs):
        loops_run.append(kwargs["num_loops"])
        return forward(*args, **kwargs)

    for model in (llama.model, draft.model):
        monkeypatch.setattr(model, "forward", functools.partial(record, model.forward))
    generated = llama.generate(PROMPT[:1], assistant_model=draft, num_loops=5, **GREEDY)
    assert set(loops_run) == {1, 5}
    monkeypatch.undo()
    assert torch.equal(generated, greedy(llama, 5, PROMPT[:1]))
    assert torch.equal(draft.generate(PROMPT, **GREEDY), greedy(llama, 1))
    assert llama.config.num_loops == 3


def test_early_exit_drafts_with_fewer_loops(llama):
    one_loop = llama.config.with_num_loops(1).num_hidden_layers
    generated = llama.generate(PROMPT[:1], assistant_early_exit=one_loop, **GREEDY)
    assert torch.equal(generated, greedy(llama, 3, PROMPT[:1]))
    assert llama.config.num_loops == 3


def test_streaming(llama):
    class Tokenizer:
        def decode(self, token_ids, **kwargs):
            return "".join(f"{int(token)} " for token in token_ids)

    streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
    thread = threading.Thread(target=llama.generate, args=(PROMPT[:1],), kwargs={**GREEDY, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(token) for token in text.split()] == greedy(llama, 3, PROMPT[:1])[0, PROMPT.shape[1] :].tolist()


def test_two_threads_may_run_one_model_at_different_depths(llama):
    expected = {num_loops: greedy(llama, num_loops) for num_loops in (1, 2, 4, 5)}
    wrong = []

    def run(num_loops: int) -> None:
        for _ in range(4):
            if not torch.equal(llama.generate(PROMPT, num_loops=num_loops, **GREEDY), expected[num_loops]):
                wrong.append(num_loops)

    threads = [threading.Thread(target=run, args=(num_loops,)) for num_loops in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_quantized_cache(llama):
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}, "num_loops": 5}
    generated = llama.generate(PROMPT, **GREEDY, **options)
    assert generated.shape == (2, 17)
    # eight bits are not exact: the first token, which sees no quantized key, is
    assert torch.equal(generated[:, :10], greedy(llama, 5)[:, :10])


def test_static_caches_follow_the_loop_count(llama):
    for num_loops in (3, 5, 1, 3):
        generated = llama.generate(PROMPT, num_loops=num_loops, cache_implementation="static", **GREEDY)
        assert torch.equal(generated, greedy(llama, num_loops))
    cache = StaticCache(config=llama.config.with_num_loops(5), max_cache_len=32)
    assert torch.equal(llama.generate(PROMPT, past_key_values=cache, num_loops=5, **GREEDY), greedy(llama, 5))
    with pytest.raises(ValueError, match="12 slots but num_loops=4 needs 10"):
        llama.generate(PROMPT, past_key_values=cache, num_loops=4, **GREEDY)


def test_compiled_decoding_with_a_static_cache(llama):
    expected = {num_loops: greedy(llama, num_loops) for num_loops in (1, 4)}
    compiled = torch.compile(llama.forward, backend="eager", fullgraph=True)
    for num_loops in expected:
        cache = StaticCache(config=llama.config.with_num_loops(num_loops), max_cache_len=32)
        tokens = PROMPT
        with torch.no_grad():
            logits = llama(PROMPT, past_key_values=cache, num_loops=num_loops).logits
            for position in range(PROMPT.shape[1], PROMPT.shape[1] + 8):
                tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
                logits = compiled(
                    tokens[:, -1:],
                    position_ids=torch.tensor([[position]]),
                    past_key_values=cache,
                    num_loops=num_loops,
                ).logits
        assert torch.equal(tokens, expected[num_loops])


def test_continuing_a_returned_cache(llama):
    first = llama.generate(PROMPT, num_loops=5, return_dict_in_generate=True, **GREEDY)
    continued = llama.generate(first.sequences, past_key_values=first.past_key_values, num_loops=5, **GREEDY)
    assert torch.equal(continued, greedy(llama, 5, first.sequences))


@pytest.mark.parametrize("num_loops", [None, 1, 5])
def test_continuous_batching(llama, num_loops):
    prompts = [random_ids(1, length, length)[0].tolist() for length in (5, 9, 3)]
    # transformers asks for an end-of-sequence token here: one outside the vocabulary never comes
    options = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    outputs = llama.generate_batch(
        prompts,
        options,
        continuous_batching_config=batching,
        **({} if num_loops is None else {"num_loops": num_loops}),
    )
    outputs = [outputs[key].generated_tokens for key in sorted(outputs)]
    for prompt, generated in zip(prompts, outputs):
        expected = llama.generate(torch.tensor([prompt]), num_loops=num_loops or 3, **{**GREEDY, "max_new_tokens": 6})
        assert generated == expected[0, len(prompt) :].tolist()
    # an ordinary cache still finds its slots afterwards
    assert torch.equal(llama.generate(PROMPT, **GREEDY), greedy(llama, 3))


def test_unknown_arguments_are_still_refused(llama):
    with pytest.raises(ValueError, match="num_loop_count"):
        llama.generate(PROMPT, num_loop_count=3, **GREEDY)


def test_offloading_fetches_the_slot_that_comes_next():
    from hf_loop.models.cache_slots import CacheSlot

    fetched = []

    class OffloadedCache(DynamicCache):
        def prefetch(self, layer_idx, only_non_sliding=True):
            fetched.append(layer_idx)

    cache = OffloadedCache()
    cache.offloading, cache.only_non_sliding = True, False
    cache.update = lambda *args, **kwargs: args[2]
    assert CacheSlot(cache, 7).update(None, None, 0) == 7
    assert fetched == [7]
