"""The analytic count of operations against torch's `FlopCounterMode`, and by hand."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_loop.evaluation.flops import forward_flops, generation_flops, steps_at_equal_compute, training_flops

from ..models.composed_variants import PAIRS, make_composed
from ..models.feedback_variants import VARIANTS as FEEDBACK
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import VARIANTS as HIERARCHICAL
from ..models.hierarchical_variants import tiny_hierarchical, tiny_hrm_text_config
from ..models.loop_lora_models import tiny_loop_lora
from ..models.looped_variants import VARIANTS as LOOPED
from ..models.looped_variants import tiny_looped
from ..models.puzzle_variants import tiny_puzzle_model
from ..models.sleep_variants import make_sleep
from ..models.tiny_backbones import tiny_backbone


# a layer of these models has 30,720 parameters in matrices and attention costs 128 per key: beyond 240 tokens, more
SHORT, LONG = 13, 320
PROMPT, NEW = 20, 3
TRUNCATED = {"num_loops": 3, "num_backprop_loops": 1}
SLEEP: dict[str, dict[str, Any]] = {
    "three passes": {"num_sleep_passes": 3},
    "sliding eviction": {"eviction": "sliding"},
    "middle layers": {"fast_weight_layers": [0, 1, 3], "sleep_layers": [1, 3]},
    "labelled windows once": {"sleep_over_labels": False},
    "truncated": {"num_backprop_windows": 1},
    "oja": {"fast_weight_rule": "oja"},
}


def depthwise_backward(gradient, states, weight, *args, out_shape, **kwargs) -> int:
    """Twice the forward pass: torch's own formula ignores the groups of a convolution."""
    return 4 * gradient[0] * gradient[2] * weight[0] * weight[1] * weight[2]


class NoModules(nullcontext):
    """Counts by module take most of the counter's time, and fail on learned vectors where no gradient is recorded."""

    parents = frozenset(("Global",))


def count(function) -> int:
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: depthwise_backward})
    counter.mod_tracker = NoModules()
    with counter:
        function()
    return counter.get_total_flops()


def count_forward(model: Any, length: int, **depth) -> int:
    ids = torch.randint(3, 90, (2, length))
    with torch.no_grad():
        return count(lambda: model.eval()(ids, use_cache=False, **depth))


def count_training(model: Any, length: int, **depth) -> int:
    ids = torch.randint(3, 90, (2, length))
    return count(lambda: model.train()(ids, labels=ids, use_cache=False, **depth).loss.backward())


def count_generation(model: Any, prompt: int = PROMPT, new: int = NEW, **depth) -> int:
    ids = torch.randint(3, 90, (2, prompt))
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, **depth}
    return count(lambda: model.eval().generate(ids, attention_mask=torch.ones_like(ids), **options))


def check(model: Any, lengths: tuple[int, ...] = (SHORT, LONG), **depth) -> None:
    """Compare forward and backward passes at two lengths, and generation."""
    model.set_attn_implementation("eager")
    for length in lengths:
        counted = forward_flops(model, length, batch_size=2, **depth)
        assert counted == pytest.approx(count_forward(model, length, **depth), rel=0.02)
        counted = training_flops(model, length, batch_size=2, **depth)
        assert counted == pytest.approx(count_training(model, length, **depth), rel=0.02)
    counted = generation_flops(model, PROMPT, NEW, batch_size=2, **depth)
    assert counted == pytest.approx(count_generation(model, **depth), rel=0.02)


def check_truncated(model: Any) -> None:
    model.set_attn_implementation("eager")
    counted = training_flops(model, 24, batch_size=2, **TRUNCATED)
    assert counted == pytest.approx(count_training(model, 24, **TRUNCATED), rel=0.02)
    assert counted < training_flops(model, 24, batch_size=2, num_loops=3)


@pytest.mark.parametrize("variant", ["plain", "concat", "diagonal", "before the coda"])
def test_looped(variant):
    model = tiny_looped(**LOOPED[variant])
    check(model, lengths=(SHORT, LONG) if variant == "diagonal" else (24,), num_loops=2)
    check_truncated(model)


def test_layers_of_a_decoder_that_loops_by_itself_are_counted_in_a_looped_model_alone():
    if "dory" not in CONFIG_MAPPING:
        pytest.skip("transformers has no dory before 5.24")
    check(tiny_looped("dory", **LOOPED["unit add"]), lengths=(24,), num_loops=2)
    with pytest.raises(ValueError, match="a dory decoder cannot be counted: it runs its layers in loops itself"):
        forward_flops(AutoModelForCausalLM.from_config(tiny_backbone("dory")), 24)


