"""Every way to generate gives what greedy decoding without a cache gives, across the borders of blocks."""

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

from .feedback_variants import BLOCK_SIZE, VARIANTS, make_feedback
from .looped_variants import tiny_looped
from .model_tester import left_pad, random_ids


# in the third block, and long enough to complete four more
PROMPT = random_ids(2, 9)
GREEDY = {"max_new_tokens": 4 * BLOCK_SIZE, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(params=VARIANTS)
def model(request):
    return make_feedback(**VARIANTS[request.param])


@pytest.fixture
def plain():
    return make_feedback()


def greedy(model, prompt: torch.Tensor = PROMPT, **options) -> torch.Tensor:
    return model.generate(prompt, use_cache=False, **GREEDY, **options)


@pytest.mark.parametrize("length", range(1, 2 * BLOCK_SIZE + 2))
def test_a_prompt_may_end_anywhere_in_a_block(model, length):
    prompt = random_ids(2, length, seed=length)
    assert torch.equal(model.generate(prompt, **GREEDY), greedy(model, prompt))


@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral", "qwen3_moe", "olmo2", "deepseek_v3"])
def test_other_backbones(model_type):
    model = make_feedback(model_type, scale=2.0)
    assert torch.equal(model.generate(PROMPT, **GREEDY), greedy(model))


@pytest.mark.parametrize("chunk_size", [1, 3, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE])
def test_chunked_prefill(model, chunk_size):
    input_ids, attention_mask = left_pad([random_ids(1, 11)[0], random_ids(1, 6)[0]])
    options = {"attention_mask": attention_mask, **GREEDY}
    generated = model.generate(input_ids, prefill_chunk_size=chunk_size, **options)
    assert torch.equal(generated, model.generate(input_ids, use_cache=False, **options))


def test_left_padded_sequences_generate_what_they_generate_alone(model):
    # every place in a block, and a row that is still in its first one
    rows = [random_ids(1, length, length)[0] for length in (3, 8, 5, 14, 1)]
    input_ids, attention_mask = left_pad(rows)
    batched = model.generate(input_ids, attention_mask=attention_mask, **GREEDY)
    uncached = model.generate(input_ids, attention_mask=attention_mask, use_cache=False, **GREEDY)
    assert torch.equal(batched, uncached)
    for row, generated in zip(rows, batched):
        assert torch.equal(greedy(model, row[None])[0, len(row) :], generated[input_ids.shape[1] :])


def test_beams(model):
    input_ids, attention_mask = left_pad([random_ids(1, 9)[0], random_ids(1, 6)[0]])
    options = {**GREEDY, "attention_mask": attention_mask, "num_beams": 3, "num_return_sequences": 2}
    generated = model.generate(input_ids, **options)
    assert torch.equal(generated, model.generate(input_ids, use_cache=False, **options))
    assert not torch.equal(generated[::2], generated[1::2])


def test_beams_are_those_of_a_search_written_out(plain):
    num_beams = 3
    beams, scores = PROMPT[:1], torch.zeros(1)
    with torch.no_grad():
        for _ in range(GREEDY["max_new_tokens"]):
            logits = plain(beams, use_cache=False).logits[:, -1]
            candidates = scores[:, None] + logits.log_softmax(-1)
            scores, best = candidates.flatten().topk(num_beams)
            beams = torch.cat([beams[best // logits.shape[1]], best[:, None] % logits.shape[1]], dim=1)
    generated = plain.generate(PROMPT[:1], num_beams=num_beams, num_return_sequences=num_beams, **GREEDY)
    assert torch.equal(generated, beams)


def test_sampling(model):
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3, "top_k": 5}
    torch.manual_seed(0)
    cached = model.generate(PROMPT, **options)
    torch.manual_seed(0)
    assert torch.equal(cached, model.generate(PROMPT, use_cache=False, **options))
    assert len(cached.unique(dim=0)) == 6


def test_embeddings_as_the_prompt(model):
    generated = model.generate(inputs_embeds=model.get_input_embeddings()(PROMPT), **GREEDY)
    assert torch.equal(generated, greedy(model)[:, PROMPT.shape[1] :])


def test_streaming(plain):
    class Tokenizer:
        def decode(self, token_ids, **kwargs):
            return "".join(f"{int(token)} " for token in token_ids)

    streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True)
    thread = threading.Thread(target=plain.generate, args=(PROMPT[:1],), kwargs={**GREEDY, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(token) for token in text.split()] == greedy(plain, PROMPT[:1])[0, PROMPT.shape[1] :].tolist()


@pytest.mark.parametrize("num_new", [1, 3, 2 * BLOCK_SIZE])
def test_a_conversation_continues_from_the_returned_cache(model, num_new):
    input_ids, attention_mask = left_pad([random_ids(1, 9)[0], random_ids(1, 6)[0]])
    first = model.generate(input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **GREEDY)
    turn = random_ids(2, num_new, seed=5)
    conversation = torch.cat([first.sequences, turn], dim=1)
    mask = torch.ones_like(conversation)
    mask[:, : input_ids.shape[1]] = attention_mask
    expected = model.generate(conversation, attention_mask=mask, use_cache=False, **GREEDY)
    # the last token that was generated has not been read yet
    alone = conversation[:, -num_new - 1 :]
    for given in (conversation, alone):
        again = model.generate(input_ids, attention_mask=attention_mask, return_dict_in_generate=True, **GREEDY)
        cache = again.past_key_values
        continued = model.generate(given, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert torch.equal(continued, torch.cat([given, expected[:, conversation.shape[1] :]], dim=1))


@pytest.mark.parametrize("num_memory_segments", [0, 2])
def test_memory_does_not_grow(num_memory_segments):
    model = make_feedback(num_memory_segments=num_memory_segments)

    def num_bytes(num_blocks: int, num_prompt: int) -> int:
        options = {**GREEDY, "max_new_tokens": num_blocks * BLOCK_SIZE - num_prompt + 1}
        outputs = model.generate(random_ids(2, num_prompt), return_dict_in_generate=True, **options)
        tensors = [tensor for layer in outputs.past_key_values.layers for tensor in layer.memory]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    # keys and values of four layers, two heads of 16 numbers, for the memory, the segments and the open block
    num_slots = 2 + (num_memory_segments + 1) * BLOCK_SIZE
    expected = 4 * 2 * (2 * num_slots * 2 * 16 + 2 * 64) * 4
    assert num_bytes(3, num_prompt=5) == num_bytes(30, num_prompt=5) == expected
    assert num_bytes(3, num_prompt=12) == num_bytes(30, num_prompt=120) == expected


def test_without_a_limit_on_segments_memory_grows():
    cache = DynamicCache(config=make_feedback().config)
    model = make_feedback(num_memory_segments=None)
    with torch.no_grad():
        model(random_ids(1, 120), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == 2 + 120


def test_sequences_of_a_cache_can_be_selected_and_repeated(model):
    rows = [random_ids(1, length, length)[0] for length in (3, 8, 5)]
    input_ids, attention_mask = left_pad(rows)
    following = random_ids(3, 7, seed=9)
    mask = torch.cat([attention_mask, torch.ones_like(following)], dim=1)
    with torch.no_grad():
        expected = model(torch.cat([input_ids, following], dim=1), attention_mask=mask, use_cache=False).logits[:, -7:]

        def continued(picked: list[int], change) -> torch.Tensor:
            cache = model(input_ids, attention_mask=attention_mask, use_cache=True).past_key_values
            change(cache)
            return model(following[picked], attention_mask=mask[picked], past_key_values=cache).logits

        changes = {
            (2, 0): lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
            (1, 1, 0): lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])),
            (0, 0, 1, 1, 2, 2): lambda cache: cache.batch_repeat_interleave(2),
        }
        for picked, change in changes.items():
            picked = list(picked)
            torch.testing.assert_close(continued(picked, change), expected[picked], atol=2e-5, rtol=2e-5)


def test_a_reset_cache_is_an_empty_one(model):
    cache = DynamicCache(config=model.config)
    model.generate(random_ids(3, 11), past_key_values=cache, **GREEDY)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(model.generate(PROMPT, past_key_values=cache, **GREEDY), greedy(model))


def test_several_threads_may_run_one_model(plain):
    prompts = [random_ids(2, length, seed=length) for length in (3, 4, 9, 14)]
    expected = [greedy(plain, prompt) for prompt in prompts]
    wrong = []

    def run(index: int) -> None:
        for _ in range(3):
            if not torch.equal(plain.generate(prompts[index], **GREEDY), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_flex_attention_is_refused():
    with pytest.raises(ValueError, match="Feedback.*does not support.*flex_attention"):
        make_feedback(attention="flex_attention")


def test_eager_attention_is_the_same():
    for name, schedule in VARIANTS.items():
        model = make_feedback(**schedule)
        other = make_feedback(attention="eager", **schedule)
        input_ids, attention_mask = left_pad([random_ids(1, 11)[0], random_ids(1, 6)[0]])
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        with torch.no_grad():
            difference = model(**inputs).logits - other(**inputs).logits
        assert difference[attention_mask.bool()].abs().max() < 2e-5, name
        assert torch.equal(other.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY)), name


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_steps_back_are_refused(plain):
    assistant = make_feedback(seed=1)
    assert "stateful" in refusal(plain.generate, PROMPT[:1], assistant_model=assistant, **GREEDY)
    assert "stateful" in refusal(plain.generate, PROMPT[:1], prompt_lookup_num_tokens=3, **GREEDY)
    cache = plain(PROMPT, use_cache=True).past_key_values
    assert "cannot be cropped" in refusal(cache.crop, -1)


@pytest.mark.parametrize("implementation", ["static", "quantized", "offloaded", "offloaded_static", "paged"])
def test_caches_of_another_form_are_refused(plain, implementation):
    message = refusal(plain.generate, PROMPT, cache_implementation=implementation, **GREEDY)
    assert "feedback_lm" in message


def test_continuous_batching_is_refused(plain):
    options = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    message = refusal(plain.generate_batch, [[5, 6]], options, continuous_batching_config=batching)
    assert "`generate_batch`" in message


def test_foreign_caches_are_refused(plain):
    looped = tiny_looped()
    caches = {
        "of a backbone": DynamicCache(config=plain.config.backbone_config),
        "of a looped model": looped(PROMPT, use_cache=True).past_key_values,
        "static": StaticCache(config=plain.config.backbone_config, max_cache_len=64),
        "offloaded": DynamicCache(config=plain.config, offloading=True),
        "of fewer layers": DynamicCache(config=make_feedback_config(num_hidden_layers=3)),
        "of longer memories": filled(feedback_length=3),
        "of longer blocks": filled(block_size=6),
        "of more segments": filled(num_memory_segments=3),
        "of no memory": filled(feedback_length=0),
        "of another source": filled(feedback_source="top"),
    }
    for name, cache in caches.items():
        assert "`cache`" in refusal(plain, PROMPT, past_key_values=cache), name
    other_rows = plain(random_ids(3, 5), use_cache=True).past_key_values
    assert "3 rows" in refusal(plain, PROMPT, past_key_values=other_rows)
    # filled by whoever reads first
    empty = DynamicCache()
    assert torch.equal(plain.generate(PROMPT, past_key_values=empty, **GREEDY), greedy(plain))


def make_feedback_config(num_hidden_layers: int):
    config = make_feedback().config
    config.backbone_config.num_hidden_layers = num_hidden_layers
    return config


def filled(**schedule) -> DynamicCache:
    return make_feedback(**schedule)(random_ids(2, 9), use_cache=True).past_key_values
