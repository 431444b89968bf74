"""Every way to generate gives what greedy decoding without a cache gives, and sleep is the same wherever it comes."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from .model_tester import left_pad, random_ids
from .sleep_variants import VARIANTS, WINDOW, make_sleep


PROMPT = random_ids(2, 10)
GREEDY = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
SOME = ("qwen3_5_text", "inserted", "sliding eviction, middle layers", "first layers, kept convolution")

CONTINUE = """
import json, sys, torch
import hf_loop
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[3]))
options = dict(json.loads(sys.argv[4]), return_dict_in_generate=True, output_logits=True)
outputs = model.generate(ids, past_key_values=model.load_memory(sys.argv[2]), **options)
torch.save((outputs.sequences, torch.stack(outputs.logits)), sys.argv[5])
"""


@pytest.fixture(params=SOME)
def model(request):
    return make_sleep(**VARIANTS[request.param])


def greedy(model, prompt: torch.Tensor = PROMPT, **options) -> torch.Tensor:
    return model.generate(prompt, use_cache=False, **{**GREEDY, **options})


def read(model, input_ids: torch.Tensor, **kwargs) -> DynamicCache:
    with torch.no_grad():
        return model(input_ids, use_cache=True, **kwargs).past_key_values


def states(cache: DynamicCache) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers[1:] for tensor in layer.state if tensor is not None]


@pytest.mark.parametrize("num_sleep_passes", [1, 3])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 3}, {"prefill_chunk_size": 7}], ids=str)
def test_greedy_decoding(model, num_sleep_passes, options):
    expected = greedy(model, num_sleep_passes=num_sleep_passes)
    assert torch.equal(model.generate(PROMPT, num_sleep_passes=num_sleep_passes, **GREEDY, **options), expected)


@pytest.mark.parametrize("num_sleep_passes", [1, 2, 3])
@torch.no_grad()
def test_reading_at_once_leaves_what_reading_token_by_token_leaves(num_sleep_passes):
    """Sleeping at inference is sleeping in training: the logits, and every state that is carried on."""
    for name in VARIANTS:
        model = make_sleep(**VARIANTS[name])
        whole = model(PROMPT, use_cache=True, num_sleep_passes=num_sleep_passes)
        cache, logits = None, []
        for token in PROMPT.split(1, dim=1):
            outputs = model(token, past_key_values=cache, use_cache=True, num_sleep_passes=num_sleep_passes)
            cache = outputs.past_key_values
            logits.append(outputs.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, **CLOSE)
        torch.testing.assert_close(states(cache), states(whole.past_key_values), atol=2e-4, rtol=2e-4)
        trained = model(PROMPT, use_cache=False, num_sleep_passes=num_sleep_passes).logits
        torch.testing.assert_close(trained, whole.logits, **CLOSE)


def test_beams(model):
    options = {**GREEDY, "num_beams": 3}
    assert torch.equal(model.generate(PROMPT, **options), model.generate(PROMPT, use_cache=False, **options))


def test_several_samples_of_one_prompt(model):
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(0)
    cached = model.generate(PROMPT, **options)
    torch.manual_seed(0)
    assert torch.equal(cached, model.generate(PROMPT, use_cache=False, **options))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 3}], ids=str)
def test_a_left_padded_batch_generates_what_its_sequences_do_alone(model, options):
    """Rows fill their windows at different times, in the prompt and after it."""
    rows = [random_ids(1, length, length)[0] for length in (3, 11, 6, 1)]
    input_ids, attention_mask = left_pad(rows)
    generated = model.generate(input_ids, attention_mask=attention_mask, **GREEDY, **options)
    for row, ids in zip(rows, generated):
        alone = greedy(model, row[None], num_beams=options.get("num_beams", 1))
        assert torch.equal(ids[-9:], alone[0, -9:])


@torch.no_grad()
def test_sequences_at_different_positions_of_their_windows_do_not_affect_each_other():
    """Ragged pieces after ragged pieces, some rows with nothing new: as each row alone."""
    for name in VARIANTS:
        model = make_sleep(**VARIANTS[name])
        generator = torch.Generator().manual_seed(0)
        rows, seen, cache = [random_ids(1, 40, seed)[0] for seed in range(4)], [0] * 4, None
        logits = [[] for _ in rows]
        for _ in range(5):
            counts = torch.randint(0, 7, (4,), generator=generator).tolist()
            pieces = [row[start : start + count] for row, start, count in zip(rows, seen, counts)]
            if max(counts) == 0:
                continue
            input_ids, attention_mask = left_pad(pieces)
            outputs = model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            for index, count in enumerate(counts):
                logits[index].append(outputs.logits[index, outputs.logits.shape[1] - count :])
            seen = [start + count for start, count in zip(seen, counts)]
        assert cache.layers[0].seen == seen
        for row, length, pieces in zip(rows, seen, logits):
            torch.testing.assert_close(torch.cat(pieces), model(row[None, :length]).logits[0], **CLOSE)


@torch.no_grad()
def test_a_batch_of_padding_alone_changes_nothing(model):
    cache = read(model, PROMPT)
    before = copy.deepcopy(states(cache))
    model(PROMPT, attention_mask=torch.zeros_like(PROMPT), past_key_values=cache)
    assert all(torch.equal(a, b) for a, b in zip(states(cache), before))
    assert (cache.layers[0].seen, cache.get_seq_length()) == ([10, 10], 20)


@torch.no_grad()
def test_a_window_that_fills_is_slept_over_at_once(model):
    """What is left after it does not depend on whether more tokens come."""
    whole, half = read(model, PROMPT[:, : 2 * WINDOW]), read(model, PROMPT[:, :WINDOW])
    assert (whole.layers[0].filled, whole.layers[0].seen) == ([0, 0], [8, 8])
    assert whole.layers[0].hidden_states.shape[1] == 0
    read(model, PROMPT[:, WINDOW : 2 * WINDOW], past_key_values=half)
    torch.testing.assert_close(states(half), states(whole), **CLOSE)


@torch.no_grad()
def test_sleep_on_demand_closes_a_window(model):
    """As if the window had been that short: the same model with windows of another length."""
    window = 3
    cache = read(model, PROMPT[:, :window])
    model.sleep(cache, num_passes=3)
    assert (cache.layers[0].filled, cache.layers[0].seen) == ([0, 0], [3, 3])
    short = copy.deepcopy(model)
    short.config.sleep_window = window
    expected = read(short, PROMPT[:, :window], num_sleep_passes=3)
    if model.config.eviction == "hard":
        torch.testing.assert_close(states(cache), states(expected), **CLOSE)
        logits = model(PROMPT[:, window:6], past_key_values=cache).logits
        expected_logits = short(PROMPT[:, window:6], past_key_values=expected).logits
        torch.testing.assert_close(logits, expected_logits, **CLOSE)
    # an empty window is left alone
    cache = read(model, PROMPT[:, :WINDOW])
    before = copy.deepcopy(states(cache))
    model.sleep(cache)
    assert all(torch.equal(a, b) for a, b in zip(states(cache), before))


@torch.no_grad()
def test_sequences_sleep_on_demand_as_they_would_alone(model):
    rows = [random_ids(1, length, length)[0] for length in (3, 6, 5, 8)]
    input_ids, attention_mask = left_pad(rows)
    cache = read(model, input_ids, attention_mask=attention_mask)
    model.sleep(cache, num_passes=2)
    logits = model(PROMPT[:1, :6].expand(4, -1), past_key_values=cache).logits
    for row, batched in zip(rows, logits):
        cache = read(model, row[None])
        model.sleep(cache, num_passes=2)
        torch.testing.assert_close(batched, model(PROMPT[:1, :6], past_key_values=cache).logits[0], **CLOSE)


@torch.no_grad()
def test_more_passes_on_demand_change_more(model):
    reads = []
    for num_passes in (1, 2, 4):
        cache = read(model, PROMPT[:, :6])
        model.sleep(cache, num_passes=num_passes)
        reads.append(model(PROMPT[:, 6:], past_key_values=cache).logits)
    assert not torch.allclose(reads[0], reads[1], atol=1e-4)
    assert not torch.allclose(reads[1], reads[2], atol=1e-4)


@torch.no_grad()
def test_the_cache_follows_its_sequences(model):
    """Reordering, selecting and repeating rows, at a place where some have just slept."""
    rows = [random_ids(1, length, length)[0] for length in (4, 7, 2)]
    input_ids, attention_mask = left_pad(rows)
    following = random_ids(6, 5, 9)
    for method, argument, order in (
        ("reorder_cache", torch.tensor([2, 0, 0]), [2, 0, 0]),
        ("batch_select_indices", torch.tensor([1, 2]), [1, 2]),
        ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2]),
    ):
        cache = read(model, input_ids, attention_mask=attention_mask)
        getattr(cache, method)(argument)
        logits = model(following[: len(order)], past_key_values=cache).logits
        for index, row in enumerate(order):
            alone = model(following[index : index + 1], past_key_values=read(model, rows[row][None])).logits
            torch.testing.assert_close(logits[index], alone[0], **CLOSE)


@torch.no_grad()
def test_a_reset_cache_is_a_new_one(model):
    cache = read(model, PROMPT)
    cache.reset()
    assert cache.get_seq_length() == 0
    # another number of rows is welcome then
    logits = model(PROMPT[:1], past_key_values=cache).logits
    assert torch.equal(logits, model(PROMPT[:1], past_key_values=DynamicCache(config=model.config)).logits)


@torch.no_grad()
def test_reading_does_not_write_into_what_was_read_before(model):
    """States are values: a copy of the cache's references is a copy of the cache."""
    cache = read(model, PROMPT[:, :6])
    kept = [(layer.state, [None if t is None else t.clone() for t in layer.state]) for layer in cache.layers[1:]]
    for token in PROMPT[:, 6:].split(1, dim=1):
        model(token, past_key_values=cache)
    for state, before in kept:
        assert all(old is None or torch.equal(old, new) for old, new in zip(before, state))


