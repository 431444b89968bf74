"""Where another attention function is chosen and something then fails, the model is what it was before."""

import pytest
import torch
from transformers import CONFIG_MAPPING, ContinuousBatchingConfig, GenerationConfig, LlamaModel, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager

from hf_loop.models.transformers_seams import attention_function

from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .looped_variants import OWN_LOOPS, tiny_looped
from .model_tester import left_pad, random_ids
from .sleep_variants import make_sleep
from .tiny_backbones import tiny_backbone


FAMILIES = {
    "looped": tiny_looped,
    "hierarchical": tiny_hierarchical,
    "feedback": make_feedback,
    "sleep": lambda: make_sleep("llama"),
}
BATCHED = ("looped", "hierarchical")


def choices(model) -> list:
    """The attention functions and the modes of all parts."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return [*(attention_function(part.config) for part in parts), *(module.training for module in model.modules())]


def trained_eagerly(model):
    model.set_attn_implementation("eager")
    model.train()
    # a part in another mode than the rest
    model.lm_head.eval()
    return model


def refusal(model, settings=None, **kwargs) -> str:
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0, **(settings or {})}
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    with pytest.raises((ValueError, RuntimeError)) as refused:
        model.generate_batch(
            [[5, 6, 7], [8, 9]], GenerationConfig(**options), continuous_batching_config=batching, **kwargs
        )
    return str(refused.value)


@pytest.mark.parametrize("depth", [{}, {"num_loops": 5}], ids=str)
@pytest.mark.parametrize("step", ["warmup", "start"])
@pytest.mark.parametrize("family", BATCHED)
def test_continuous_batching_that_fails(family, step, depth, monkeypatch):
    model = trained_eagerly(FAMILIES[family]())
    before = choices(model)

    def fail(manager, *args, **kwargs):
        assert choices(model) != before
        raise RuntimeError("amid batching")

    monkeypatch.setattr(ContinuousBatchingManager, step, fail)
    assert refusal(model, **depth) == "amid batching"
    assert choices(model) == before


@pytest.mark.parametrize("settings", [{"draft_loops": 2}, {"contrast_loop": 1, "contrast_weight": 1.0}], ids=str)
def test_continuous_batching_that_is_refused(settings):
    model = trained_eagerly(tiny_looped())
    before = choices(model)
    for depth in ({}, {"num_loops": 5}):
        assert "does not work with `generate_batch`" in refusal(model, settings, **depth)
        assert choices(model) == before


@pytest.mark.skipif("inkling2_loop_text" not in CONFIG_MAPPING, reason="transformers has none before 5.24")
def test_layers_that_have_no_paged_cache():
    model = trained_eagerly(tiny_looped(**OWN_LOOPS["inkling2_loop_text"]))
    before = choices(model)
    refusal(model)
    assert choices(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attention_function_that_the_decoder_refuses(family, monkeypatch):
    model = FAMILIES[family]()
    before = choices(model)
    monkeypatch.setattr(type(model.model.backbone), "_supports_flex_attn", False)
    with pytest.raises(ValueError, match="flex"):
        model.set_attn_implementation("flex_attention")
    assert choices(model) == before


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_whose_configuration_becomes_part_of_another(family):
    config_class = type(FAMILIES[family]().config)
    decoder = LlamaModel(tiny_backbone("llama")).eval()
    input_ids, attention_mask = left_pad([random_ids(1, length)[0] for length in (3, 9)])
    for chosen in ("eager", "sdpa"):
        decoder.set_attn_implementation(chosen)
        expected = decoder(input_ids, attention_mask=attention_mask)[0]
        config = config_class(backbone_config=decoder.config)
        assert torch.equal(decoder(input_ids, attention_mask=attention_mask)[0], expected)
        assert attention_function(config.backbone_config) == chosen
