"""A `config.json` that describes no model is refused in one line that names the file and what is wrong with it."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_loop.configurations import read_config
from hf_loop.loading import load_pretrained
from hf_loop.models import LoopedConfig, LoopedForCausalLM

from .models.tiny_backbones import tiny_backbone


@pytest.fixture
def folder(tmp_path):
    LlamaForCausalLM(tiny_backbone("llama")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "text", ["[1, 2]", "null", "3", '"llama"', "", "{", '{"model_type": "llama"', "\ufeff", "[" * 9999]
)
def test_what_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|must hold a JSON object)"):
        read_config(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "llamma"},
            "`model_type` 'llamma' is none that transformers or hf_loop has; did you mean 'llama'?",
        ),
        ({"model_type": ["llama"]}, "`model_type` must be the name of an architecture"),
        ({"model_type": None}, "`model_type` must be the name of an architecture, got None"),
        ({"model_type": None, "auto_map": {"AutoConfig": "code.Config"}}, "`model_type` must be the name"),
        ({"dtype": "float99"}, "`dtype` must be a floating-point type, as 'bfloat16', got 'float99'"),
        ({"dtype": "nn"}, "`dtype` must be a floating-point type"),
        # listing so many layers would not end
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be from 1 to 4096, got 1000000000"),
        ({"torch_dtype": 5}, "`torch_dtype` must be a floating-point type"),
        ({"architectures": "LlamaForCausalLM"}, r"`architectures` must be list\[str\] | None"),
        ({"architectures": [3]}, "`architectures` must be"),
        ({"auto_map": 7}, "`auto_map` must be dict | None, got 7"),
        ({"quantization_config": 5}, "`quantization_config` must be"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rope_parameters": 3}, "rope_parameters"),
    ],
)
def test_a_wrong_entry_is_named(folder, changes, message):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as error:
        read_config(folder)
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "[1]", "null", "{", '{"dtype": 3}'])
def test_generation_settings_that_are_none_are_named(folder, text):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        load_pretrained(AutoModelForCausalLM, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "cube"},
        {"num_attention_heads": 0},
        {"hidden_size": -16},
        {"hidden_size": 10**12},
        {"pad_token_id": 10**6},
        # 27 GB, which the machine may have or not
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    ],
)
def test_a_model_that_cannot_be_made_is_refused_before_memory_is_taken(folder, changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=r"config\.json"):
        load_pretrained(AutoModelForCausalLM, folder)


def test_the_parts_of_a_configuration_are_looked_at_too(tmp_path):
    config = LoopedConfig(backbone_config=tiny_backbone("llama"))
    LoopedForCausalLM(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    stored["backbone_config"]["dtype"] = "float99"
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"config\.json: `backbone_config\.dtype` must be a floating-point type"):
        read_config(tmp_path)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_types_of_weights_that_exist_are_taken(folder, dtype):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": dtype}))
    assert read_config(folder).model_type == "llama"


def test_the_base_of_an_adapter_is_looked_for_where_it_is_said_to_be(tmp_path):
    from hf_loop.text_parts import load_decoder

    save_file({"weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "./nowhere/model", "peft_type": "LORA"}'
    )
    with pytest.raises(OSError, match=r"there is no folder \./nowhere/model"):
        load_decoder(tmp_path)
