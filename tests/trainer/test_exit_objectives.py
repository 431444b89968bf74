"""Training for exits: what reaches the model, what is trained, what is logged, and what is refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hf_loop import ExitObjective, LoopedForSequenceClassification, LoopTrainer

from ..models.hierarchical_variants import tiny_hierarchical
from .test_trainer import make_trainer, train
from .tiny import logged, tiny_arguments, tiny_dataset, tiny_model


def gated(**config):
    return tiny_model(exit_gate=True, **config)


def record_objectives(model):
    """Every call's `(training, exit_objective)`."""
    calls = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((module.training, kwargs.get("exit_objective"))), with_kwargs=True
    )
    return calls


def test_the_objective_of_the_arguments_reaches_the_steps_and_not_the_evaluation(tmp_path):
    model = gated()
    calls = record_objectives(model)
    fields = {"exit_objective": "batch_average", "exit_entropy_weight": 0.2}
    train(tmp_path, model, eval_strategy="steps", eval_steps=3, **fields)
    objective = ExitObjective("batch_average", entropy_weight=0.2)
    assert {given for is_training, given in calls if is_training} == {objective}
    assert {given for is_training, given in calls if not is_training} == {None}


@pytest.mark.parametrize("kind", ["expected", "batch_average", "distillation"])
def test_the_loss_falls(kind, tmp_path):
    losses = logged(train(tmp_path, gated(), exit_objective=kind), "loss")
    assert losses[-1] < losses[0] - 0.1


def test_the_stock_trainer_takes_an_objective_from_the_data(tmp_path):
    def collate(rows):
        columns = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}
        return {**columns, "exit_objective": "expected"}

    args = TrainingArguments(
        str(tmp_path / "stock"), max_steps=3, per_device_train_batch_size=4, logging_steps=1, save_strategy="no",
        learning_rate=1e-2, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    stock = Trainer(gated(), args, train_dataset=tiny_dataset(), data_collator=collate)
    stock.train()
    ours = train(tmp_path, gated(), exit_objective="expected", loop_sampling="fixed", max_steps=3)
    # the schedule of the learning rate depends on the length of the run alone
    assert logged(stock, "loss") == pytest.approx(logged(ours, "loss"), abs=1e-6)


def test_the_gain_stage_trains_the_gate_alone(tmp_path):
    model, before = gated(loop_norm="final"), gated(loop_norm="final")
    order = {"train_sampling_strategy": "sequential"}
    trainer = train(tmp_path, model, exit_objective="gain", weight_decay=0.1, **order)
    changed = [
        name
        for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(weight, old)
    ]
    assert changed == ["model.exit_gate.weight", "model.exit_gate.bias"]
    inputs = {"input_ids": torch.ones((4, 12), dtype=torch.long), "exit_objective": "gain"}
    labels = [tiny_dataset()["labels"][4 * step : 4 * step + 4] for step in range(6)]
    depths = [trainer.depth_at(step).num_loops for step in range(6)]
    count = sum(
        model.floating_point_ops({**inputs, "labels": label, "num_loops": num_loops})
        for label, num_loops in zip(labels, depths)
    )
    assert trainer.state.total_flos == count


def test_norms_of_the_state_are_logged_over_the_real_tokens(tmp_path):
    def collate(rows):
        columns = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}
        return {**columns, "attention_mask": (torch.arange(12) < 9).long().expand(4, 12)}

    model = tiny_model()
    args = tiny_arguments(tmp_path, max_steps=1, loop_sampling="fixed", mean_loops=5, learning_rate=0.0)
    trainer = LoopTrainer(model, args, train_dataset=tiny_dataset(), data_collator=collate)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    states = model(**batch, num_loops=5, output_loop_states=True).loop_states
    entry = trainer.state.log_history[0]
    assert [name for name in entry if "norm" in name] == ["grad_norm", "state_norm_1", "state_norm_2", "state_norm_4"]
    for loop in (1, 2, 4):
        expected = states[loop - 1][:, :9].norm(dim=-1).mean().item()
        assert entry[f"state_norm_{loop}"] == pytest.approx(expected, rel=1e-4)


def test_a_gate_that_is_not_trained_is_looked_for_by_ddp(tmp_path):
    for fields, expected in (
        ({}, True),
        ({"exit_objective": "distillation"}, True),
        ({"exit_objective": "gain"}, None),
    ):
        trainer = make_trainer(tmp_path, gated(), **fields)
        assert trainer.args.ddp_find_unused_parameters is expected
    assert make_trainer(tmp_path, tiny_model()).args.ddp_find_unused_parameters is None


def test_an_adapter_learns_by_an_objective_but_is_no_gate(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    train(tmp_path, get_peft_model(gated(), lora), exit_objective="expected", max_steps=2)
    with pytest.raises(ValueError, match="exit_objective=gain trains the exit gate, .* merge the adapter"):
        make_trainer(tmp_path, get_peft_model(gated(), lora), exit_objective="gain")


def test_models_and_trainers_without_this_loss_are_refused(tmp_path):
    with pytest.raises(ValueError, match="exit_objective=expected needs a model with exit_gate=True, got False"):
        make_trainer(tmp_path, tiny_model(), exit_objective="expected")
    for model in (tiny_hierarchical(), LoopedForSequenceClassification(gated().config)):
        with pytest.raises(ValueError, match="exit_objective=distillation is for looped causal language models"):
            make_trainer(tmp_path, model, exit_objective="distillation")


def test_trainers_with_a_loss_of_their_own_are_refused(tmp_path):
    preferences = pytest.importorskip("tests.trainer.test_preferences")
    model = preferences.policy(num_loops=3, exit_gate=True)
    args = preferences.LoopDPOConfig(output_dir=str(tmp_path / "out"), exit_objective="expected", **preferences.COMMON)
    with pytest.raises(
        ValueError, match="exit_objective=expected is for .* got a LoopedForCausalLM and LoopDPOTrainer"
    ):
        preferences.LoopDPOTrainer(
            model,
            ref_model=preferences.policy(num_loops=3),
            args=args,
            train_dataset=preferences.PAIRS,
            processing_class=preferences.byte_tokenizer(),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exit_objective": "entropy"}, "exit_objective must be one of none, expected, .* got 'entropy'"),
        ({"exit_objective": "expected", "exit_entropy_weight": -1}, "exit_entropy_weight .* got -1"),
        ({"exit_objective": "gain", "exit_gain_slope": "steep"}, "exit_gain_slope .* got 'steep'"),
        ({"exit_entropy_weight": 0.1}, "exit_entropy_weight is for exit_objective=expected or batch_average, got 0.1"),
        ({"exit_objective": "expected", "exit_gain_threshold": 0.1}, "exit_gain_threshold is for exit_objective=gain"),
        ({"exit_objective": "gain", "label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0 with"),
        ({"exit_objective": "gain", "distillation_weight": 0.5}, "distillation_weight must be 0 with"),
    ],
)
def test_bad_arguments_are_named(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **fields)
