"""Every touch of PEFT that its releases may move: what `adapt_peft` wraps, and how models with adapters are told."""

import subprocess
import sys

import peft
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaForCausalLM

from hf_loop.models.peft_seams import adapted_module
from hf_loop.models.transformers_seams import auto_class_of, is_prompted, saves_adapter_only

from .looped_variants import tiny_looped
from .tiny_backbones import tiny_backbone


def test_peft_asks_hf_loop_about_recurrent_models_alone():
    tuner_class = peft.tuners.tuners_utils.BaseTuner
    assert tuner_class.asks_hf_loop
    assert tuner_class.get_model_config(tiny_looped("gpt_neox"))["model_type"] == "gpt_neox"
    plain = LlamaForCausalLM(tiny_backbone("llama"))
    assert tuner_class.get_model_config(plain) == plain.config.to_dict()
    assert tuner_class.get_model_config(torch.nn.Linear(1, 1)) == {"model_type": "custom"}


@pytest.mark.parametrize("first", ["peft", "hf_loop"])
def test_peft_may_be_imported_before_or_after(first):
    second = {"peft": "hf_loop", "hf_loop": "peft"}[first]
    code = f"""
import sys, {first}, importlib.util
assert ("peft" in sys.modules) == ({first!r} == "peft")
assert importlib.util.find_spec("peft") is not None
import {second}
from peft.tuners.tuners_utils import BaseTuner
assert BaseTuner.asks_hf_loop
assert not any(type(finder).__name__ == "AfterImport" for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_place_of_an_adapter():
    model = tiny_looped()
    assert adapted_module(model) is None
    adapted = get_peft_model(model, LoraConfig(target_modules=["layers.1.mlp.up_proj"]))
    assert adapted_module(adapted) == "PeftModel"
    assert adapted_module(model) == "model.backbone.layers.1.mlp.up_proj"
    assert adapted_module(adapted.unload()) is None
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert adapted_module(model.lm_head) == "ModulesToSaveWrapper"


def test_adapters_of_transformers_own_are_saved_alone(monkeypatch):
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")
    model = tiny_looped()
    assert not saves_adapter_only(model)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert saves_adapter_only(model)


def test_peft_prepares_what_a_prompted_model_generates_from():
    model = tiny_looped()
    adapted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not is_prompted(model)
    adapted.generate(input_ids=torch.tensor([[3, 4]]), max_new_tokens=1)
    assert is_prompted(model)


def test_the_auto_class_that_opens_a_model():
    assert auto_class_of(tiny_looped()) == "AutoModelForCausalLM"
    assert auto_class_of(tiny_looped().model) == "AutoModel"