@pytest.mark.parametrize("model_type", ["olmo2", "nanochat"])
def test_nothing_needs_the_gradient_of_the_first_trained_loops_input(model_type):
    # no trained norm before the first linear maps, as in Llama
    model = tiny_looped(model_type, num_prelude_layers=2, num_coda_layers=1)
    model.set_attn_implementation("eager")
    depth = {"num_loops": 2, "num_backprop_loops": 1}
    assert training_flops(model, 24, batch_size=2, **depth) == count_training(model, 24, **depth)


@pytest.mark.parametrize("variant", ["shared stack", "add", "hrm_text"])
def test_hierarchical(variant):
    model = tiny_hierarchical(**HIERARCHICAL[variant])
    check(model, lengths=(SHORT, LONG) if variant == "add" else (24,), num_loops=2)
    counted = training_flops(model, 24, batch_size=2, num_backprop_loops=1)
    assert counted == pytest.approx(count_training(model, 24, num_backprop_loops=1), rel=0.02)


@pytest.mark.parametrize("variant", ["one segment", "all segments", "prefix", "recurrent memory tokens"])
def test_feedback(variant):
    check(make_feedback(**FEEDBACK[variant], block_size=24), lengths=(96,) if variant == "prefix" else (40,))


@pytest.mark.parametrize("variant", SLEEP)
def test_sleep(variant):
    check(
        make_sleep(**{"fast_weight_layers": [0, 2], "sleep_window": 16} | SLEEP[variant]),
        lengths=(40 if variant == "truncated" else 24,),
    )


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_composed(outer, inner):
    size = "block_size" if outer == "feedback" else "sleep_window"
    check(make_composed(outer, inner, **{size: 16}), lengths=(24,), num_loops=2)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2", "mixtral", "deepseek_v3"])
def test_decoders(model_type):
    config = tiny_backbone(model_type)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    if model_type == "deepseek_v3":
        assert forward_flops(model, SHORT, batch_size=2) == count_forward(model, SHORT)
        with pytest.raises(ValueError, match="without a cache"):
            generation_flops(model, PROMPT, NEW)
    else:
        check(model, lengths=(SHORT, LONG) if model_type == "llama" else (24,))


def test_updates_of_loops():
    check(tiny_loop_lora(num_loops=2, loop_lora_vectors=False), lengths=(SHORT,))


def test_one_layer_by_hand():
    config = tiny_backbone("llama", num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    maps, head, attention = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96, 97 * 64, 2 * 64
    forward = 2 * (10 * (maps + head) + 10 * 10 * attention)
    assert forward_flops(model, 10) == forward
    assert training_flops(model, 10, batch_size=3) == 3 * 3 * forward
    keys = 10 * 10 + 11 + 12
    assert generation_flops(model, 10, 3) == 2 * (12 * maps + 3 * head + keys * attention)


def test_truncated_backward_saves_what_the_first_loops_backward_costs():
    model = tiny_looped(num_loops=3)
    loop = forward_flops(model, SHORT, num_loops=2) - forward_flops(model, SHORT, num_loops=1)
    whole, truncated = training_flops(model, SHORT), training_flops(model, SHORT, num_backprop_loops=1)
    assert whole - truncated == 2 * 2 * loop


def test_steps_at_equal_compute():
    assert steps_at_equal_compute(60, 100, 20) == 300
    assert steps_at_equal_compute(20, 100, 60) == 33
    assert steps_at_equal_compute(20, 100, 30) == 67
    with pytest.raises(ValueError, match="more than twice"):
        steps_at_equal_compute(1, 1, 3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tiny_puzzle_model("trm"), "hierarchical_puzzle model cannot be counted"),
        (lambda: tiny_looped().model, "no language model head"),
        (lambda: AutoModelForCausalLM.from_config(tiny_backbone("jamba")), "jamba decoder cannot be counted"),
        (lambda: AutoModelForCausalLM.from_config(tiny_backbone("falcon_h1")), "'hybrid'"),
        (lambda: AutoModelForCausalLM.from_config(tiny_hrm_text_config()), "hrm_text model cannot be counted"),
    ],
)
def test_what_cannot_be_counted_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        forward_flops(make(), SHORT)


def test_other_arguments_and_frozen_weights_are_refused():
    model = tiny_looped()
    with pytest.raises(ValueError, match="num_sleep_passes"):
        forward_flops(model, SHORT, num_sleep_passes=2)
    with pytest.raises(ValueError, match="exit_objective"):
        training_flops(model, SHORT, exit_objective="gain")
    with pytest.raises(ValueError, match="num_tokens"):
        forward_flops(model, 0)
    model.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"lm_head.weight is frozen"):
        training_flops(model, SHORT)
