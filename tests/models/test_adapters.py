"""Adapters of PEFT on models of every family: made, saved and loaded as on any other model."""

import json

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_loop import retrofit

from .families import CAUSAL_FAMILIES, FAMILIES, inputs_of
from .tiny_backbones import tiny_backbone


PROMPTS = [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig]


def targets(adapted) -> set[str]:
    return {name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names}


def disturb(adapted) -> None:
    """Stands for training: what the adapter computes is no longer nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "prompt_encoder" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def native(monkeypatch):
    """transformers 5.24 asks for a release of PEFT that came after it, for adapters of its own."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")


@torch.no_grad()
def logits_of(model, family: str, **arguments) -> torch.Tensor:
    torch.manual_seed(0)
    return model.eval()(**inputs_of(family), **arguments).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_the_targets_are_the_backbones(family, native):
    model = FAMILIES[family]()
    assert targets(get_peft_model(model, LoraConfig())) == {"q_proj", "v_proj"}
    model = FAMILIES[family]()
    assert targets(get_peft_model(model, IA3Config())) == {"k_proj", "v_proj", "down_proj"}
    model = FAMILIES[family]()
    model.add_adapter(LoraConfig())
    assert model.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert model.config.to_dict()["model_type"] == type(model.config).model_type


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_models_of_two_backbones_are_both_right(family):
    # layers that others do not have are made by names
    if family != "sleep":
        neox = CAUSAL_FAMILIES[family]("gpt_neox")
        assert targets(get_peft_model(neox, LoraConfig(task_type="CAUSAL_LM"))) == {"query_key_value"}
    llama = CAUSAL_FAMILIES[family]("llama")
    assert targets(get_peft_model(llama, LoraConfig(task_type="CAUSAL_LM"))) == {"q_proj", "v_proj"}
    gemma = CAUSAL_FAMILIES[family]("gemma")
    assert targets(get_peft_model(gemma, VeraConfig(target_modules=["q_proj"], r=2))) == {"q_proj"}
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(CAUSAL_FAMILIES[family]("olmo2"), LoraConfig())


@pytest.mark.parametrize("family", CAUSAL_FAMILIES)
def test_what_trl_makes_of_use_peft(family):
    trl = pytest.importorskip("trl")
    # `trl sft --use_peft`
    config = trl.get_peft_config(trl.ModelConfig(use_peft=True))
    assert config.target_modules is None
    assert targets(get_peft_model(CAUSAL_FAMILIES[family](), config)) == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_replicated_layers_are_refused(family):
    replicated = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 3], [1, 4]])
    with pytest.raises(ValueError, match="Could not locate the layers"):
        get_peft_model(FAMILIES[family](), replicated)


