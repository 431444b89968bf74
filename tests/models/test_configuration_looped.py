"""The configuration: fields read through to the backbone, derived slots, refused values."""

import pytest
from transformers import AutoConfig, DynamicCache, LlamaConfig

from hf_loop import LoopedConfig

from .tiny_backbones import tiny_backbone


def make_config(**fields):
    return LoopedConfig(backbone_config=tiny_backbone("llama"), **fields)


def test_the_number_of_slots_follows_the_loop_count(tmp_path):
    config = make_config(num_prelude_layers=1, num_coda_layers=1, num_loops=3)
    assert (config.num_core_layers, config.num_hidden_layers) == (2, 8)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, num_loops=8)
    assert isinstance(loaded, LoopedConfig)
    assert loaded.num_hidden_layers == len(DynamicCache(config=loaded).layers) == 18
    assert "num_hidden_layers" not in loaded.to_dict()
    assert config.with_num_loops(5).num_hidden_layers == 12
    assert config.num_loops == 3


def test_assigning_a_depth_assigns_loops():
    config = make_config(num_prelude_layers=1, num_coda_layers=1, num_loops=3)
    config.num_hidden_layers = 4
    assert config.num_loops == 1
    with pytest.raises(ValueError, match="`num_hidden_layers` must be .* got 5"):
        config.num_hidden_layers = 5


def test_layer_types_follow_the_slots():
    backbone_config = tiny_backbone("llama", num_hidden_layers=3)
    assert not hasattr(LoopedConfig(backbone_config=backbone_config), "layer_types")
    backbone_config = tiny_backbone("gemma3_text", layer_types=["sliding_attention"] * 3 + ["full_attention"])
    config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    expected = ["sliding_attention", "full_attention"] + ["sliding_attention"] * 4
    assert config.layer_types == expected
    assert DynamicCache(config=config).is_sliding == [t == "sliding_attention" for t in expected]


def test_backbone_fields_read_and_write_through():
    config = make_config()
    assert config.vocab_size == 97
    config.vocab_size = 101
    assert config.backbone_config.vocab_size == 101
    direct = LoopedConfig(vocab_size=50, hidden_size=32, num_attention_heads=4, num_loops=2)
    assert isinstance(direct.backbone_config, LlamaConfig)
    assert direct.backbone_config.head_dim == 8


def test_a_configuration_survives_the_round_trip(tmp_path):
    config = make_config(injection="diagonal", state_init="normal", loop_norm="own", num_prelude_layers=1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""}
    assert loaded == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prelude_layers": 2, "num_coda_layers": 2}, "leave no core layer: the backbone has 4"),
        ({"num_prelude_layers": -1}, "`num_prelude_layers` must be from 0 to 4096, got -1"),
        ({"injection": "gate"}, "injection.*gate"),
        ({"state_init": "ones"}, "state_init.*ones"),
        ({"state_init": "zeros"}, "needs an injection"),
        ({"num_loops": 0}, "`num_loops` must be an integer of at least 1, got 0"),
        ({"loop_norm": "yes"}, "loop_norm"),
        ({"backbone_config": "llama"}, "`backbone_config` must be a configuration or a dict, got 'llama'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoopedConfig(**{"backbone_config": tiny_backbone("llama"), **fields})
