"""The average of the weights, with the stock `Trainer`."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_loop import LoopTrainer, WeightAveraging
from hf_loop.trainer.ema import FILE_NAME

from .tiny import tiny_arguments, tiny_dataset, tiny_model
from .tiny_puzzles import puzzle_model, puzzle_rows


def train(folder, callback, model=None, resume=None, **arguments):
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=6,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **arguments},
    )
    model = puzzle_model() if model is None else model
    trainer = Trainer(model, args, train_dataset=puzzle_rows(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class Noted(WeightAveraging):
    """Keeps the weights after every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        super().on_step_end(args, state, control, model=model, **kwargs)
        self.seen.append(weights_of(model))


def test_it_is_the_average_of_its_definition_and_ends_in_the_model(tmp_path):
    callback = Noted(0.4)
    average = weights_of(puzzle_model())
    trainer = train(tmp_path, callback)
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4]
    for decay, weights in zip(decays, callback.seen, strict=True):
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name])
    assert callback.average is None
    assert [WeightAveraging(0.999).decay_at(step) for step in (1, 90, 10_000)] == [2 / 11, 0.91, 0.999]


def test_without_decay_it_is_the_last_weights(tmp_path):
    callback = Noted(0.0)
    trainer = train(tmp_path, callback)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.detach(), callback.seen[-1][name])


def test_the_average_is_lent_and_given_back():
    callback, model = WeightAveraging(0.9), puzzle_model()
    callback.average = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    before = weights_of(model)
    with callback.averaged(model), callback.averaged(model):
        assert not any(parameter.any() for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.raises(RuntimeError), callback.averaged(model):
        raise RuntimeError
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_resuming_repeats_the_run_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", WeightAveraging(0.9))
    train(tmp_path / "cut", WeightAveraging(0.9), save_strategy="steps", save_steps=2)
    saved = load_file(tmp_path / "cut" / "checkpoint-2" / FILE_NAME)
    assert saved.keys() == weights_of(whole.model).keys()
    moved = shutil.copytree(tmp_path / "cut" / "checkpoint-2", tmp_path / "moved")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    resumed = train(tmp_path / "cut", WeightAveraging(0.9), puzzle_model(seed=8), resume=True)
    elsewhere = train(tmp_path / "new", WeightAveraging(0.9, moved), puzzle_model(seed=8), resume=str(moved))
    for name, expected in weights_of(whole.model).items():
        assert torch.equal(weights_of(resumed.model)[name], expected)
        assert torch.equal(weights_of(elsewhere.model)[name], expected)
    # another run's average under the same name is not taken for it
    train(tmp_path / "other", WeightAveraging(0.5), save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match="none of the folders .* holds the averaged weights of the .* step 2"):
        train(tmp_path / "other", WeightAveraging(0.9), resume=str(moved))


def test_a_run_that_began_without_an_average_can_go_on_with_one(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 2}
    trainer = train(tmp_path, WeightAveraging(0.0), **args)
    trainer.pop_callback(WeightAveraging)
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text().replace("WeightAveraging", "Other"))
    resumed = train(tmp_path, WeightAveraging(0.9), resume=str(tmp_path / "checkpoint-2"), **args)
    assert resumed.state.global_step == 6


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1, got 1"):
        WeightAveraging(1)
    args = {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"}
    with pytest.raises(ValueError, match="load_best_model_at_end=True and weight averaging both decide"):
        train(tmp_path, WeightAveraging(0.9), **args)


def test_our_trainers_measure_the_average(tmp_path):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    rows = tiny_dataset(length=8)
    args = tiny_arguments(tmp_path, **fields)
    trainer = LoopTrainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows, callbacks=[WeightAveraging(0.5)])
    trainer.train()
    measured = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    for step, expected in measured.items():
        trainer.model.load_state_dict(load_file(tmp_path / f"checkpoint-{step}" / FILE_NAME), strict=False)
        assert trainer.evaluate()["eval_loss"] == expected
        # the weights themselves, which the checkpoint's model has, measure differently
        trainer.model.load_state_dict(load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors"), strict=False)
        assert trainer.evaluate()["eval_loss"] != expected
