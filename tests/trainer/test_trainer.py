"""LoopTrainer: what reaches the model, what is logged, and what must not change the result."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, Trainer, TrainingArguments

from hf_loop import LoopedForSequenceClassification, LoopTrainer

from .tiny import logged, tiny_arguments, tiny_dataset, tiny_model


def make_trainer(folder, model=None, **fields):
    return LoopTrainer(
        model=tiny_model(injection="add") if model is None else model,
        args=tiny_arguments(folder, **fields),
        train_dataset=tiny_dataset(),
        eval_dataset=tiny_dataset(num_rows=8, seed=1),
    )


def train(folder, model=None, resume=None, **fields):
    trainer = make_trainer(folder, model, **fields)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def record_depths(model):
    """Every call's `(training, num_loops, num_backprop_loops)`."""
    calls = []

    def record(module, args, kwargs):
        calls.append((module.training, kwargs.get("num_loops"), kwargs.get("num_backprop_loops")))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


def assert_same_weights(model, other, **tolerance):
    for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_micro_batches_of_a_step_share_its_depth(tmp_path):
    model = tiny_model()
    calls = record_depths(model)
    trainer = train(tmp_path, model, gradient_accumulation_steps=2, num_backprop_loops=2)
    depths = [trainer.depth_at(step) for step in range(6)]
    expected = [(True, depth.num_loops, depth.num_backprop_loops) for depth in depths for _ in range(2)]
    assert calls == expected
    assert len({depth.num_loops for depth in depths}) > 2


def test_mean_loops_is_logged_over_the_window(tmp_path):
    trainer = train(tmp_path, max_steps=7, logging_steps=3)
    depths = [trainer.depth_at(step).num_loops for step in range(7)]
    assert logged(trainer, "mean_loops") == [sum(depths[:3]) / 3, sum(depths[3:6]) / 3]
    assert all("loss" in entry for entry in trainer.state.log_history if "mean_loops" in entry)


def test_evaluation_runs_at_the_configured_depth(tmp_path):
    model = tiny_model()
    calls = record_depths(model)
    trainer = train(tmp_path, model, eval_strategy="steps", eval_steps=3)
    evaluations = [call for call in calls if not call[0]]
    assert evaluations
    assert set(evaluations) == {(False, None, None)}
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (8, 12, 32)


def test_the_drawn_depth_stays_out_of_the_config(tmp_path):
    trainer = train(tmp_path, save_strategy="steps", save_steps=2, loop_curriculum=0.75)
    assert trainer.model.config.num_loops == 3
    for step in (2, 4, 6):
        assert AutoConfig.from_pretrained(tmp_path / f"checkpoint-{step}").num_loops == 3


def test_depth_is_not_known_before_training(tmp_path):
    with pytest.raises(ValueError, match="known once train"):
        make_trainer(tmp_path).depth_at(0)


@pytest.mark.parametrize("fields", [{}, {"gradient_accumulation_steps": 2, "loop_curriculum": 0.75}])
def test_resumed_run_equals_uninterrupted_run(tmp_path, fields):
    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=2, **fields)
    # other random draws in between must not matter
    torch.manual_seed(123)
    resumed = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-2"), **fields)
    for name in ("loss", "mean_loops", "grad_norm", "learning_rate"):
        assert logged(whole, name)[2:] == logged(resumed, name)[2:], name
    assert_same_weights(whole.model, resumed.model, rtol=0, atol=0)


