"""Drafts with the first loops change no greedy token and no distribution, whatever is accepted of them."""

import itertools
import json
import os
import random
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer
from transformers.generation import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from hf_loop.models.drafted_text import DraftedText, sample_verified

from ..hub_processes import BLOCK_HF_LOOP
from .loop_lora_models import tiny_loop_lora
from .looped_variants import VARIANTS, tiny_looped
from .model_tester import left_pad, random_ids


NUM_LOOPS = 4
GREEDY = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
AS_DICT = {"return_dict_in_generate": True}


def still_model(**schedule):
    """A model whose core changes nothing, so that every draft is right."""
    model = tiny_looped(num_loops=NUM_LOOPS, **schedule)
    for layer in model.model.core_layers():
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    return model


@pytest.fixture(scope="module")
def llama():
    return tiny_looped(num_loops=NUM_LOOPS, num_prelude_layers=1, num_coda_layers=1, injection="add")


@pytest.fixture(scope="module")
def still():
    return still_model(num_prelude_layers=1, num_coda_layers=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_without_drafts(variant):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[variant])
    rng = random.Random(variant)
    for draft_loops in range(1, NUM_LOOPS):
        rows = [random_ids(1, rng.randint(1, 8), rng.randint(0, 99))[0] for _ in range(rng.randint(1, 3))]
        input_ids, mask = left_pad(rows)
        options = {**GREEDY, "attention_mask": mask, "max_new_tokens": rng.randint(1, 11)}
        expected = model.generate(input_ids, **options)
        num_draft_tokens = rng.randint(1, 5)
        drafted = model.generate(input_ids, draft_loops=draft_loops, num_draft_tokens=num_draft_tokens, **options)
        assert torch.equal(drafted, expected), (draft_loops, num_draft_tokens, options)


@pytest.mark.parametrize("num_draft_tokens", range(1, 6))
@pytest.mark.parametrize("schedule", [{}, {"num_coda_layers": 2}, {"num_prelude_layers": 1, "loop_update": "damped"}])
def test_right_drafts_are_all_kept(num_draft_tokens, schedule):
    model, input_ids = still_model(**schedule), random_ids(2, 7)
    outputs = model.generate(input_ids, draft_loops=1, num_draft_tokens=num_draft_tokens, **GREEDY, **AS_DICT)
    # the prompt's pass gives one token
    full, rest = divmod(GREEDY["max_new_tokens"] - 1, num_draft_tokens + 1)
    assert outputs.tokens_per_verification.tolist() == [num_draft_tokens + 1] * full + [rest] * (rest > 0)
    assert torch.equal(outputs.sequences, model.generate(input_ids, **GREEDY))


def test_no_state_is_computed_twice(llama, monkeypatch):
    calls = []

    def record(layer, call):
        calls.append(call.loop)
        return layer

    monkeypatch.setattr(llama.model, "layer_in_call", record)
    outputs = llama.generate(random_ids(1, 6), draft_loops=2, num_draft_tokens=3, **GREEDY, **AS_DICT)
    num_layers = llama.config.num_core_layers
    num_blocks = len(outputs.tokens_per_verification)
    # once for the prompt and once for every block, of up to four tokens
    assert calls.count(NUM_LOOPS - 1) == num_layers * (1 + num_blocks)
    assert calls.count(0) <= num_layers * (1 + 4 * num_blocks)


@pytest.mark.parametrize(
    "model_type",
    ["gemma3_text", "mistral", "gpt2", "bloom", "opt", "olmo3", "deepseek_v3", "qwen3_moe", "parcae_backbone"],
)
def test_other_decoders(model_type):
    model = tiny_looped(model_type, num_loops=NUM_LOOPS, num_prelude_layers=1)
    input_ids, mask = left_pad([random_ids(1, length, length)[0] for length in (8, 5)])
    options = {**GREEDY, "attention_mask": mask, "max_new_tokens": 8}
    expected = model.generate(input_ids, **options)
    for draft_loops in (1, 3):
        assert torch.equal(model.generate(input_ids, draft_loops=draft_loops, **options), expected)


def test_loop_lora():
    model, input_ids = tiny_loop_lora(num_prelude_layers=1, num_coda_layers=1), random_ids(2, 7)
    expected = model.generate(input_ids, num_loops=5, **GREEDY)
    assert torch.equal(model.generate(input_ids, num_loops=5, draft_loops=2, **GREEDY), expected)


