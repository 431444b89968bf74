"""Which stack calls of the puzzle model carry gradient, against back-propagation through its definition."""

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from hf_loop.models.schedules import HierarchicalDepth

from .puzzle_reference import encode, segment, weights_of
from .puzzle_variants import puzzles, tiny_puzzle_model


PUZZLES, ANSWERS = puzzles(), puzzles(seed=1)
SCHEDULE = {"num_loops": 3, "low_cycles": 2, "cell_loss": "softmax", "halting": "none"}
# (slow cycle, call in it); with two states the last call, 2, is the slow stack's
CARRYING = {
    "full": (None, lambda cycle, call: True),
    "last_cycle": (None, lambda cycle, call: cycle == 2),
    "one_step": (None, lambda cycle, call: cycle == 2 and call >= 1),
    "last_k": ([2], lambda cycle, call: call >= (0 if cycle == 2 else 1)),
}


def gradients(model):
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return named


def trained(model, **options):
    model(PUZZLES, labels=ANSWERS, **options).loss.backward()
    return gradients(model)


def reference(model, carries, num_segments=1):
    weights, states = weights_of(model), None
    encoded = encode(weights, PUZZLES)
    for _ in range(num_segments):
        logits, _, states = segment(weights, encoded, states, carries)
    # our loss is in single precision
    functional.cross_entropy(logits.flatten(0, 1).float(), ANSWERS.flatten()).backward()
    return gradients(model)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, atol=1e-6, rtol=1e-3, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("num_segments", [1, 3])
@pytest.mark.parametrize("gradient", CARRYING)
@pytest.mark.parametrize("preset", ["hrm", "trm", "urm"])
def test_gradient_passes_the_calls_it_should_and_no_other(preset, gradient, num_segments):
    counts, carries = CARRYING[gradient]
    model = tiny_puzzle_model(preset, gradient=gradient, backprop_low_cycles=counts, **SCHEDULE).double()
    actual = trained(model, num_segments=num_segments)
    assert_same(actual, reference(model, carries, num_segments))
    if gradient != "full":
        everything = reference(model, CARRYING["full"][1], num_segments)
        name = "model.backbone.layers.0.mlp.down_proj.weight"
        assert not torch.allclose(actual[name], everything[name], rtol=1e-2, atol=1e-7)


def test_one_step_of_hrm_touches_one_call_of_each_stack(monkeypatch):
    model = tiny_puzzle_model("hrm", halting="none")
    calls = []
    run_stack = HierarchicalDepth.run_stack

    def note(depth, state, run_call, *place):
        state = run_stack(depth, state, run_call, *place)
        calls.append((depth.stack_calls(*place)[0].layer, state.requires_grad))
        return state

    monkeypatch.setattr(HierarchicalDepth, "run_stack", note)
    trained(model)
    assert calls == [(0, False), (0, False), (2, False), (0, False), (0, True), (2, True)]


def test_the_carry_has_no_gradient():
    model = tiny_puzzle_model("trm")
    outputs = model(PUZZLES, labels=ANSWERS)
    assert not any(tensor.requires_grad for tensor in (outputs.carry.high, outputs.carry.low, outputs.carry.steps))


@pytest.mark.parametrize("preset", ["hrm", "trm", "trm, mlp", "urm", "plain"])
def test_every_parameter_gets_gradient(preset):
    model = tiny_puzzle_model(preset).train()
    model(PUZZLES, labels=ANSWERS).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("preset", ["hrm", "trm, mlp", "urm"])
def test_checkpointing_changes_no_gradient(preset):
    model = tiny_puzzle_model(preset).train()
    plain = trained(model)
    model.gradient_checkpointing_enable()
    assert_same(trained(model), plain)


def test_truncation_by_argument_cuts_whole_cycles():
    model = tiny_puzzle_model("trm", gradient="full", **SCHEDULE).double()
    assert_same(trained(model, num_backprop_loops=1), reference(model, CARRYING["last_cycle"][1]))


def losses(folder, **arguments):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=3, learning_rate=1e-3, logging_steps=1, save_strategy="no", use_cpu=True,
        train_sampling_strategy="sequential", disable_tqdm=True, **arguments,
    )  # fmt: skip
    labels = puzzles(24, seed=1)
    labels[:4, :5] = -100
    rows = Dataset.from_dict({"input_ids": puzzles(24).tolist(), "labels": labels.tolist()})
    trainer = Trainer(tiny_puzzle_model("trm"), args, train_dataset=rows, eval_dataset=rows.select(range(8)))
    trainer.train()
    metrics = trainer.evaluate()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], metrics["eval_loss"]


def test_the_stock_trainer_runs_it(tmp_path):
    whole, evaluated = losses(tmp_path, per_device_train_batch_size=8)
    parts, evaluated_parts = losses(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert len(whole) == 3
    # rows of few labels weigh less, in whole batches as in parts
    assert parts == pytest.approx(whole, rel=1e-4)
    assert evaluated_parts == pytest.approx(evaluated, rel=1e-3)
