"""A feedback model from the command line: made from a plain checkpoint, and its memory kept between two commands."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM


PROMPT, MORE = "ball:2 1<->2 2<->3 1<->2", "1<->3 2<->3"


def set_fields(*fields: str) -> list[str]:
    """The options of a feedback model's fields."""
    return ["--family", "feedback", *(part for field in fields for part in ("--set", field))]


@pytest.fixture
def feedback_folder(hf_loop, plain_folder, tmp_path):
    arguments = set_fields("block_size=4", "num_memory_segments=0", "feedback_length=2")
    code, output, error = hf_loop("retrofit", plain_folder, tmp_path / "feedback", *arguments)
    assert code == 0, error
    assert "blocks of 4 tokens, 0 segments, a memory of 2" in output
    return tmp_path / "feedback"


def written(model: Any, tokenizer, text: str, memory: Any = None) -> tuple[str, Any]:
    """The next four tokens after `text`, and the memory of all of it."""
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=memory is None)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    output = model.generate(**inputs, past_key_values=memory, **options)
    with torch.no_grad():
        model(output.sequences[:, -1:], past_key_values=output.past_key_values, use_cache=True)
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip(), output.past_key_values


def test_a_memory_goes_from_one_command_to_the_next(hf_loop, feedback_folder, tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(feedback_folder)
    model.generation_config.eos_token_id = -1
    model.save_pretrained(feedback_folder)
    first, memory = written(model, tokenizer, PROMPT)
    second, _ = written(model, tokenizer, MORE, memory=memory_after_saving(model, memory, tmp_path))
    file = tmp_path / "memory.safetensors"
    short = ("--max-new-tokens", 4)
    assert hf_loop("generate", feedback_folder, PROMPT, *short, "--save-memory", file)[:2] == (0, first + "\n")
    assert hf_loop("generate", feedback_folder, MORE, *short, "--memory", file)[:2] == (0, second + "\n")


def memory_after_saving(model: Any, memory: Any, folder) -> Any:
    model.save_memory(memory, folder / "expected.safetensors")
    return model.load_memory(folder / "expected.safetensors")


def test_all_segments_and_no_memory_are_the_original(hf_loop, plain_folder, tmp_path):
    arguments = set_fields("block_size=3", "num_memory_segments=null", "feedback_length=0")
    assert hf_loop("retrofit", plain_folder, tmp_path / "feedback", *arguments)[0] == 0
    model, original = map(AutoModelForCausalLM.from_pretrained, (tmp_path / "feedback", plain_folder))
    assert isinstance(original, LlamaForCausalLM)
    input_ids = torch.tensor([[1, 4, 7, 5, 6, 3, 8, 4, 5, 9, 7]])
    torch.testing.assert_close(model(input_ids).logits, original(input_ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("num_memory_segments=-1", "num_memory_segments must not be negative, got -1"),
        ("num_loops=3", "num_loops is no field of the family 'feedback': it belongs to "),
    ],
)
def test_fields_that_do_not_fit_write_nothing(hf_loop, plain_folder, tmp_path, field, reason):
    code, _, error = hf_loop("retrofit", plain_folder, tmp_path / "new", *set_fields(field))
    assert code != 0
    assert (reason in error.replace("`", ""), error.count("\n")) == (True, 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("folder", "arguments", "reason"),
    [
        ("feedback_folder", ["--loops", "2"], "is a feedback_lm model, which has no loops"),
        ("feedback_folder", ["--memory", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        ("feedback_folder", ["--save-memory", "nowhere/memory"], "there is no folder nowhere"),
        ("looped_folder", ["--save-memory", "memory"], "is a looped_lm model, which keeps no memory"),
    ],
)
def test_a_memory_where_there_is_none_is_one_line(hf_loop, request, monkeypatch, tmp_path, folder, arguments, reason):
    monkeypatch.chdir(tmp_path)
    code, output, error = hf_loop("generate", request.getfixturevalue(folder), PROMPT, *arguments)
    assert (code, output.strip()) == (2, "")
    # the weights are loaded by then, with a progress bar of their own
    assert reason in error.splitlines()[-1]
    assert not (tmp_path / "memory").exists()
