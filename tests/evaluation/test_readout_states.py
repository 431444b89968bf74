"""Plans of loops: what is the same computation is the same number, bit for bit."""

from functools import partial

import pytest
import torch

from hf_loop import convert
from hf_loop.evaluation.readout_states import Plan, PlannedLoops
from hf_loop.retrofitting.converters import nanbeige, ouro

from ..models.composed_variants import make_composed
from ..models.hierarchical_variants import VARIANTS as HIERARCHICAL
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.loop_lora_models import tiny_loop_lora
from ..models.looped_variants import VARIANTS as LOOPED
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from ..retrofitting.converters import test_dory, test_huginn, test_nanbeige, test_ouro
from ..retrofitting.converters.llama_reference import converted_model
from ..retrofitting.converters.recurrent_reference import write_checkpoint


LOOPS = 3
CONTROLS = ("prefix", "repeat", "suffix", "frozen")
MODELS = {
    **{f"looped, {name}": partial(tiny_looped, **fields) for name, fields in LOOPED.items()},
    **{f"hierarchical, {name}": partial(tiny_hierarchical, **fields) for name, fields in HIERARCHICAL.items()},
    "loop lora": partial(tiny_loop_lora, num_prelude_layers=1),
}


def batch():
    """Two rows, the second of which is shorter."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return {"input_ids": random_ids(2, 9), "attention_mask": mask}


@torch.no_grad()
def logits(model, plans, num_loops=LOOPS):
    states = PlannedLoops(model, num_loops).states(batch(), plans)
    return [model.read_logits(states[plan]) for plan in plans]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_control_of_all_loops_is_the_whole_model_bit_for_bit(name):
    model = MODELS[name]()
    expected = model(**batch(), num_loops=LOOPS, use_cache=False).logits
    for read in logits(model, [Plan(control, LOOPS) for control in CONTROLS]):
        assert torch.equal(read, expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "looped, damped"])
@torch.no_grad()
def test_a_prefix_is_the_model_of_fewer_loops(name):
    model = MODELS[name]()
    for loops in (1, 2):
        expected = model(**batch(), num_loops=loops, use_cache=False).logits
        assert torch.equal(logits(model, [Plan("prefix", loops)])[0], expected)


@torch.no_grad()
def test_a_prefix_keeps_the_steps_of_the_whole_damped_model():
    model = tiny_looped(**LOOPED["damped"])
    same_steps = tiny_looped(**LOOPED["damped"], loop_step=1 / LOOPS)
    (read,) = logits(model, [Plan("prefix", 1)])
    assert torch.equal(read, same_steps(**batch(), num_loops=1, use_cache=False).logits)
    assert not torch.equal(read, model(**batch(), num_loops=1, use_cache=False).logits)


def test_the_order_of_the_loops():
    assert Plan("prefix", 2).order(4) == [0, 1]
    assert Plan("repeat", 2).order(4) == [0, 1, 1, 1]
    assert Plan("suffix", 2).order(4) == [2, 3]
    assert Plan("frozen", 2).order(4) == [0, 1]


def test_loops_that_share_their_weights_are_repeated_anyway():
    model = tiny_looped()
    assert PlannedLoops(model, LOOPS).shares_loops
    whole, repeated, first, last = logits(
        model, [Plan("prefix", 3), Plan("repeat", 1), Plan("prefix", 1), Plan("suffix", 1)]
    )
    assert torch.equal(whole, repeated) and torch.equal(first, last)
    assert not torch.equal(whole, first)


@torch.no_grad()
def test_loops_with_their_own_updates_are_repeated_with_the_update_of_the_kth():
    model = tiny_loop_lora()
    assert not PlannedLoops(model, LOOPS).shares_loops
    by_plan = dict(zip(CONTROLS, logits(model, [Plan(control, 1) for control in CONTROLS]), strict=True))
    # the same with the updates written where the plan says
    lora = model.model.loop_lora
    kept = {name: parameter.clone() for name, parameter in lora.named_parameters()}

    def with_updates(order, num_loops):
        for name, parameter in lora.named_parameters():
            parameter[: len(order)] = kept[name][order]
        return model(**batch(), num_loops=num_loops, use_cache=False).logits

    assert torch.equal(by_plan["repeat"], with_updates([0, 0, 0], 3))
    assert torch.equal(by_plan["suffix"], with_updates([2], 1))
    assert not torch.equal(by_plan["suffix"], by_plan["prefix"])


@pytest.mark.parametrize("make", [tiny_looped, tiny_hierarchical])
@torch.no_grad()
def test_a_frozen_step_is_added_again(make):
    # without a norm between loops, the state moves along a line
    fields = {} if make is tiny_looped else {"stack_norm": "none"}
    model = make(**fields)
    runner = PlannedLoops(model, 4)
    seen = []
    norm = runner.headless.backbone.norm
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    runner.states(batch(), [Plan("prefix", 1), Plan("prefix", 2), Plan("frozen", 2)])
    handle.remove()
    first, second, frozen = seen
    torch.testing.assert_close(frozen, second + 2 * (second - first))


@torch.no_grad()
def test_a_model_whose_loops_change_nothing_is_the_same_under_every_control():
    model = tiny_looped(num_prelude_layers=1)
    for layer in model.model.core_layers():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    first, *others = logits(model, [Plan(control, loops) for control in CONTROLS for loops in (1, 2, 3)])
    assert all(torch.equal(other, first) for other in others)


def published(name, folder):
    if name == "dory":
        test_dory.make_native().save_pretrained(folder)
        return convert(folder)
    if name == "huginn":
        return convert(write_checkpoint(folder, test_huginn.CONFIG, test_huginn.make_tensors(test_huginn.CONFIG)))
    converter, example = {"ouro": (ouro, test_ouro), "nanbeige": (nanbeige, test_nanbeige)}[name]
    return converted_model(converter, example.CONFIG, example.make_tensors(example.CONFIG))


@pytest.mark.parametrize("name", ["huginn", "ouro", "nanbeige", pytest.param("dory", marks=test_dory.needs_dory)])
@torch.no_grad()
def test_published_layouts(name, tmp_path):
    model = published(name, tmp_path)
    expected = model(**batch(), num_loops=4, use_cache=False).logits
    for read in logits(model, [Plan(control, 4) for control in CONTROLS], 4):
        assert torch.equal(read, expected)
    cut, other = logits(model, [Plan("prefix", 2), Plan("frozen", 2)], 4)
    assert torch.equal(cut, model(**batch(), num_loops=2, use_cache=False).logits)
    assert other.isfinite().all() and not torch.equal(other, cut)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="need a looped or hierarchical causal language model, got a feedback model"):
        PlannedLoops(make_composed("feedback", "looped"), 2)
    with pytest.raises(ValueError, match="causal language model, got a looped model"):
        PlannedLoops(tiny_looped().model, 2)
    compiled = tiny_looped()
    compiled.compile()
    with pytest.raises(ValueError, match="compiled"):
        PlannedLoops(compiled, 2)
