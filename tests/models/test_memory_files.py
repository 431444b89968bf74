"""A memory as a file: what continues from it, in this process and another, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from .feedback_variants import VARIANTS, make_feedback
from .looped_variants import tiny_looped
from .model_tester import left_pad, random_ids


# 8 and 12 tokens end with a block of four, the others inside one
LENGTHS = [(8, 12), (9, 11), (3, 8), (1, 2)]
FOLLOWING = random_ids(2, 10, seed=3)
GREEDY = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CONTINUE = """
import json, sys, torch
import hf_loop
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[3]))
with torch.no_grad():
    logits = model(ids, past_key_values=model.load_memory(sys.argv[2])).logits
torch.save(logits, sys.argv[4])
"""


def read(model, lengths=(9, 11)):
    """A cache after two rows of these lengths, and the mask of the batch that they were."""
    input_ids, attention_mask = left_pad([random_ids(1, length, seed=length)[0] for length in lengths])
    with torch.no_grad():
        return model(input_ids, attention_mask=attention_mask, use_cache=True).past_key_values, attention_mask


def continued(model, cache, attention_mask=None) -> torch.Tensor:
    mask = None
    if attention_mask is not None:
        mask = torch.cat([attention_mask, torch.ones_like(FOLLOWING)], dim=1)
    with torch.no_grad():
        return model(FOLLOWING, attention_mask=mask, past_key_values=cache).logits


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_memory_continues_bit_for_bit(variant, lengths, tmp_path):
    model = make_feedback(**VARIANTS[variant])
    cache, attention_mask = read(model, lengths)
    model.save_memory(cache, tmp_path / "memory")
    # positions of a row count its own tokens, as `generate` counts them
    position_ids = attention_mask.sum(-1, keepdim=True) + torch.arange(FOLLOWING.shape[1])
    mask = torch.cat([attention_mask, torch.ones_like(FOLLOWING)], dim=1)
    with torch.no_grad():
        expected = model(FOLLOWING, attention_mask=mask, position_ids=position_ids, past_key_values=cache).logits
    loaded = model.load_memory(tmp_path / "memory")
    assert loaded.get_seq_length() == 0
    assert torch.equal(continued(model, loaded), expected)


def test_generation_takes_the_new_tokens_alone(tmp_path):
    model = make_feedback()
    prompt = random_ids(2, 9)
    first = model.generate(prompt, return_dict_in_generate=True, **GREEDY)
    conversation = torch.cat([first.sequences, FOLLOWING], dim=1)
    model.save_memory(first.past_key_values, tmp_path / "memory")
    given = conversation[:, first.past_key_values.get_seq_length() :]
    expected = model.generate(conversation, use_cache=False, **GREEDY)[:, conversation.shape[1] :]
    # a file may be read more than once, and a memory that was continued saved again
    for _ in range(2):
        loaded = model.load_memory(tmp_path / "memory")
        assert torch.equal(model.generate(given, past_key_values=loaded, **GREEDY)[:, given.shape[1] :], expected)
    piece, rest = given.split([4, given.shape[1] - 4], dim=1)
    with torch.no_grad():
        cache = model(piece, past_key_values=model.load_memory(tmp_path / "memory")).past_key_values
    model.save_memory(cache, tmp_path / "memory")
    loaded = model.load_memory(tmp_path / "memory")
    assert torch.equal(model.generate(rest, past_key_values=loaded, **GREEDY)[:, rest.shape[1] :], expected)


def test_another_process_continues_bit_for_bit(tmp_path):
    model = make_feedback()
    model.save_pretrained(tmp_path / "model")
    model.save_memory(read(model)[0], tmp_path / "memory")
    expected = continued(model, model.load_memory(tmp_path / "memory"))
    paths = [str(tmp_path / name) for name in ("model", "memory", "logits")]
    arguments = [*paths[:2], json.dumps(FOLLOWING.tolist()), paths[2]]
    subprocess.run([sys.executable, "-c", CONTINUE, *arguments], check=True, capture_output=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits"), expected)


def refusal(function, *args) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed_weights():
    model = make_feedback()
    with torch.no_grad():
        model.model.backbone.layers[2].mlp.up_proj.weight.mul_(1.01)
    return model


@pytest.mark.parametrize(
    "make",
    [
        changed_weights,
        lambda: make_feedback(seed=1),
        lambda: make_feedback(num_memory_segments=0),
        lambda: make_feedback(block_size=8),
        lambda: make_feedback("qwen3"),
        lambda: make_feedback().to(torch.bfloat16),
    ],
    ids=["weights", "seed", "segments", "block size", "backbone", "dtype"],
)
def test_the_memory_of_another_model_is_refused(make, tmp_path):
    model = make_feedback()
    model.save_memory(read(model)[0], tmp_path / "memory")
    assert "a memory file of this model" in refusal(make().load_memory, tmp_path / "memory")
    # the same model, loaded anew, is not another
    model.save_pretrained(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tmp_path / "model").load_memory(tmp_path / "memory")


@pytest.mark.parametrize(
    "field, value", [("format", "other"), ("format_version", "2"), ("model_type", "sleep_lm"), ("fingerprint", "0")]
)
def test_what_the_file_says_about_itself_must_fit(field, value, tmp_path):
    model, path = make_feedback(), tmp_path / "memory"
    model.save_memory(read(model)[0], path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={**metadata, field: value})
    assert f"its {field} is {value!r}" in refusal(model.load_memory, path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    model, path = make_feedback(), tmp_path / "memory"
    assert "which is not a file" in refusal(model.load_memory, path)
    assert "which is not a file" in refusal(model.load_memory, tmp_path)
    model.save_memory(read(model)[0], path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "cannot be read" in refusal(model.load_memory, path), size
    # weights are tensors too, and no memory
    save_file({"weight": torch.ones(2)}, path)
    assert "its format is None" in refusal(model.load_memory, path)


def test_caches_without_a_memory_are_not_written(tmp_path):
    model, looped = make_feedback(), tiny_looped()
    caches = [
        DynamicCache(),
        DynamicCache(config=model.config),
        looped(FOLLOWING, use_cache=True).past_key_values,
        "no cache",
    ]
    for cache in caches:
        assert "`cache`" in refusal(model.save_memory, cache, tmp_path / "memory")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    model = make_feedback()
    assert "nowhere" in refusal(model.save_memory, read(model)[0], tmp_path / "nowhere" / "memory")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    model, path = make_feedback(), tmp_path / "memory"
    model.save_memory(read(model, (3, 8))[0], path)
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hf_loop.models.memory_files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_memory(read(model)[0], path)
    assert [file.name for file in tmp_path.iterdir()] == ["memory"]
    assert path.read_bytes() == before
