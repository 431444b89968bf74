"""What the version before saved still loads and answers as it did: see `saved_before/write.py`, which wrote it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from hf_loop import load_loop_adapter
from hf_loop.loading import architecture_of, load_pretrained
from hf_loop.models.transformers_seams import named_cache


SAVED = Path(__file__).with_name("saved_before")
AUTO_CLASSES: dict[str, Any] = {
    "looped": AutoModelForCausalLM,
    "looped_lora": AutoModelForCausalLM,
    "feedback": AutoModelForCausalLM,
    "sleep": AutoModelForCausalLM,
    "sleep_hybrid": AutoModelForCausalLM,
    "hierarchical": AutoModelForCausalLM,
    "puzzle": AutoModelForMaskedLM,
    "classifier": AutoModelForSequenceClassification,
}
MEMORIES = ["feedback", "sleep", "sleep_hybrid"]
pytestmark = pytest.mark.release


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """To the bit on the machine that wrote them; kernels of other machines add in another order."""
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def check_answer(model: Any, name: str) -> None:
    expected = load_file(SAVED / name / "expected.safetensors")
    inputs = {key: expected[key] for key in ("input_ids", "attention_mask") if key in expected}
    if name == "puzzle":
        inputs["puzzle_ids"] = torch.tensor([1, 2])
    output = model(**inputs)
    assert_same(output.logits, expected["logits"])
    if name == "puzzle":
        assert_same(output.halt_logits, expected["halt_logits"])


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_a_folder_loads_and_answers_as_it_did(name):
    model = AUTO_CLASSES[name].from_pretrained(SAVED / name)
    check_answer(model, name)
    # and with every tensor of it in its place, by the class that it names
    check_answer(load_pretrained(architecture_of(model.config), SAVED / name), name)


def test_a_puzzle_configuration_without_a_model_keeps_its_fields(tmp_path):
    config = json.loads((SAVED / "puzzle" / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded).from_dict(config).model_type == "hierarchical_puzzle"
    assert (loaded.model_type, loaded.halting, loaded.num_puzzles) == ("hierarchical_puzzle", "q_learning", 3)


def test_the_body_of_a_folder_loads_without_its_head():
    model = AutoModel.from_pretrained(SAVED / "looped")
    expected = load_file(SAVED / "looped" / "expected.safetensors")
    hidden_states = model(expected["input_ids"], expected["attention_mask"]).last_hidden_state
    head = AutoModelForCausalLM.from_pretrained(SAVED / "looped").lm_head
    assert_same(head(hidden_states), expected["logits"])


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_goes_on_as_it_did(name):
    model = AutoModelForCausalLM.from_pretrained(SAVED / name)
    memory = model.load_memory(SAVED / name / "memory.safetensors")
    expected = load_file(SAVED / name / "expected.safetensors")
    with torch.no_grad():
        logits = model(expected["next_ids"], **named_cache(memory)).logits
    assert_same(logits, expected["next_logits"])


def test_a_loop_adapter_goes_on_a_model_without_one(tmp_path):
    folder = tmp_path / "looped_lora"
    shutil.copytree(SAVED / "looped_lora", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"loop_lora_rank": 0, "loop_lora_vectors": False}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.model.loop_lora is None
    load_loop_adapter(model, SAVED / "loop_adapter")
    check_answer(model, "looped_lora")
