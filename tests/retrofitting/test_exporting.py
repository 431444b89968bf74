"""Layouts of published models that ours are written in."""

import dataclasses

import pytest
import torch
from transformers import CONFIG_MAPPING

import hf_loop
from hf_loop import HierarchicalConfig, LoopedConfig
from hf_loop.models.configuration_recurrent import RecurrentConfig
from hf_loop.retrofitting.converters import dory, hrm_text, inkling2_loop, nanbeige
from hf_loop.retrofitting.exporting import LAYOUTS

from ..models import hierarchical_variants, looped_variants
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.looped_variants import OWN_LOOPS, tiny_looped
from ..models.model_tester import random_ids


INPUT_IDS = random_ids(2, 9)
# other schedules than a layout's own; together they set every field of a configuration
LOOPED = [
    *looped_variants.VARIANTS.values(),
    {"num_loops": 2},
    {"injection": "messages"},
    {"state_init": "sine_normal", "state_seed": 4},
    {"loop_lora_rank": 2, "loop_lora_num_loops": 2, "loop_lora_beyond": "cyclic", "loop_lora_vectors": True},
    {"loop_lora_rank": 2, "loop_lora_target_modules": ["q_proj"]},
]
HIERARCHICAL = [
    *(fields for fields in hierarchical_variants.VARIANTS.values() if "model_type" not in fields),
    {"num_loops": 1},
    {"low_cycles": 1},
    {"stack_repeats": 2},
    {"embedding_scale": 2.0},
    {"shared_stack": True, "num_latent_states": 1},
    {"state_init": "sine_normal", "state_std": 0.5},
    {"gradient": "last_k", "backprop_low_cycles": [1, 2]},
]
# the model that a layout can say, made of further fields
SAID = {
    "nanbeige": (LOOPED, lambda **fields: tiny_looped("llama", **fields)),
    "dory": (LOOPED, lambda **fields: tiny_looped(**{**OWN_LOOPS["dory"], **fields})),
    "inkling2_loop": (LOOPED, lambda **fields: tiny_looped(**{**OWN_LOOPS["inkling2_loop_text"], **fields})),
    "hrm_text": (HIERARCHICAL, lambda **fields: tiny_hierarchical("hrm_text", **{"stack_norm": "final", **fields})),
}


def test_every_converter_that_writes_is_a_layout():
    names = ["nanbeige", "dory", "inkling2_loop", "hrm_text"]
    assert list(LAYOUTS.items()) == list(zip(names, [nanbeige, dory, inkling2_loop, hrm_text], strict=True))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of 'nanbeige', 'dory', 'inkling2_loop', 'hrm_text', got 'ouro'"):
        hf_loop.export(tiny_looped(), tmp_path / "written", "ouro")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_setting_of_generation_that_an_engine_does_not_know_is_refused(layout, tmp_path, monkeypatch):
    model = tiny_looped()
    model.generation_config.exit_criterion = "kl"
    # of transformers' own the weights are not needed for this
    if layout != "nanbeige":
        writer = LAYOUTS[layout].write_native
        with pytest.raises(ValueError, match="`exit_criterion` of `generation_config` is 'kl'"):
            writer(type(model), model.config, model)
        return
    with pytest.raises(ValueError, match="`exit_criterion` of `generation_config` is 'kl'"):
        hf_loop.export(model, tmp_path / "written", layout)
    assert list(tmp_path.iterdir()) == []


def test_the_schedules_below_set_every_field():
    for config_class, schedules in ((LoopedConfig, LOOPED), (HierarchicalConfig, HIERARCHICAL)):
        known = {field.name for field in dataclasses.fields(RecurrentConfig)}
        names = {field.name for field in dataclasses.fields(config_class)} - known
        assert names - set().union(*schedules) == set()


@torch.no_grad()
@pytest.mark.parametrize("layout", SAID)
def test_what_is_written_computes_the_same_and_the_rest_is_refused(layout, tmp_path):
    if layout in ("dory", "inkling2_loop") and layout not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {layout} before 5.24")
    schedules, make = SAID[layout]
    outcomes = set()
    for index, fields in enumerate([{}, *schedules]):
        try:
            model = make(**fields)
        except ValueError:
            # no model of ours, either
            continue
        if "loop_lora_rank" in fields:
            for parameter in model.model.loop_lora.parameters():
                parameter.normal_(std=0.1)
        folder = tmp_path / str(index)
        try:
            hf_loop.export(model, folder, layout)
        except ValueError as error:
            assert not folder.exists() and "\n" not in str(error), fields
            outcomes.add("refused")
            continue
        found = hf_loop.convert(folder)(INPUT_IDS).logits
        torch.testing.assert_close(found, model(INPUT_IDS).logits, atol=1e-6, rtol=1e-5, msg=str(fields))
        outcomes.add("written")
    assert outcomes == {"written", "refused"}