@pytest.mark.parametrize("which", ["llama", "still"])
def test_rows_end_in_the_middle_of_a_block(which, request):
    model, input_ids = request.getfixturevalue(which), random_ids(3, 5)
    plain = model.generate(input_ids, **GREEDY)[:, 5:]
    # a token that one row comes to early, another late or never
    ends = {int(plain[0, 2]), int(plain[1, 5])}
    options = {**GREEDY, "eos_token_id": list(ends), "max_new_tokens": 14}
    expected = model.generate(input_ids, **options, **AS_DICT)
    drafted = model.generate(input_ids, draft_loops=2, **options, **AS_DICT)
    assert torch.equal(drafted.sequences, expected.sequences)
    for ours, theirs in zip(drafted.cache.layers, expected.cache.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_cache_is_continued(model_type):
    model = tiny_looped(model_type, num_loops=NUM_LOOPS, num_coda_layers=1)
    input_ids = random_ids(2, 7)
    expected = model.generate(input_ids, **{**GREEDY, "max_new_tokens": 14})
    cache = DynamicCache(config=model.config)
    first = model.generate(input_ids, draft_loops=3, past_key_values=cache, **{**GREEDY, "max_new_tokens": 5})
    assert cache.get_seq_length() == first.shape[1] - 1
    with_drafts = model.generate(first, past_key_values=cache, draft_loops=2, **{**GREEDY, "max_new_tokens": 4})
    plain = model.generate(with_drafts, past_key_values=cache, **{**GREEDY, "max_new_tokens": 5})
    assert torch.equal(plain, expected)


def test_scores_processors_and_chunks(llama):
    input_ids = random_ids(2, 7)
    options = {
        **GREEDY, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "output_scores": True, "output_logits": True,
        "prefill_chunk_size": 3, **AS_DICT,
    }  # fmt: skip
    expected, drafted = llama.generate(input_ids, **options), llama.generate(input_ids, draft_loops=3, **options)
    assert torch.equal(drafted.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for ours, theirs in zip(drafted[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    embeds = llama.get_input_embeddings()(input_ids)
    assert torch.equal(
        llama.generate(inputs_embeds=embeds, draft_loops=2, **GREEDY), llama.generate(inputs_embeds=embeds, **GREEDY)
    )


def test_streaming(still):
    class Tokenizer:
        def decode(self, token_ids, **kwargs):
            return "".join(f"{int(token)} " for token in token_ids)

    prompt, streamer = random_ids(1, 5), TextIteratorStreamer(Tokenizer(), skip_prompt=True)
    generated = still.generate(prompt, draft_loops=1, streamer=streamer, **GREEDY)
    assert [int(token) for token in "".join(streamer).split()] == generated[0, 5:].tolist()


def test_settings_come_from_the_configuration_too(llama):
    input_ids = random_ids(1, 5)
    settings = GenerationConfig(draft_loops=2, num_draft_tokens=3, **GREEDY, **AS_DICT)
    outputs = llama.generate(input_ids, generation_config=settings)
    assert int(outputs.tokens_per_verification.sum()) == GREEDY["max_new_tokens"] - 1
    view = llama.with_num_loops(6)
    assert torch.equal(
        view.generate(input_ids, draft_loops=5, **GREEDY), llama.generate(input_ids, num_loops=6, **GREEDY)
    )


def test_a_draft_stops_where_the_table_of_positions_ends():
    model = tiny_looped("gpt2", num_loops=NUM_LOOPS)
    limit = model.config.max_position_embeddings
    input_ids = random_ids(1, limit - 2)
    # the end comes with the table's last position
    end = int(model.generate(input_ids, **{**GREEDY, "max_new_tokens": 2})[0, -1])
    options = {**GREEDY, "max_new_tokens": 9, "eos_token_id": end}
    assert torch.equal(model.generate(input_ids, draft_loops=1, **options), model.generate(input_ids, **options))


def test_sampled_tokens_have_the_distribution_of_the_target():
    torch.manual_seed(0)
    num_samples = 200_000
    target, draft = torch.randn(2, 5) * 1.5
    target[3] = -torch.inf
    drafted = torch.multinomial(draft.softmax(-1), num_samples, replacement=True)
    rows = (scores.expand(num_samples, -1) for scores in (target, draft))
    tokens = sample_verified(*rows, drafted)
    counts, expected = tokens.bincount(minlength=5), target.softmax(-1) * num_samples
    assert counts[3] == 0
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum()
    # three degrees of freedom: exceeded once in 10000 times
    assert chi_square < 21.1
    overlap = torch.minimum(target.softmax(-1), draft.softmax(-1)).sum()
    assert abs((tokens == drafted).float().mean() - overlap) < 0.01


def test_blocks_of_several_rows_keep_the_distribution_of_whole_texts():
    """Texts of a toy model that chooses by the last token, in pairs of which each stops the other's blocks."""
    torch.manual_seed(0)
    target, draft = torch.randn(2, 3, 3)
    settings = GenerationConfig(do_sample=True, max_length=4)
    stop = StoppingCriteriaList([MaxLengthCriteria(4)])

    counts, num_calls = torch.zeros(3, 3, 3), 3000
    for _ in range(num_calls):
        text = DraftedText(torch.zeros(2, 1, dtype=torch.long), LogitsProcessorList(), stop, settings)
        while not text.is_finished:
            tokens, scores = text.tokens, []
            for _ in range(min(2, text.num_wanted - 1)):
                scores.append(draft[tokens[:, -1]])
                tokens = torch.cat([tokens, torch.multinomial(scores[-1].softmax(-1), 1)], dim=1)
            last = text.tokens.shape[1] - 1
            text.append(target[tokens[:, last:]], tokens[:, last + 1 :], scores)
        for row in text.tokens[:, 1:].tolist():
            counts[tuple(row)] += 1
    probabilities = target.softmax(-1)
    for row in itertools.product(range(3), repeat=3):
        expected = probabilities[0, row[0]] * probabilities[row[0], row[1]] * probabilities[row[1], row[2]]
        share = counts[row] / (2 * num_calls)
        # five standard deviations
        assert abs(share - expected) < 5 * (expected * (1 - expected) / (2 * num_calls)) ** 0.5, row


def test_sampling_of_a_model_keeps_its_distribution():
    model = tiny_looped(num_loops=3, num_prelude_layers=1, num_coda_layers=1)
    prompt = random_ids(1, 4)
    options = {**GREEDY, "do_sample": True, "top_k": 3, "temperature": 0.7, "max_new_tokens": 3}
    with torch.no_grad():
        after_one = {}
        for token in model(prompt).logits[0, -1].topk(3).indices.tolist():
            logits = model(torch.cat([prompt, torch.tensor([[token]])], dim=1)).logits[0, -1] / 0.7
            best = logits.topk(3)
            after_one[token] = dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist()))
    torch.manual_seed(0)
    counts, num_samples = {}, 0
    for _ in range(150):
        for row in model.generate(
            prompt, draft_loops=2, num_return_sequences=4, num_draft_tokens=2, **options
        ).tolist():
            counts.setdefault(row[4], {}).setdefault(row[5], 0)
            counts[row[4]][row[5]] += 1
            num_samples += 1
    for token, following in counts.items():
        total = sum(following.values())
        distance = sum(abs(following.get(next_token, 0) / total - p) for next_token, p in after_one[token].items()) / 2
        assert set(following) <= set(after_one[token]) and distance < 2.5 / total**0.5, (token, following)


REFUSED = {
    "num_draft_tokens.*alone": {"draft_loops": None, "num_draft_tokens": 2},
    "draft_loops.*less than num_loops=4, got 4": {"draft_loops": 4},
    "draft_loops.*less than num_loops=2, got 2": {"num_loops": 2},
    "draft_loops.*got 0": {"draft_loops": 0},
    "num_draft_tokens.*got 1.5": {"num_draft_tokens": 1.5},
    "num_beams.*got 2": {"num_beams": 2},
    "use_cache.*got False": {"use_cache": False},
    "cache_implementation.*got 'static'": {"cache_implementation": "static"},
    "exit_criterion.*got 'kl'": {"exit_criterion": "kl"},
    "contrast_loop.*got 1": {"contrast_loop": 1},
    "cache_policy.*got 'last_loop'": {"cache_policy": "last_loop"},
    "output_hidden_states.*got True": {"output_hidden_states": True},
    "prompt_lookup_num_tokens.*got 2": {"prompt_lookup_num_tokens": 2},
    "UnbatchedClassifierFreeGuidance": {"guidance_scale": 2.0},
    "synced_gpus.*got True": {"synced_gpus": True},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_work_is_refused(llama, message):
    with pytest.raises(ValueError, match=message):
        llama.generate(random_ids(1, 5), **{"draft_loops": 2, **GREEDY, **REFUSED[message]})


def test_assistants_and_other_caches_are_refused(llama):
    input_ids = random_ids(1, 5)
    with pytest.raises(ValueError, match="assistant_model"):
        llama.generate(input_ids, draft_loops=2, assistant_model=llama.with_num_loops(1), **GREEDY)
    with pytest.raises(ValueError, match="draft_loops.*generate_batch"):
        llama.generate_batch(input_ids.tolist(), GenerationConfig(draft_loops=2, eos_token_id=-1, pad_token_id=0))
    policy = llama(input_ids, use_cache=True, cache_policy="cyclic:2").past_key_values
    policy.crop(-input_ids.shape[1])
    with pytest.raises(ValueError, match="cyclic:2"):
        llama.generate(input_ids, draft_loops=2, past_key_values=policy, **GREEDY)
    hybrid = tiny_looped("qwen3_next", num_loops=3)
    with pytest.raises(ValueError, match="`draft_loops` needs a dynamic cache of attention layers"):
        hybrid.generate(input_ids, draft_loops=1, **GREEDY)


REMOTE = """
import json, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("looped", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
print(json.dumps(model.generate(torch.tensor(%s), draft_loops=2, **%r).tolist()))
"""


def test_drafts_where_hf_loop_is_not_installed(llama, tmp_path):
    input_ids = random_ids(1, 5)
    llama.save_pretrained(tmp_path / "looped")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    code = BLOCK_HF_LOOP + REMOTE % (input_ids.tolist(), GREEDY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == llama.generate(input_ids, **GREEDY).tolist()
