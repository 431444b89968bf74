"""A field that no configuration has is refused, and what transformers writes and reads is not."""

import json

import pytest
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

import hf_loop
from hf_loop import FeedbackConfig, HierarchicalConfig, HierarchicalPuzzleConfig, LoopedConfig, SleepConfig

from .looped_variants import tiny_looped
from .tiny_backbones import MODEL_TYPES, tiny_backbone


CONFIGS = {
    "looped": LoopedConfig,
    "feedback": FeedbackConfig,
    "sleep": SleepConfig,
    "hierarchical": HierarchicalConfig,
}
MISSPELT = {
    "looped": ("num_loop", "num_loops"),
    "feedback": ("feedback_lenght", "feedback_length"),
    "sleep": ("num_sleep_pass", "num_sleep_passes"),
    "hierarchical": ("low_cycle", "low_cycles"),
}


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


def test_a_misspelt_field_is_refused(family):
    name, right = MISSPELT[family]
    with pytest.raises(TypeError, match=f"{CONFIGS[family].__name__} has no field `{name}`; did you mean `{right}`"):
        CONFIGS[family](**{name: 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hiden_size": 64}, "has no field `hiden_size`; did you mean `hidden_size`"),
        ({"rms_norm_eps": 1e-5}, "has no field `rms_norm_eps`, but its backbone has: give it in `backbone_config`"),
        ({"colour": "red"}, "has no field `colour`"),
        ({"backbone_config": {"hiden_size": 64}}, "LlamaConfig has no field `hiden_size`; did you mean `hidden_size`"),
        ({"backbone_config": {"model_type": "qwen3", "num_layers": 4}}, "Qwen3Config has no field `num_layers`"),
    ],
)
def test_fields_of_the_backbone_and_of_nobody_are_refused(family, fields, message):
    with pytest.raises(TypeError, match=message):
        CONFIGS[family](**fields)


@pytest.mark.parametrize(("family", "name"), [("looped", "num_steps"), ("hierarchical", "H_cycles")])
def test_the_number_of_loops_under_another_name_is_refused(family, name):
    with pytest.raises(TypeError, match=f"has no field `{name}`; did you mean `num_loops`"):
        CONFIGS[family](**{name: 3})


def test_a_preset_refuses_them_too():
    with pytest.raises(TypeError, match="has no field `num_loop`; did you mean `num_loops`"):
        HierarchicalPuzzleConfig.from_preset("trm", num_loop=3)


def test_a_misspelt_attribute_is_refused_and_a_new_one_is_not(family):
    config = CONFIGS[family](backbone_config=tiny_backbone("llama"))
    name, right = MISSPELT[family]
    with pytest.raises(AttributeError, match=f"has no field `{name}`; did you mean `{right}`"):
        setattr(config, name, 3)
    config.remark = "mine"
    assert config.to_dict()["remark"] == "mine"


@pytest.mark.parametrize("auto", [True, False])
def test_loading_with_a_misspelt_field_is_refused(tmp_path, family, auto):
    CONFIGS[family](backbone_config=tiny_backbone("llama")).save_pretrained(tmp_path)
    name, right = MISSPELT[family]
    with pytest.raises(TypeError, match=f"has no field `{name}`; did you mean `{right}`"):
        (AutoConfig if auto else CONFIGS[family]).from_pretrained(tmp_path, **{name: 3})
    # of those that no field is near to, transformers would say nothing either
    with pytest.raises(TypeError, match="has no field `colour`"):
        CONFIGS[family].from_pretrained(tmp_path, colour="red")
    loaded = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False, **{right: 3})
    assert getattr(loaded, right) == 3


@pytest.mark.parametrize("name", ["num_loop", "total_ut_steps"])
def test_loading_a_model_with_a_misspelt_field_is_refused(tmp_path, name):
    tiny_looped().save_pretrained(tmp_path)
    for auto_class in (AutoModelForCausalLM, hf_loop.LoopedForCausalLM):
        with pytest.raises(TypeError, match=name):
            auto_class.from_pretrained(tmp_path, **{name: 3})
    options = {"dtype": "bfloat16", "attn_implementation": "eager", "low_cpu_mem_usage": True, "num_loops": 2}
    assert AutoModelForCausalLM.from_pretrained(tmp_path, **options).config.num_loops == 2


def test_a_configuration_that_was_saved_loads_whatever_else_its_file_holds(tmp_path, family):
    config = CONFIGS[family](backbone_config=tiny_backbone("llama"), num_labels=3)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    others = {
        "quantization_config": {"quant_method": "fp8"},
        "problem_type": "regression",
        "classifier_dropout": 0.0,
        "torch_dtype": "float32",
        "temperature": 0.7,
        "unsloth_version": "2026.11",
    }
    path.write_text(json.dumps(saved | others))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.num_labels == 3
    assert loaded.unsloth_version == "2026.11"
    # but not a misspelling, which somebody wrote by hand
    path.write_text(json.dumps(saved | {MISSPELT[family][0]: 3}))
    with pytest.raises(TypeError, match=f"did you mean `{MISSPELT[family][1]}`"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_configuration_made_of_its_own_dictionary_is_the_same(family):
    config = CONFIGS[family](backbone_config=tiny_backbone("llama"))
    assert CONFIGS[family](**config.to_dict()).to_dict() == config.to_dict()
    assert CONFIGS[family].from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_field_that_a_backbone_writes_is_one_that_it_takes(model_type):
    config_class = CONFIG_MAPPING[model_type]
    fields = config_class().to_dict()
    # with it the dictionary would be taken for a file
    fields.pop("transformers_version", None)
    assert LoopedConfig(backbone_config=fields).backbone_config.model_type == config_class.model_type


def test_older_names_of_a_backbones_fields_are_taken():
    config = LoopedConfig(backbone_config={"model_type": "llama", "rope_theta": 3e4, "torch_dtype": "bfloat16"})
    assert config.rope_parameters["rope_theta"] == 3e4
    assert CONFIG_MAPPING["llama"](rope_theta=3e4).rope_parameters == config.rope_parameters
