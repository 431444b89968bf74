"""Distillation: the loss and its gradient against the plain formula, and what it must not change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div, log_softmax
from transformers import LlamaForCausalLM

from hf_loop import LoopTrainer
from hf_loop.trainer import distillation
from hf_loop.trainer.distillation import distillation_loss

from .tiny import VOCAB_SIZE, logged, tiny_arguments, tiny_dataset, tiny_model


def plain_loss(student_logits, teacher_logits, labels, temperature, num_items_in_batch=None):
    """The formula in one piece."""
    scored = labels[:, 1:] != -100
    student, teacher = (
        log_softmax(logits[:, :-1][scored] / temperature, -1) for logits in (student_logits, teacher_logits)
    )
    divergence = kl_div(student, teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence / (scored.sum() if num_items_in_batch is None else num_items_in_batch)


def random_logits(batch_size=3, length=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(batch_size, length, VOCAB_SIZE, generator=generator, dtype=dtype) for _ in range(2)
    )
    labels = torch.randint(0, VOCAB_SIZE, (batch_size, length), generator=generator)
    ignored = torch.rand(batch_size, length, generator=generator) < 1 / 3
    return student.requires_grad_(), teacher, labels.masked_fill(ignored, -100)


def looped_and_teacher(seed=1, **config):
    """A looped model, and the plain model that it was made from."""
    model = tiny_model(seed, **config)
    teacher = LlamaForCausalLM(model.config.backbone_config)
    teacher.model.load_state_dict(model.model.backbone.state_dict())
    teacher.lm_head.load_state_dict(model.lm_head.state_dict())
    return model, teacher


def train(folder, model, teacher, resume=None, **fields):
    trainer = LoopTrainer(
        model=model,
        args=tiny_arguments(folder, **fields),
        train_dataset=tiny_dataset(),
        eval_dataset=tiny_dataset(num_rows=8, seed=1),
        teacher=teacher,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_same_weights(model, other, **tolerance):
    for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=25, deadline=None)
@given(temperature=st.floats(0.5, 8), chunk=st.integers(1, 30), num_items=st.one_of(st.none(), st.integers(1, 50)))
def test_loss_and_gradient_equal_the_plain_formula(temperature, chunk, num_items):
    student, teacher, labels = random_logits()
    expected = plain_loss(student, teacher, labels, temperature, num_items)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "TOKENS_PER_CHUNK", chunk)
        loss = distillation_loss(student, teacher, labels, temperature, num_items)
        (gradient,) = torch.autograd.grad(3 * loss, student)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, 3 * expected_gradient, rtol=1e-4, atol=1e-6)


def test_tokens_that_are_not_scored_get_no_gradient():
    student, teacher, labels = random_logits()
    labels[1] = -100
    distillation_loss(student, teacher, labels, 2.0).backward()
    scored = torch.zeros_like(labels, dtype=torch.bool)
    scored[:, :-1] = labels[:, 1:] != -100
    assert torch.equal(student.grad.abs().sum(-1) > 0, scored)


def test_half_precision_logits_are_compared_in_single_precision():
    student, teacher, labels = random_logits(dtype=torch.float32)
    half = student.detach().bfloat16().requires_grad_()
    loss = distillation_loss(half, teacher.bfloat16(), labels, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain_loss(half.float(), teacher.bfloat16().float(), labels, 2.0))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_logits_of_different_vocabularies_are_refused():
    student, teacher, labels = random_logits()
    with pytest.raises(ValueError, match=r"student's shape \[3, 7, 32\], got \[3, 7, 30\]"):
        distillation_loss(student, teacher[..., :30], labels, 2.0)


def test_weight_zero_is_training_without_distillation(tmp_path):
    one = train(tmp_path / "one", *looped_and_teacher(), distillation_weight=0.0)
    other = train(tmp_path / "other", looped_and_teacher()[0], None)
    assert logged(one, "loss") == logged(other, "loss")
    assert_same_weights(one.model, other.model, rtol=0, atol=0)


def test_training_loss_is_the_weighted_sum(tmp_path):
    batch = {name: tiny_dataset(num_rows=4)[name][:] for name in ("input_ids", "labels")}
    batch = {name: torch.stack(list(rows)) for name, rows in batch.items()}
    model, _ = looped_and_teacher()
    _, teacher = looped_and_teacher(seed=2)
    args = tiny_arguments(tmp_path, distillation_weight=0.25, distillation_temperature=3.0)
    trainer = LoopTrainer(model=model, args=args, train_dataset=tiny_dataset(), teacher=teacher)
    outputs = model(**batch)
    expected = 0.75 * outputs.loss + 0.25 * plain_loss(
        outputs.logits, teacher(batch["input_ids"]).logits, batch["labels"], 3.0
    )
    torch.testing.assert_close(trainer.compute_loss(model.train(), dict(batch)), expected)
    # evaluation keeps the loss on the labels
    assert torch.equal(trainer.compute_loss(model.eval(), dict(batch)), model(**batch).loss)


def test_a_student_that_equals_its_teacher_stays(tmp_path):
    model, teacher = looped_and_teacher(num_loops=1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fields = {"distillation_weight": 1.0, "loop_sampling": "fixed", "mean_loops": 1, "max_steps": 2}
    trainer = train(tmp_path, model, teacher, **fields)
    assert logged(trainer, "grad_norm") == [0.0, 0.0]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_distillation_alone_brings_looped_logits_towards_the_teacher(tmp_path):
    model, teacher = looped_and_teacher()
    with torch.no_grad():
        teacher.lm_head.weight *= 20  # a fresh model's distribution is all but flat
    fields = {"loop_sampling": "fixed", "mean_loops": 3, "max_steps": 48, "distillation_weight": 1.0}
    trainer = train(tmp_path, model, teacher, **fields)
    assert logged(trainer, "loss")[-1] < 0.5 * logged(trainer, "loss")[0]


@pytest.mark.parametrize("average_tokens_across_devices", [True, False])
def test_one_batch_of_eight_equals_eight_batches_of_one(tmp_path, average_tokens_across_devices):
    # labels are ignored differently often in every row, so that a mean of means would differ
    fields = {"distillation_weight": 0.7, "average_tokens_across_devices": average_tokens_across_devices}
    _, teacher = looped_and_teacher(seed=2)
    one = train(tmp_path / "one", tiny_model(), teacher, per_device_train_batch_size=8, **fields)
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    eight = train(tmp_path / "eight", tiny_model(), teacher, **accumulated, **fields)
    assert logged(one, "loss") == pytest.approx(logged(eight, "loss"), abs=2e-5)
    assert_same_weights(one.model, eight.model, rtol=1e-3, atol=1e-4)


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    fields = {"distillation_weight": 0.5, "save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path / "whole", *looped_and_teacher(), **fields)
    resume = str(tmp_path / "whole" / "checkpoint-2")
    resumed = train(tmp_path / "resumed", *looped_and_teacher(), resume=resume, **fields)
    assert logged(whole, "loss")[2:] == logged(resumed, "loss")[2:]
    assert_same_weights(whole.model, resumed.model, rtol=0, atol=0)


def test_the_teacher_is_frozen_and_no_part_of_the_student(tmp_path):
    model, teacher = looped_and_teacher()
    teacher.train()
    names, before = set(model.state_dict()), {name: w.clone() for name, w in teacher.state_dict().items()}
    trainer = train(tmp_path, model, teacher.bfloat16().float(), distillation_weight=0.5)
    assert not teacher.training
    assert all(weight.grad is None and not weight.requires_grad for weight in teacher.parameters())
    assert set(trainer.model.state_dict()) == names
    trained = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert trained == {id(weight) for weight in model.parameters()}
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name].bfloat16().float()), name


def test_a_teacher_in_half_precision_is_near_one_in_single_precision(tmp_path):
    _, teacher = looped_and_teacher(seed=2)
    single = train(tmp_path / "single", tiny_model(), teacher, distillation_weight=0.5)
    half = train(tmp_path / "half", tiny_model(), teacher.bfloat16(), distillation_weight=0.5)
    assert logged(half, "loss") == pytest.approx(logged(single, "loss"), abs=5e-3)


def test_a_missing_or_unfitting_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="distillation_weight=0.5 needs a teacher, got None"):
        train(tmp_path, tiny_model(), None, distillation_weight=0.5)
    _, teacher = looped_and_teacher()
    teacher.resize_token_embeddings(VOCAB_SIZE + 8)
    with pytest.raises(ValueError, match="teacher must have the model's vocabulary of 32 tokens, got 40"):
        train(tmp_path, tiny_model(), teacher, distillation_weight=0.5)
