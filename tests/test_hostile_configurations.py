"""Configurations that somebody damaged: every wrong value is a `ValueError`, in a file, in Python, and in a model.

A field that does not exist is a `TypeError`, as everywhere in Python, and a `ValueError` in a file.
"""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_loop.configurations import read_config
from hf_loop.models import FAMILIES

from .models.tiny_backbones import tiny_backbone


SCHEDULES = {
    "looped": {"num_loops": 2},
    "feedback": {"block_size": 4, "feedback_length": 2},
    "sleep": {"sleep_window": 4},
    "hierarchical": {"num_loops": 2},
    "puzzle": {"num_loops": 1},
}
BACKBONES = ("llama", "qwen3", "gpt_neox", "gemma3_text", "qwen2_moe")
# fields of every configuration
COMMON = (
    *("dtype", "architectures", "num_labels", "id2label", "quantization_config", "attn_implementation", "use_cache"),
    *("vocab_size", "hidden_size", "head_dim", "rope_parameters", "hidden_act", "eos_token_id", "backbone_config"),
    *("max_position_embeddings", "attention_dropout", "sliding_window", "tie_word_embeddings", "auto_map"),
)
NUMBERS = [0, 1, -1, -4, 33, 10**9, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-30, math.inf, -math.inf, math.nan]
WRONG = st.sampled_from(
    [None, True, False, "abc", "", "33", [], [1], ["a"], [None], [[1]], {}, {"a": 1}, {"rope_type": "x"}, *NUMBERS]
)


@st.composite
def damaged(draw):
    """A family and the fields of its configuration, with one or two changes to them or to those of the backbone."""
    family = draw(st.sampled_from(sorted(SCHEDULES)))
    backbone = tiny_backbone(draw(st.sampled_from(BACKBONES[:2] if family == "sleep" else BACKBONES))).to_dict()
    backbone.pop("transformers_version", None)
    fields = SCHEDULES[family] | {"backbone_config": backbone}
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([fields, backbone]))
        own = [*FAMILIES[family].own_fields, *COMMON] if place is fields else sorted(backbone)
        name = draw(st.sampled_from(own))
        change = draw(st.sampled_from(["value"] * 6 + ["remove", "misspell", "nest"]))
        if change == "remove":
            place.pop(name, None)
        elif change == "misspell":
            place[f"{name}s"] = draw(WRONG)
        else:
            place[name] = {"inner": place.get(name)} if change == "nest" else draw(WRONG)
    return family, fields


@settings(max_examples=400, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(case=damaged())
def test_a_damaged_configuration_is_refused_or_makes_a_model(case):
    family, fields = case
    record = FAMILIES[family]
    try:
        config = record.config(**fields)
        assert config.num_hidden_layers >= 1
        record.config.from_dict(json.loads(json.dumps(config.to_dict())))
        with torch.device("meta"):
            record.classes[record.loader](config)
    except ValueError as error:
        assert str(error)
    except TypeError as error:
        assert "has no field" in str(error)


@settings(max_examples=100, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(case=damaged())
def test_a_damaged_file_is_refused_by_its_name(tmp_path_factory, case):
    family, fields = case
    folder = tmp_path_factory.mktemp("model")
    text = json.dumps(fields | {"model_type": FAMILIES[family].config.model_type})
    (folder / "config.json").write_text(text)
    try:
        read_config(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_loops": 10**9}, "`num_loops` must be at most 524288, with 2 layer calls each, got 1000000000"),
        ({"num_prelude_layers": 10**9}, "`num_prelude_layers` must be from 0 to 4096, got 1000000000"),
        ({"state_std": math.nan}, "`state_std` must be a finite number, got nan"),
        ({"loop_update": "damped", "loop_step": 0.0}, "`loop_step` must be from 1e-06 to 1, got 0.0"),
        ({"loop_update": "damped", "loop_step": 1.5}, "`loop_step` must be from 1e-06 to 1, got 1.5"),
        ({"loop_update": "damped", "loop_step": True}, "`loop_step` must be a number, got True"),
        ({"loop_step": 0.25}, "`loop_step` needs `loop_update='damped'`, got loop_step=0.25"),
        ({"hidden_size": -4}, "`backbone_config.hidden_size` must be from 1 to 16777216, got -4"),
        (
            {"backbone_config": {"num_hidden_layers": 10**9}},
            "`backbone_config.num_hidden_layers` must be from 1 to 4096",
        ),
        ({"backbone_config": {"hidden_size": True}}, "`backbone_config.hidden_size` must be an integer, got True"),
        ({"backbone_config": {"hidden_size": 33}}, "33"),
        ({"backbone_config": {"hidden_size": "abc"}}, "hidden_size.*'abc'"),
        (
            {"backbone_config": {"rms_norm_eps": math.nan}},
            "`backbone_config.rms_norm_eps` must be from 0 to 1, got nan",
        ),
        ({"backbone_config": {"attention_dropout": 2.0}}, "`backbone_config.attention_dropout` must be from 0 to 1"),
        ({"backbone_config": {"rope_parameters": 3}}, "`backbone_config`.*3"),
        ({"backbone_config": {"model_type": ["llama"]}}, r"`backbone_config.model_type` \['llama'\] is not"),
        (
            {"backbone_config": {"model_type": "gpt2", "n_layer": 0}},
            "`backbone_config.n_layer` must be from 1 to 4096",
        ),
        ({"dtype": 3}, "`dtype` must be str or dtype or dict, got 3"),
        ({"num_labels": 10**9}, "`num_labels` must be from 0 to 1048576, got 1000000000"),
        ({"num_labels": None}, "`num_labels` must be int, got None"),
        ({"backbone_config": {"num_labels": None}}, "`backbone_config.num_labels` must be int, got None"),
        ({"quantization_config": 0.5}, "`quantization_config` must be dict, got 0.5"),
    ],
)
def test_a_wrong_value_is_named(fields, message):
    backbone = {"num_hidden_layers": 2} | fields.pop("backbone_config", {})
    with pytest.raises(ValueError, match=message):
        FAMILIES["looped"].config(backbone_config=backbone, **fields)
