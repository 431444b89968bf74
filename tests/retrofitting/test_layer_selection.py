"""Layers that are dropped or repeated keep the settings they had."""

import pytest
import torch

from hf_loop import LoopedForCausalLM, retrofit, unroll
from hf_loop.layer_ranges import parse_layer_range, plan_layers
from hf_loop.models.backbone import Backbone
from hf_loop.retrofitting.layer_selection import select_layers

from ..models.model_tester import random_ids
from ..models.tiny_backbones import KINDS, SCALED_BY_DEPTH, tiny_backbone
from .tiny_models import tiny_decoder


INPUT_IDS = random_ids(2, 9)


@pytest.mark.parametrize("model_type", KINDS)
@torch.no_grad()
def test_a_retrofit_with_dropped_layers_runs_the_ones_that_are_kept(model_type, tmp_path):
    base = tiny_decoder(model_type)
    if model_type in SCALED_BY_DEPTH:
        with pytest.raises(ValueError, match="residual_scale would differ"):
            retrofit(base, num_prelude_layers=1, core_layers="2-2", num_coda_layers=1)
        return
    expected = without_layer(base, 1)
    looped = retrofit(base, num_prelude_layers=1, core_layers="2-2", num_coda_layers=1, num_loops=1)
    assert looped.config.backbone_config.num_hidden_layers == 3
    assert torch.equal(looped(INPUT_IDS, use_cache=False).logits, expected)
    looped.save_pretrained(tmp_path)
    loaded = LoopedForCausalLM.from_pretrained(tmp_path)
    # to rounding: where a weight lies in memory decides how some kernels group their sums
    torch.testing.assert_close(loaded(INPUT_IDS, num_loops=3).logits, looped(INPUT_IDS, num_loops=3).logits)


def without_layer(base, dropped):
    """Logits of `base` when one layer passes its input on."""
    layers = Backbone(base.base_model).layers
    hook = layers[dropped].register_forward_hook(
        lambda module, args, kwargs, output: pass_on(args, kwargs, output), with_kwargs=True
    )
    logits = base(INPUT_IDS, use_cache=False).logits
    hook.remove()
    return logits


def pass_on(args, kwargs, output):
    hidden_states = args[0] if args else kwargs["hidden_states"]
    return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states


def test_a_rule_by_index_is_carried_over():
    config = tiny_backbone("qwen3_moe", mlp_only_layers=[2], decoder_sparse_step=2)
    # layers 0 and 2 are dense by the period, 2 by the list too
    assert select_layers(config, [0, 1, 3, 1]).mlp_only_layers == [0]
    assert select_layers(tiny_backbone("smollm3"), [3, 0]).no_rope_layers == [0, 1]
    assert select_layers(tiny_backbone("gemma2"), [0, 0, 1]).layer_types == [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]


def test_a_pattern_the_configuration_cannot_say_is_refused():
    # layer 0 is dense and layer 1 is not: unrolled, a dense layer would follow one that is not
    looped = retrofit(tiny_decoder("deepseek_v3", first_k_dense_replace=1), core_layers="0-1", num_loops=2)
    with pytest.raises(ValueError, match="layer 1 cannot become layer 1 of a deepseek_v3 .* mlp would differ"):
        unroll(looped)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((16, 4, "6-11", 6), "`num_coda_layers` 6 of 16 layers overlaps `core_layers` 6-11"),
        ((16, 7, "6-11", 4), "`num_prelude_layers` 7 overlaps `core_layers` 6-11"),
        ((16, 4, "11-6", 4), "`core_layers` must be FIRST-LAST .* got '11-6'"),
        ((16, 4, "6-16", None), "`core_layers` 6-16 passes the end: the model has the layers 0 to 15"),
        ((16, 4, "six-11", 4), "`core_layers` must be FIRST-LAST"),
        ((8, None, "4-8", None), "the layers 0 to 7, and both ends of a range are included"),
        ((8, None, "4:8", None), "write 4-7 if the end is left out, as in 4:8"),
        ((8, None, "[4, 8)", None), "write 4-7 if the end is left out"),
        ((8, None, (4, 8), None), "write 4-7 if the end is left out"),
        ((8, None, "0-3,2-6", None), "several blocks cannot loop in one model"),
        ((8, None, "1-2 5-6", None), "several blocks cannot loop in one model"),
        ((16, 4, "-6-11", 4), "`core_layers` must be FIRST-LAST"),
        ((16, -1, None, 4), "`num_prelude_layers` must be an integer of at least 0, got -1"),
        ((16, 10, None, 6), "leave no core layer: the model has 16"),
        ((16, 0, "0-3", 17), "`num_coda_layers` 17"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        plan_layers(*arguments)


def test_published_plans():
    # arXiv 2511.07384: OLMo-2-1B and Llama-3.2-1B, TinyLlama-1.1B
    assert plan_layers(16, 4, "6-11", 4).kept == [*range(4), *range(6, 12), *range(12, 16)]
    assert plan_layers(22, 4, "10-17", 4).kept == [*range(4), *range(10, 18), *range(18, 22)]
    # a prelude or a coda that is not given reaches to the core
    assert plan_layers(16, None, "6-11", None).kept == list(range(16))
    assert plan_layers(16, None, "6-11", 4).kept == list(range(16))
    assert parse_layer_range("15") == range(15, 16)