def test_one_batch_of_eight_equals_eight_batches_of_one(tmp_path):
    one = train(tmp_path / "one", per_device_train_batch_size=8)
    eight = train(tmp_path / "eight", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert logged(one, "mean_loops") == logged(eight, "mean_loops")
    assert logged(one, "loss") == pytest.approx(logged(eight, "loss"), abs=2e-5)
    assert_same_weights(one.model, eight.model, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_changes_nothing(tmp_path):
    plain = train(tmp_path / "plain", num_backprop_loops=2)
    checkpointed = train(tmp_path / "checkpointed", num_backprop_loops=2, activation_checkpointing=True)
    assert checkpointed.model.is_activation_checkpointing
    assert logged(plain, "loss") == logged(checkpointed, "loss")
    assert logged(plain, "grad_norm") == logged(checkpointed, "grad_norm")
    assert_same_weights(plain.model, checkpointed.model, rtol=0, atol=0)


@pytest.mark.parametrize("num_backprop_loops", [1, 2, 3])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_truncated_back_propagation(tmp_path, num_backprop_loops, activation_checkpointing):
    # the trainer's gradients at a fixed depth of 3, against autograd's with the state detached before loop 3 - k
    gradients = {}
    model, reference = tiny_model(injection="add"), tiny_model(injection="add")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    args = tiny_arguments(
        tmp_path,
        loop_sampling="fixed",
        num_backprop_loops=num_backprop_loops,
        activation_checkpointing=activation_checkpointing,
        max_steps=1,
        max_grad_norm=0.0,
    )
    trainer = LoopTrainer(model=model, args=args, train_dataset=tiny_dataset(num_rows=4), optimizers=(optimizer, None))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()

    reference(**batch).loss.backward()
    full = {name: parameter.grad for name, parameter in reference.named_parameters()}
    reference.zero_grad()
    add, loop = reference.model.injection.forward, iter(range(3))
    reference.model.injection.forward = lambda state, encoded: add(
        state.detach() if next(loop) == 3 - num_backprop_loops and num_backprop_loops < 3 else state, encoded
    )
    reference(**batch).loss.backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
    up = "model.backbone.layers.0.mlp.up_proj.weight"
    assert torch.allclose(gradients[up], full[up], rtol=1e-3) == (num_backprop_loops == 3)


def test_bf16(tmp_path):
    single, half = train(tmp_path / "single"), train(tmp_path / "half", bf16=True)
    assert logged(half, "loss")[-1] < logged(half, "loss")[0]
    assert logged(half, "loss") == pytest.approx(logged(single, "loss"), abs=0.05)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("sampling", [{"loop_sampling": "fixed"}, {"mean_loops": 1}])
def test_reentrant_checkpointing_is_refused(tmp_path, sampling):
    with pytest.raises(ValueError, match="gradient_checkpointing_kwargs .* got use_reentrant=True"):
        make_trainer(
            tmp_path,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
            **sampling,
        )


def test_reentrant_checkpointing_is_allowed_for_one_loop(tmp_path):
    kwargs = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    train(tmp_path, tiny_model(num_loops=1), loop_sampling="fixed", max_steps=1, **kwargs)


def test_other_arguments_are_refused(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="args must be LoopTrainingArguments, got TrainingArguments"):
        LoopTrainer(model=tiny_model(), args=args)


def test_label_smoothing_scores_the_next_token(tmp_path):
    # on rows that count up, scoring a token against itself and against its successor give different losses
    def first_loss(epsilon):
        return logged(train(tmp_path / str(epsilon), max_steps=1, label_smoothing_factor=epsilon), "loss")[0]

    assert first_loss(1e-6) == pytest.approx(first_loss(0.0), abs=1e-4)


def test_classification_heads_train_at_sampled_depth(tmp_path):
    config = tiny_model().config
    config.num_labels = 3
    torch.manual_seed(0)
    model = LoopedForSequenceClassification(config)
    rows = tiny_dataset().map(lambda row: {"labels": int(row["input_ids"][0]) % 3})
    depths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: depths.append(kwargs["num_loops"]), with_kwargs=True
    )
    trainer = LoopTrainer(model=model, args=tiny_arguments(tmp_path), train_dataset=rows)
    trainer.train()
    assert depths == [trainer.depth_at(step).num_loops for step in range(6)]


def test_stock_trainer_at_the_configured_depth(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path / "stock"),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    stock = Trainer(model=tiny_model(injection="add"), args=args, train_dataset=tiny_dataset())
    stock.train()
    fixed = train(tmp_path / "fixed", loop_sampling="fixed")
    assert logged(stock, "loss") == pytest.approx(logged(fixed, "loss"), abs=1e-6)
    assert logged(stock, "loss")[-1] < logged(stock, "loss")[0] - 0.1


def test_a_compiled_model_has_the_same_graphs_at_every_depth(tmp_path):
    fields = {"num_backprop_loops": 2, "gradient_checkpointing": True, "max_steps": 5}
    expected = train(tmp_path / "plain", **fields)
    torch._dynamo.reset()
    counters.clear()
    trainer = train(tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager", **fields)
    assert len({trainer.depth_at(step).num_loops for step in range(5)}) > 2
    # the core with gradient and without, and the final norm: there is no prelude
    assert counters["stats"]["unique_graphs"] == 3
    assert_same_weights(trainer.model, expected.model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"])