@pytest.mark.parametrize("make_config", PROMPTS)
@pytest.mark.parametrize("family", ["looped", "looped with per-loop LoRA", "hierarchical"])
def test_prompts_find_their_sizes(make_config, family, tmp_path):
    model = CAUSAL_FAMILIES[family]()
    stored = model.config.to_json_string()
    plain = logits_of(model, family)
    adapted = get_peft_model(model, make_config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    disturb(adapted)
    logits = logits_of(adapted, family)[:, -plain.shape[1] :]
    assert not torch.allclose(logits, plain, atol=1e-2)
    inputs = inputs_of(family) | {"attention_mask": torch.ones_like(inputs_of(family)["input_ids"])}
    generated = adapted.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    grown = inputs["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            following = adapted(grown, attention_mask=torch.ones_like(grown)).logits[:, -1:].argmax(-1)
        grown = torch.cat([grown, following], dim=1)
    assert torch.equal(generated, grown)

    adapted.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(CAUSAL_FAMILIES[family](), tmp_path)
    torch.testing.assert_close(logits_of(loaded, family)[:, -plain.shape[1] :], logits)
    assert model.config.to_json_string() == stored

    if make_config is PrefixTuningConfig:
        assert adapted.peft_config["default"].num_layers == model.config.num_hidden_layers
        with pytest.raises(ValueError, match="the number of loops that it was started with"):
            logits_of(adapted, family, num_loops=5)
    else:
        assert not torch.allclose(logits_of(adapted, family, num_loops=5)[:, -plain.shape[1] :], logits, atol=1e-3)


@pytest.mark.parametrize("make_config", PROMPTS)
@pytest.mark.parametrize("family", ["feedback", "sleep", "puzzle"])
def test_prompts_without_a_place_are_refused_by_name(make_config, family):
    model = FAMILIES[family]()
    config = make_config(task_type="CAUSAL_LM" if family != "puzzle" else "FEATURE_EXTRACTION", num_virtual_tokens=3)
    with pytest.raises(ValueError, match=f"does not work with a {type(model).__name__}: "):
        get_peft_model(model, config)


@pytest.mark.parametrize("model_type", ["qwen3_next", "deepseek_v3"])
def test_a_prefix_needs_keys_and_values_of_one_shape(model_type):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match=f"PREFIX_TUNING needs .* {model_type} backbone"):
        get_peft_model(CAUSAL_FAMILIES["looped"](model_type), config)


@pytest.mark.parametrize("family", ["looped", "feedback", "sleep"])
def test_an_adapter_of_a_model_made_in_memory(family, tmp_path):
    LlamaForCausalLM(tiny_backbone("llama")).save_pretrained(tmp_path / "plain")
    torch.manual_seed(0)
    model = retrofit(tmp_path / "plain", family)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
    disturb(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] is None
    # loaded onto the same model again
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(retrofit(tmp_path / "plain", family), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, family), logits_of(adapted, family))


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_names_the_folder_of_its_base(family, task_type, tmp_path, native):
    if family == "puzzle":
        task_type = None
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(task_type=task_type))
    disturb(adapted)
    expected = logits_of(adapted, family)
    adapted.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == str(tmp_path / "base")
    opens = AutoPeftModel if task_type is None else AutoPeftModelForCausalLM
    loaded = opens.from_pretrained(tmp_path / "adapter")
    assert type(loaded.get_base_model()) is type(model)
    torch.testing.assert_close(logits_of(loaded, family), expected)
    if family != "puzzle":
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(logits_of(loaded, family), expected)
        loaded.save_pretrained(tmp_path / "native")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
        torch.testing.assert_close(logits_of(loaded, family), expected)


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_remembers_the_depth_it_was_saved_at(family, task_type, tmp_path):
    if family == "puzzle":
        task_type = None
    model = FAMILIES[family]()
    model.save_pretrained(tmp_path / "base")
    auto_class = type(model)
    depth = {"feedback": {}, "sleep": {"num_sleep_passes": 4}}.get(family, {"num_loops": 5})
    adapted = get_peft_model(auto_class.from_pretrained(tmp_path / "base", **depth), LoraConfig(task_type=task_type))
    disturb(adapted)
    expected = logits_of(adapted, family)
    adapted.save_pretrained(tmp_path / "adapter")
    opens = AutoPeftModel if task_type is None else AutoPeftModelForCausalLM
    for loaded in (
        opens.from_pretrained(tmp_path / "adapter"),
        PeftModel.from_pretrained(auto_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter"),
    ):
        torch.testing.assert_close(logits_of(loaded, family), expected)
        assert {name: getattr(loaded.get_base_model().config, name) for name in depth} == depth
    # a configuration that is used again for a new adapter has no depth
    other = auto_class.from_pretrained(tmp_path / "base")
    get_peft_model(other, adapted.peft_config["default"])
    assert all(getattr(other.config, name) == getattr(model.config, name) for name in depth)
    if depth:
        other = PeftModel.from_pretrained(auto_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        other.get_base_model().config.__setattr__(*next(iter(depth.items()))[:1], 2)
        other.load_adapter(tmp_path / "adapter", "second")
        assert getattr(other.get_base_model().config, next(iter(depth))) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_inside_a_wrapper_is_not_saved_as_a_model(family, tmp_path):
    model = FAMILIES[family]()
    adapted = get_peft_model(model, LoraConfig())
    with pytest.raises(ValueError, match="merge it before saving the whole model"):
        adapted.get_base_model().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    adapted.merge_and_unload().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
