"""Counts follow `operator.index`: numpy's and torch's whole numbers are taken, booleans and floats are refused."""

import json

import numpy as np
import pytest
import torch

from hf_loop import FeedbackConfig, HierarchicalConfig, HierarchicalPuzzleConfig, LoopedConfig, SleepConfig
from hf_loop.models.checks import check_int, check_positive_int, whole_number

from .family_models import CAUSAL, FAMILIES, INPUT_IDS
from .tiny_backbones import tiny_backbone


WHOLE = (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8))
NOT_WHOLE = (
    *(True, 3.0, "3", np.float32(3), np.bool_(True), np.array([3]), torch.tensor([3]), torch.tensor(3.0)),
    torch.tensor(True),
)
CONFIG_FIELDS = {
    LoopedConfig: ("num_loops", "num_prelude_layers", "num_coda_layers", "loop_lora_rank", "loop_lora_num_loops"),
    FeedbackConfig: ("block_size", "num_memory_segments", "feedback_length", "random_position_offset"),
    SleepConfig: ("sleep_window", "num_sleep_passes", "fast_weight_num_heads", "num_backprop_windows"),
    HierarchicalConfig: ("num_loops", "low_cycles"),
    HierarchicalPuzzleConfig: ("num_loops", "max_segments"),
}
FIELDS = [(config_class, name) for config_class, names in CONFIG_FIELDS.items() for name in names]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_a_whole_number_becomes_an_int(value):
    assert type(whole_number(value)) is int
    assert check_positive_int("count", value) == 3


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_refused_by_name_and_value(value):
    assert whole_number(value) is None
    with pytest.raises(ValueError, match="`count` must be an integer of at least 0, got "):
        check_int("count", value)


@pytest.mark.parametrize(("config_class", "name"), FIELDS)
def test_fields_of_a_configuration(config_class, name, tmp_path):
    # several fields want room: one layer for the others
    backbone_config = tiny_backbone("llama", num_hidden_layers=8)
    for value in WHOLE:
        config = config_class(backbone_config=backbone_config, **{name: value})
        assert type(getattr(config, name)) is int
        setattr(config, name, value)
        assert type(getattr(config, name)) is int
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[name] == 3
    for value in NOT_WHOLE:
        with pytest.raises(ValueError, match=name):
            config_class(backbone_config=backbone_config, **{name: value})
        with pytest.raises(ValueError, match=name):
            setattr(config, name, value)


def test_lists_of_counts_in_a_configuration():
    config = SleepConfig(backbone_config=tiny_backbone("llama"), fast_weight_layers=list(np.arange(2)))
    assert [type(layer) for layer in config.fast_weight_layers] == [int, int]
    with pytest.raises(ValueError, match="sleep_layers"):
        SleepConfig(backbone_config=tiny_backbone("llama"), sleep_layers=[False, True])


def test_fields_that_are_passed_on_to_the_backbone():
    config = LoopedConfig(hidden_size=np.int64(64), vocab_size=torch.tensor(97))
    assert (type(config.hidden_size), type(config.vocab_size)) == (int, int)
    config.vocab_size = np.int64(98)
    assert type(config.backbone_config.vocab_size) is int


@pytest.mark.parametrize("family", ["looped", "hierarchical", "puzzle"])
def test_loops_of_a_forward_pass(family):
    model = FAMILIES[family]()
    expected = model(INPUT_IDS, num_loops=2).logits
    for value in (np.int64(2), torch.tensor(2)):
        assert torch.equal(model(INPUT_IDS, num_loops=value, num_backprop_loops=value).logits, expected)
    for value in (True, 2.0, torch.tensor([2])):
        for name in ("num_loops", "num_backprop_loops"):
            with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got "):
                model(INPUT_IDS, **{name: value})


def test_passes_and_segments_of_a_forward_pass():
    model = FAMILIES["sleep"]()
    expected = model(INPUT_IDS, num_sleep_passes=3).logits
    assert torch.equal(model(INPUT_IDS, num_sleep_passes=np.int64(3)).logits, expected)
    model = FAMILIES["puzzle"]()
    expected = model(INPUT_IDS, num_segments=3).logits
    assert torch.equal(model(INPUT_IDS, num_segments=np.int64(3)).logits, expected)
    assert torch.equal(model.solve(INPUT_IDS, num_segments=torch.tensor(3)).logits, expected)
    with pytest.raises(ValueError, match="`num_segments` must be an integer of at least 1, got 3.0"):
        model.solve(INPUT_IDS, num_segments=3.0)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("looped", "num_loops"),
        ("looped", "num_backprop_loops"),
        ("hierarchical", "num_loops"),
        ("sleep", "num_sleep_passes"),
        ("puzzle", "num_loops"),
        ("puzzle", "num_segments"),
    ],
)
def test_a_count_that_would_never_end_is_refused(family, name):
    model = FAMILIES[family]()
    with pytest.raises(ValueError, match=f"`{name}` must be at most 1048576, got {10**20}"):
        model(INPUT_IDS, **{name: 10**20})
    if family == "puzzle":
        with pytest.raises(ValueError, match="must be at most 1048576"):
            model.solve(INPUT_IDS, num_segments=10**20)
    elif name != "num_backprop_loops":
        with pytest.raises(ValueError, match=f"`{name}` must be at most 1048576"):
            CAUSAL[family]().generate(INPUT_IDS, max_new_tokens=2, **{name: 10**20})


@pytest.mark.parametrize("family", ["looped", "sleep", "hierarchical"])
def test_counts_in_generation(family):
    name = "num_sleep_passes" if family == "sleep" else "num_loops"
    model = CAUSAL[family]()
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    expected = model.generate(INPUT_IDS, **options, **{name: 2})
    for value in (np.int64(2), torch.tensor(2)):
        assert torch.equal(model.generate(INPUT_IDS, **options, **{name: value}), expected)
        if family != "sleep":
            assert type(model.with_num_loops(value).config.num_loops) is int
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got True"):
        model.generate(INPUT_IDS, **options, **{name: True})