def test_memory_survives_the_disk(model, tmp_path):
    """Saved in the middle of a window, loaded, and gone on with: the same tokens, bit for bit."""
    rows = [random_ids(1, length, length)[0] for length in (11, 6)]
    input_ids, attention_mask = left_pad(rows)
    cache = read(model, input_ids, attention_mask=attention_mask)
    model.save_memory(cache, tmp_path / "memory.safetensors")
    loaded = model.load_memory(tmp_path / "memory.safetensors")
    assert (loaded.get_seq_length(), loaded.layers[0].seen) == (0, [11, 6])
    new_ids = random_ids(2, 3, 5)
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    from_disk = model.generate(new_ids, past_key_values=loaded, **options)
    both = torch.cat([input_ids, new_ids], dim=1)
    mask = torch.cat([attention_mask, torch.ones_like(new_ids)], dim=1)
    in_memory = model.generate(both, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(from_disk.sequences[:, 3:], in_memory.sequences[:, both.shape[1] :])
    assert all(torch.equal(a, b) for a, b in zip(from_disk.logits, in_memory.logits))
    # positions go on, and a memory of one row serves many
    alone = read(model, rows[0][None])
    model.save_memory(alone, tmp_path / "memory.safetensors")
    loaded = model.load_memory(tmp_path / "memory.safetensors")
    loaded.batch_repeat_interleave(2)
    logits = model(new_ids, past_key_values=loaded).logits
    expected = torch.stack([model(torch.cat([rows[0], ids])[None]).logits[0, -3:] for ids in new_ids])
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_another_process_goes_on_bit_for_bit(model, tmp_path):
    """Saved in the middle of a window by a process that has ended, as far as the other one can tell."""
    model.save_pretrained(tmp_path / "model")
    cache = read(model, PROMPT)
    model.save_memory(cache, tmp_path / "memory")
    new_ids = random_ids(2, 3, 5)
    paths = [str(tmp_path / name) for name in ("model", "memory", "outputs")]
    arguments = [*paths[:2], json.dumps(new_ids.tolist()), json.dumps(GREEDY), paths[2]]
    subprocess.run([sys.executable, "-c", CONTINUE, *arguments], check=True, capture_output=True, timeout=120)
    sequences, logits = torch.load(tmp_path / "outputs")
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(torch.cat([PROMPT, new_ids], dim=1), past_key_values=cache, **options)
    assert torch.equal(sequences[:, 3:], expected.sequences[:, PROMPT.shape[1] + 3 :])
    assert torch.equal(logits, torch.stack(expected.logits))


@torch.no_grad()
def test_the_number_of_passes_means_the_same_wherever_it_is_given(model):
    expected = model.generate(PROMPT, num_sleep_passes=4, **GREEDY)
    by_config = copy.deepcopy(model)
    by_config.config.num_sleep_passes = 4
    assert torch.equal(by_config.generate(PROMPT, **GREEDY), expected)
    options = GenerationConfig(num_sleep_passes=4, **{**GREEDY, "eos_token_id": 98})
    assert torch.equal(model.generate(PROMPT, options), expected)


@torch.no_grad()
def test_memory_stays_flat(model):
    """However much is read: what a cache holds after 128 windows is what it holds after two."""
    sizes = []
    for num_windows in (2, 128):
        cache = read(model, random_ids(1, num_windows * WINDOW + 1))
        sizes.append(sum(tensor.numel() for tensor in states(cache)))
        assert all(tensor.isfinite().all() for tensor in states(cache))
    assert sizes[0] == sizes[1]


def test_what_cannot_work_says_so(model):
    cache = read(model, PROMPT)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="2 rows but the input has 1"):
        model(PROMPT[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="must be a cache of this model"):
        model(PROMPT, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="must be a cache of this model"):
        model.sleep(DynamicCache())
    with pytest.raises(ValueError, match="must not have `offloading`"):
        model(PROMPT, past_key_values=DynamicCache(config=model.config, offloading=True))
    with pytest.raises(ValueError, match="generate_batch"):
        model.generate_batch([[3, 4, 5]])
    for implementation in ("static", "offloaded", "quantized"):
        with pytest.raises(ValueError, match="`cache_implementation` must be 'dynamic'"):
            model.generate(PROMPT, cache_implementation=implementation, **GREEDY)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(PROMPT[:1], assistant_model=model, **GREEDY)
    with pytest.raises(ValueError, match="`attention_mask` must be a padding mask"):
        model(PROMPT, attention_mask=torch.ones(2, 1, 10, 10))
