"""The cost of a step is parameters times their calls: what hooks on every module count, in every family."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_loop.models import exit_losses
from hf_loop.models.cost import floating_point_ops, forward_parameters
from hf_loop.models.modeling_feedback import FeedbackEmbedding

from .composed_variants import PAIRS, make_composed
from .feedback_variants import VARIANTS as FEEDBACK
from .feedback_variants import make_feedback
from .hierarchical_variants import VARIANTS as HIERARCHICAL
from .hierarchical_variants import tiny_hierarchical
from .loop_lora_models import tiny_loop_lora
from .looped_variants import VARIANTS as LOOPED
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .puzzle_variants import VARIANTS as PUZZLE
from .puzzle_variants import puzzles, tiny_puzzle_model
from .sleep_variants import make_sleep
from .tiny_backbones import tiny_backbone


SLEEP = {
    "inserted": {"fast_weight_layers": [0, 2]},
    "middle layers": {"fast_weight_layers": [0, 1, 3], "sleep_layers": [1, 3]},
    "first layers": {"fast_weight_layers": [0, 3], "sleep_layers": [0, 2]},
    "truncated": {"fast_weight_layers": [1], "num_backprop_windows": 1},
    "labelled windows once": {"fast_weight_layers": [1], "sleep_over_labels": False},
}


def counted(model: nn.Module, **inputs) -> tuple[int, int]:
    """Parameters times the tokens that hooks see them applied to, and those of them that gradient reaches."""
    applied = trained = 0

    def count(module, args, output):
        nonlocal applied
        states = args[0]
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        # norms of heads see [B, T, H, D], the halting head [B, D], a convolution [B, D, T]
        rows = len(states) * states.shape[-1] if isinstance(module, nn.Conv1d) else states.shape[:-1][:2].numel()
        work = own * rows
        applied += work
        result = output[0] if isinstance(output, tuple) else output
        if result.requires_grad:

            def reach(gradient):
                nonlocal trained
                trained += work

            result.register_hook(reach)

    for module in model.modules():
        # initial states are no maps of tokens
        is_map = not isinstance(module, nn.Embedding | PreTrainedModel | FeedbackEmbedding)
        if is_map and next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(count)
    model(**{"labels": inputs["input_ids"], **inputs}).loss.backward()
    return applied, trained


def operations(counts: tuple[int, int]) -> int:
    return 2 * counts[0] + 4 * counts[1]


@pytest.mark.parametrize("depth", [{}, {"num_loops": 1}, {"num_loops": 5}, {"num_loops": 4, "num_backprop_loops": 2}])
@pytest.mark.parametrize("variant", LOOPED)
def test_looped(variant, depth):
    model = tiny_looped(**LOOPED[variant]).train()
    inputs = {"input_ids": random_ids(2, 7), **depth}
    expected = operations(counted(model, use_cache=False, **inputs))
    assert floating_point_ops(model, inputs) == model.floating_point_ops(inputs) == expected


@pytest.mark.parametrize("depth", [{}, {"num_loops": 1}, {"num_loops": 4, "num_backprop_loops": 2}])
@pytest.mark.parametrize("kind", ["expected", "gain", "distillation"])
@pytest.mark.parametrize("variant", LOOPED)
def test_objectives_of_exits(variant, kind, depth, monkeypatch):
    # the backward pass computes logits again, which is not counted
    monkeypatch.setattr(exit_losses, "checkpoint", lambda function, *tensors, **options: function(*tensors))
    model = tiny_looped(**LOOPED[variant] | {"exit_gate": True}).train()
    inputs = {"input_ids": random_ids(2, 7), "exit_objective": exit_losses.ExitObjective(kind), **depth}
    labels = inputs["input_ids"].masked_fill(torch.arange(7) < 3, -100)
    expected = operations(counted(model, labels=labels, **inputs))
    assert model.floating_point_ops({**inputs, "labels": labels}) == expected


@pytest.mark.parametrize("depth", [{}, {"num_loops": 1}, {"num_loops": 4, "num_backprop_loops": 2}])
@pytest.mark.parametrize("variant", HIERARCHICAL)
def test_hierarchical(variant, depth):
    model = tiny_hierarchical(**HIERARCHICAL[variant]).train()
    inputs = {"input_ids": random_ids(2, 7), **depth}
    assert model.floating_point_ops(inputs) == operations(counted(model, use_cache=False, **inputs))


@pytest.mark.parametrize("options", [{}, {"num_segments": 3}, {"num_loops": 1}])
@pytest.mark.parametrize("variant", PUZZLE)
def test_puzzle(variant, options):
    model = tiny_puzzle_model(variant).train()
    inputs = {"input_ids": puzzles(), **options}
    expected = operations(counted(model, **inputs))
    assert model.floating_point_ops({**inputs, "labels": inputs["input_ids"]}) == expected


@pytest.mark.parametrize("length", [3, 8, 14])
@pytest.mark.parametrize("variant", FEEDBACK)
def test_feedback(variant, length):
    model = make_feedback(**FEEDBACK[variant]).train()
    inputs = {"input_ids": random_ids(2, length)}
    applied, trained = counted(model, use_cache=False, **inputs)
    assert forward_parameters(model, length) * 2 == applied
    # what nobody reads of the last block's memory gets no gradient
    assert operations((applied, trained)) <= model.floating_point_ops(inputs) <= 6 * applied


@pytest.mark.parametrize("options", [{}, {"num_sleep_passes": 1}, {"num_sleep_passes": 3}])
@pytest.mark.parametrize("variant", SLEEP)
def test_sleep(variant, options):
    model = make_sleep(**SLEEP[variant]).train()
    inputs = {"input_ids": random_ids(2, 14), **options}
    applied, trained = counted(model, **inputs)
    count = model.floating_point_ops({**inputs, "labels": inputs["input_ids"]})
    if variant not in ("truncated", "labelled windows once"):
        assert forward_parameters(model, 14, **options) * 2 == applied
    # the last pass writes fast weights only: what comes after its last writer gets no gradient
    assert operations((applied, trained)) <= count <= 6 * applied
    if variant == "truncated" and options == {"num_sleep_passes": 3}:
        assert count < 6 * applied


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_composed(outer, inner):
    model = make_composed(outer, inner).train()
    inputs = {"input_ids": random_ids(2, 11), "num_loops": 3}
    applied, _ = counted(model, use_cache=False, **inputs)
    assert forward_parameters(model, 11, num_loops=3) * 2 == applied


@pytest.mark.parametrize("make", [make_feedback, make_sleep])
def test_a_padded_batch_costs_what_its_rows_cost(make):
    model = make()
    lengths = [14, 3, 9]
    mask = torch.arange(14) < torch.tensor(lengths)[:, None]
    body = model.model
    whole = body.floating_point_ops({"input_ids": random_ids(3, 14), "attention_mask": mask.long()})
    alone = sum(body.floating_point_ops({"input_ids": random_ids(1, length)}) for length in lengths)
    padding = 6 * 64 * (3 * 14 - sum(lengths))  # only the final norm sees it
    assert whole == alone + padding


def test_a_loop_with_an_update_costs_it_once():
    model = tiny_loop_lora(num_loops=2, loop_lora_vectors=False)
    update = sum(parameter[0].numel() for parameter in model.model.loop_lora.parameters())
    plain = tiny_looped(num_loops=2)
    for num_loops in (1, 3):
        with_updates = forward_parameters(model, num_loops=num_loops)
        assert with_updates == forward_parameters(plain, num_loops=num_loops) + num_loops * update


def test_one_loop_costs_what_the_base_model_costs():
    base = AutoModelForCausalLM.from_config(tiny_backbone("llama"))
    assert forward_parameters(tiny_looped(num_loops=1)) == base.num_parameters(exclude_embeddings=True)


def test_of_routed_experts_only_the_picked_ones_cost():
    config = tiny_backbone("mixtral")
    experts = 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
    base = AutoModelForCausalLM.from_config(config).num_parameters(exclude_embeddings=True)
    assert forward_parameters(tiny_looped("mixtral", num_loops=1)) == base - 2 * experts  # two of four are picked


def test_without_tokens_there_is_no_count():
    assert tiny_looped().floating_point_ops({"labels": torch.ones(2, 3)}) == 0
