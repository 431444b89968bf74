"""Models over time whose passes are those of a model over depth: every pair, with its number of loops free."""

import copy

import pytest
import torch
from transformers import CONFIG_MAPPING, DynamicCache, LlamaConfig

import hf_loop
from hf_loop import (
    FeedbackConfig,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    LoopedConfig,
    LoopedForCausalLM,
    SleepConfig,
)

from .composed_variants import BLOCK, INNER, OUTER, PAIRS, inner_config, make_composed
from .looped_variants import OWN_LOOPS, tiny_looped
from .model_tester import CausalModelTester, random_ids
from .tiny_backbones import tiny_backbone


GREEDY = {"do_sample": False, "eos_token_id": -1}


class ComposedTester(CausalModelTester):
    """The shared tests for one pair, at one loop, as configured and at more loops."""

    PAIR = ("", "")
    DEPTHS = ({"num_loops": 1}, {}, {"num_loops": 3})

    def make_model(self, **overrides):
        return make_composed(*self.PAIR, **overrides)

    def make_cache(self, model, depth):
        num_loops = depth.get("num_loops", model.config.num_loops)
        return DynamicCache(config=model.config.with_num_loops(num_loops))


class TestFeedbackOverLooped(ComposedTester):
    PAIR = ("feedback", "looped")


class TestFeedbackOverHierarchical(ComposedTester):
    PAIR = ("feedback", "hierarchical")


class TestSleepOverLooped(ComposedTester):
    PAIR = ("sleep", "looped")


class TestSleepOverHierarchical(ComposedTester):
    PAIR = ("sleep", "hierarchical")


# decoders that loop by themselves in transformers
needs_dory = pytest.mark.skipif("dory" not in CONFIG_MAPPING, reason="transformers has no dory before 5.24")


@needs_dory
class TestFeedbackOverDory(ComposedTester):
    PAIR = ("feedback", "looped", "dory", {"injection": "unit_add"})


@needs_dory
class TestSleepOverDory(ComposedTester):
    PAIR = ("sleep", "looped", "dory", {"injection": "unit_add"})


@pytest.mark.skipif("inkling2_loop_text" not in CONFIG_MAPPING, reason="transformers has none before 5.24")
@pytest.mark.parametrize(
    ("outer", "message"),
    [
        ("feedback", "must be attention layers, got hybrid, hybrid_sliding of a inkling2_loop_text backbone"),
        ("sleep", "got hybrid, hybrid_sliding of a inkling2_loop_text backbone"),
    ],
    ids=["feedback", "sleep"],
)
def test_short_convolutions_cross_the_border_of_a_block(outer, message):
    with pytest.raises(ValueError, match=message):
        hf_loop.retrofit(tiny_looped(**OWN_LOOPS["inkling2_loop_text"]), outer)


@pytest.mark.parametrize(
    ("inner", "model_type"), [*((inner, "llama") for inner in INNER), pytest.param("looped", "dory", marks=needs_dory)]
)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
@torch.no_grad()
def test_without_a_memory_it_is_the_model_over_depth(inner, model_type, num_loops):
    input_ids = random_ids(2, 11)
    nothing = {
        "feedback": {"feedback_length": 0, "num_memory_segments": None},
        "sleep": {"num_sleep_passes": 1, "sleep_window": 11},
    }
    for outer in OUTER:
        fields = {"injection": "unit_add"} if model_type == "dory" else {}
        model = make_composed(outer, inner, model_type, fields, **nothing[outer])
        for layer in getattr(model.model, "memory_layers", ()):
            layer.o_proj.weight.zero_()
        alone_class = LoopedForCausalLM if inner == "looped" else HierarchicalForCausalLM
        alone = alone_class(model.config.backbone_config).eval()
        alone.model.load_state_dict(model.model.backbone.state_dict())
        alone.lm_head.load_state_dict(model.lm_head.state_dict())
        expected = alone(input_ids, num_loops=num_loops, use_cache=False).logits
        logits = model(input_ids, num_loops=num_loops, use_cache=False).logits
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@torch.no_grad()
def test_the_number_of_loops_is_free_and_means_the_same_everywhere(outer, inner, tmp_path):
    model, input_ids = make_composed(outer, inner), random_ids(2, 10)
    expected = model(input_ids, num_loops=3).logits
    assert not torch.allclose(expected, model(input_ids).logits, atol=1e-3)
    assert torch.equal(model.with_num_loops(3)(input_ids).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, num_loops=3).eval()
    assert loaded.config.num_loops == loaded.config.backbone_config.num_loops == 3
    assert torch.equal(loaded(input_ids).logits, expected)

    by_argument = model.generate(input_ids, num_loops=3, max_new_tokens=7, **GREEDY)
    settings = copy.deepcopy(model.generation_config)
    settings.num_loops = 3
    assert torch.equal(model.generate(input_ids, generation_config=settings, max_new_tokens=7, **GREEDY), by_argument)
    assert torch.equal(loaded.generate(input_ids, max_new_tokens=7, **GREEDY), by_argument)
    without = model.generate(input_ids, num_loops=3, max_new_tokens=7, use_cache=False, **GREEDY)
    assert torch.equal(without, by_argument)
    with pytest.raises(ValueError, match="cache"):
        model(input_ids[:, :3], cache=model(input_ids, num_loops=3, use_cache=True).cache, num_loops=2)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@torch.no_grad()
