"""Architectures that the tests do not cover: opened when they pass the check, refused by name when they do not."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_loop
from hf_loop import BackboneSpec, LoopedConfig, LoopedForCausalLM, register_backbone, retrofit
from hf_loop.models import backbone_check, backbone_twin
from hf_loop.models.backbone import (
    REGISTERED_BACKBONES,
    SUPPORTED_BACKBONES,
    Backbone,
    backbone_spec,
    is_tested,
)
from hf_loop.models.cache_slots import CacheSlot

from .tiny_backbones import tiny_backbone


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(backbone_check, "_RESULTS", {})
    yield
    REGISTERED_BACKBONES.clear()


@pytest.fixture
def not_in_the_table(monkeypatch):
    """Takes an architecture out of the table."""

    def remove(model_type: str) -> None:
        monkeypatch.delitem(SUPPORTED_BACKBONES, model_type)

    return remove


def refusal(config) -> str:
    with pytest.raises(
        ValueError, match=f"`backbone_config.model_type` '{config.model_type}' cannot be opened"
    ) as error:
        backbone_spec(config)
    return str(error.value)


def test_an_architecture_that_fits_opens_and_is_checked_once(not_in_the_table, monkeypatch):
    not_in_the_table("qwen3")
    made = []
    make_twin = backbone_check.make_twin
    monkeypatch.setattr(backbone_check, "make_twin", lambda *args: made.append(args) or make_twin(*args))
    config = LoopedConfig(backbone_config=tiny_backbone("qwen3"), num_loops=2)
    assert not is_tested(config.backbone_config)
    LoopedForCausalLM(config)
    LoopedForCausalLM(config)
    assert len(made) == 1
    # another configuration of the same architecture may differ
    LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("qwen3", attention_bias=True)))
    assert len(made) == 2
    # what the tests cover is not checked again
    backbone_spec(tiny_backbone("llama"))
    assert len(made) == 2


def test_the_check_leaves_the_process_as_it_was(not_in_the_table):
    not_in_the_table("qwen3")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("qwen3")))
            assert torch.empty(0).device.type == "meta"
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.lm_head.weight.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_model_loads_and_is_checked(not_in_the_table, tmp_path):
    torch.manual_seed(0)
    LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("qwen3"))).save_pretrained(tmp_path)
    not_in_the_table("qwen3")
    loaded = LoopedForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert list(backbone_check._RESULTS.values()) == [None]
    not_in_the_table("granite")
    with pytest.raises(ValueError, match="'granite' cannot be opened: one loop differs"):
        LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("granite")))


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt2", "its base model has no embed_tokens, layers, norm, rotary_emb"),
        ("granite", "one loop differs from the base model by up to"),
        ("gemma3_text", "its layers cannot be run by themselves: "),
    ],
)
def test_the_first_thing_that_differs_is_named(not_in_the_table, model_type, reason):
    not_in_the_table(model_type)
    assert reason in refusal(tiny_backbone(model_type))


def test_a_bias_of_the_head_is_named():
    register_backbone("gptj", dataclasses.replace(SUPPORTED_BACKBONES["gptj"], head_bias=False), exist_ok=True)
    assert "its head has a bias" in refusal(tiny_backbone("gptj"))


def test_a_cache_that_changes_something_is_named(not_in_the_table, monkeypatch):
    def forget(self, key_states, value_states, *args, **kwargs):
        self.was_used = True
        self.cache.update(key_states, value_states, self.slot)
        return key_states, value_states

    not_in_the_table("qwen3")
    monkeypatch.setattr(CacheSlot, "update", forget)
    assert "its layers cannot be run with a cache" in refusal(tiny_backbone("qwen3"))

    def double(self, key_states, value_states, *args, **kwargs):
        self.was_used = True
        keys, values = self.cache.update(key_states, value_states, self.slot)
        return keys, values * (1 + 1e-2)

    backbone_check._RESULTS.clear()
    monkeypatch.setattr(CacheSlot, "update", double)
    assert "at two loops a cache changes the logits by up to" in refusal(tiny_backbone("qwen3"))


def test_a_layer_that_ignores_its_cache_is_named(not_in_the_table, monkeypatch):
    def unseen(self, key_states, value_states, *args, **kwargs):
        return self.cache.update(key_states, value_states, self.slot)

    not_in_the_table("qwen3")
    monkeypatch.setattr(CacheSlot, "update", unseen)
    message = refusal(tiny_backbone("qwen3"))
    assert "layer 0 of the qwen3 backbone neither read nor wrote slot 0 of the cache (transformers " in message


def test_some_configurations_of_an_architecture_do_not_fit():
    backbone_spec(tiny_backbone("opt"))
    assert "has no decoder.final_layer_norm" in refusal(tiny_backbone("opt", do_layer_norm_before=False))
    assert "its head is a Linear of (97, 16), not a linear map of (97, 32)" in refusal(
        tiny_backbone("opt", word_embed_proj_dim=32)
    )


@pytest.mark.parametrize("fields", [{}, {"alibi": True}, {"new_decoder_architecture": True}])
def test_the_kinds_of_falcon_open(fields):
    assert not is_tested(tiny_backbone("falcon"))
    backbone_spec(tiny_backbone("falcon", **fields))
    assert list(backbone_check._RESULTS.values()) == [None]


def test_the_pretrained_model_itself_is_checked(not_in_the_table):
    config = tiny_backbone("qwen3")
    not_in_the_table("qwen3")
    torch.manual_seed(0)
    assert isinstance(retrofit(AutoModelForCausalLM.from_config(config)), LoopedForCausalLM)
    # a model that does more than its class says
    base = AutoModelForCausalLM.from_config(config)
    base.lm_head.register_forward_hook(lambda module, args, output: output)
    base.model.norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    forward = base.forward
    base.forward = lambda *args, **kwargs: _doubled(forward(*args, **kwargs))
    with pytest.raises(ValueError, match="is a qwen3 model that cannot be opened: one loop differs"):
        retrofit(base)


def _doubled(outputs):
    outputs.logits = outputs.logits * 2
    return outputs


class TestRegistering:
    def test_an_entry_is_checked_before_its_first_use(self, not_in_the_table):
        spec = SUPPORTED_BACKBONES["gpt_neox"]
        not_in_the_table("gpt_neox")
        assert "has no embed_tokens, norm" in refusal(tiny_backbone("gpt_neox"))
        register_backbone("gpt_neox", spec)
        assert backbone_spec(tiny_backbone("gpt_neox")) is spec
        assert list(backbone_check._RESULTS.values()).count(None) == 1
        LoopedForCausalLM(LoopedConfig(backbone_config=tiny_backbone("gpt_neox")))

    def test_an_entry_that_is_wrong_is_refused(self):
        register_backbone("granite", BackboneSpec(), exist_ok=True)
        assert "one loop differs" in refusal(tiny_backbone("granite"))

    def test_a_tested_entry_is_not_replaced_by_accident(self):
        with pytest.raises(ValueError, match="`model_type` 'llama' has an entry already"):
            register_backbone("llama", BackboneSpec())
        with pytest.raises(ValueError, match="`model_type` 'hrm_text' has an entry already"):
            register_backbone("hrm_text", BackboneSpec())
        register_backbone("mine", BackboneSpec())
        with pytest.raises(ValueError, match="`model_type` 'mine' has an entry already"):
            register_backbone("mine", BackboneSpec())
        with pytest.raises(TypeError, match="`spec` must be a BackboneSpec, got dict"):
            register_backbone("other", {})
        assert list(REGISTERED_BACKBONES) == ["mine"]

    def test_the_names_are_public(self):
        assert hf_loop.register_backbone is register_backbone


class TestTwins:
    """A twin of a full-size configuration is small and keeps what the configuration says about kinds."""

    @pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
    def test_a_twin_is_small_and_equals_the_base_model(self, model_type):
        config = type(tiny_backbone(model_type))()
        with backbone_twin.twin_context():
            twin = backbone_twin.make_twin(config)
            assert twin.num_parameters() < 20_000_000
            spec = SUPPORTED_BACKBONES[model_type]
            assert backbone_check.check_one_loop(twin, spec, Backbone) is None

    def test_fewer_layers_cover_every_kind(self):
        config = tiny_backbone(
            "gemma2",
            num_hidden_layers=40,
            layer_types=["sliding_attention"] * 9 + ["full_attention"] + ["sliding_attention"] * 30,
        )
        fields = next(backbone_twin._sizes(config))
        assert fields["num_hidden_layers"] == 10
        assert fields["layer_types"] == ["sliding_attention"] * 9 + ["full_attention"]