def test_memory_reaches_across_and_never_back(outer, inner):
    model, input_ids = make_composed(outer, inner), random_ids(1, 3 * BLOCK)
    logits = model(input_ids).logits
    changed = input_ids.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 97
    later = model(changed).logits
    torch.testing.assert_close(later[:, :2], logits[:, :2], atol=1e-5, rtol=1e-5)
    # a token two blocks back, of which feedback with one segment sees the memory alone
    assert (later - logits)[:, 2 * BLOCK + 2 :].abs().max() > 1e-4


@pytest.mark.parametrize("depth", [{}, {"num_loops": 3}, {"num_loops": 3, "num_backprop_loops": 1}])
@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_checkpointing_changes_no_gradient(outer, inner, depth):
    input_ids = random_ids(2, 3 * BLOCK - 1)
    gradients = []
    for checkpointing in (False, True):
        model = make_composed(outer, inner).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids, labels=input_ids, **depth).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is None:
            assert gradients[1][name] is None, name
        else:
            torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_loops_without_gradient_give_none(outer, inner):
    model, input_ids = make_composed(outer, inner).train(), random_ids(2, 3 * BLOCK)
    losses = []
    for depth in ({}, {"num_backprop_loops": 2}, {"num_backprop_loops": 1}):
        model.zero_grad()
        loss = model(input_ids, labels=input_ids, **depth).loss
        loss.backward()
        norm = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        losses.append((loss.item(), norm.item()))
    assert losses[0] == losses[1]
    assert losses[2][0] == losses[0][0] and losses[2][1] != losses[0][1]


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@torch.no_grad()
def test_every_layer_call_is_recorded(outer, inner):
    model, input_ids = make_composed(outer, inner), random_ids(2, BLOCK)
    model.set_attn_implementation("eager")
    outputs = model(input_ids, num_loops=3, output_hidden_states=True, output_attentions=True, use_cache=False)
    num_calls = len(model.config.backbone_config.calls(num_loops=3))
    assert len(outputs.hidden_states) == num_calls + 1
    assert len(outputs.attentions) >= num_calls


@pytest.mark.parametrize("depth", [{}, {"num_loops": 3}])
@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@torch.no_grad()
def test_a_memory_is_saved_and_read_on_from(outer, inner, depth, tmp_path):
    model, input_ids = make_composed(outer, inner), random_ids(2, 11)
    outputs = model(input_ids[:, :7], use_cache=True, **depth)
    model.save_memory(outputs.cache, tmp_path / "memory.safetensors")
    memory = model.load_memory(tmp_path / "memory.safetensors")
    expected = model(input_ids[:, 7:], cache=outputs.cache, **depth).logits
    logits = model(input_ids[:, 7:], cache=memory, **depth).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_sleep_on_demand_takes_the_loops_of_the_cache():
    model, input_ids = make_composed("sleep", "looped"), random_ids(2, 6)
    cache = model(input_ids, use_cache=True, num_loops=3).cache
    with pytest.raises(ValueError, match="`cache` must be a cache of this model"):
        model.sleep(cache)
    model.sleep(cache, num_loops=3)
    assert cache.layers[0].filled == [0, 0]


def test_what_cannot_nest_is_refused_by_kind():
    feedback = FeedbackConfig(backbone_config=tiny_backbone("llama"))
    looped = inner_config("looped")
    puzzle = hf_loop.HierarchicalPuzzleConfig(backbone_config=LlamaConfig(num_hidden_layers=4))
    for config_class, backbone_config in (
        (LoopedConfig, feedback),
        (HierarchicalConfig, feedback),
        (LoopedConfig, looped),
        (HierarchicalConfig, looped),
        (FeedbackConfig, feedback),
        (SleepConfig, feedback),
        (FeedbackConfig, puzzle),
        (SleepConfig, puzzle),
    ):
        with pytest.raises(ValueError, match=f"`backbone_config.model_type` '{backbone_config.model_type}' must be"):
            config_class(backbone_config=backbone_config)


@pytest.mark.parametrize(
    ("config_class", "fields", "inner_fields", "message"),
    [
        (FeedbackConfig, {"feedback_init": "prefix"}, {}, "`feedback_init` must be 'prompt'"),
        (FeedbackConfig, {}, {"state_init": "normal"}, "`backbone_config.state_init` must not be 'normal'"),
        (SleepConfig, {}, {"state_init": "normal"}, "`backbone_config.state_init` must not be 'normal'"),
        (SleepConfig, {"sleep_layers": [1, 3]}, {}, "`sleep_layers` must be None"),
    ],
)
def test_fields_that_a_backbone_with_loops_cannot_have(config_class, fields, inner_fields, message):
    with pytest.raises(ValueError, match=message):
        config_class(backbone_config=inner_config("looped", **inner_fields), **fields)


@pytest.mark.parametrize("outer", OUTER)
def test_a_plain_backbone_has_no_loops(outer):
    config_class = FeedbackConfig if outer == "feedback" else SleepConfig
    config = config_class(backbone_config=tiny_backbone("llama"))
    assert not hasattr(config, "num_loops")
    with pytest.raises(ValueError, match="`num_loops` must be None for a"):
        config.num_loops = 3
    with pytest.raises(ValueError, match="`num_loops` must be None for a"):
        config_class(backbone_config=tiny_backbone("llama"), num_loops=3)


@pytest.mark.parametrize("outer", OUTER)
def test_a_dictionary_names_the_model_inside(outer):
    config_class = FeedbackConfig if outer == "feedback" else SleepConfig
    config = config_class(
        backbone_config={"model_type": "looped_lm", "num_loops": 5, "backbone_config": {"num_hidden_layers": 4}}
    )
    assert isinstance(config.backbone_config, LoopedConfig)
    assert config.num_loops == 5 and config.decoder_config.num_hidden_layers == 4
    assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()
