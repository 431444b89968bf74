"""Deep supervision: against the loop written out, in parts, on two processes, resumed, and evaluated."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, TrainingArguments

from hf_loop import DeepSupervisionArguments, DeepSupervisionTrainer
from hf_loop.trainer.persistent_rows import fewest_segments

from .tiny import tiny_model
from .tiny_puzzles import CELLS, logged, puzzle_model, puzzle_rows, puzzle_trainer, train


ROOT = Path(__file__).parents[2]


def assert_equal_weights(first, second, **tolerance):
    for (name, weight), expected in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def written_out(model, num_steps, exploration=0.0, batch_size=8):
    """Algorithm 2 of 2506.21734 in plain torch: a step after every segment, halted rows replaced."""
    rows = puzzle_rows()
    inputs, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.0}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    is_free = [True] * batch_size
    held, states, steps, losses, halts = [None] * batch_size, [None] * batch_size, [0] * batch_size, [], []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / num_steps)
        for row in range(batch_size):
            if is_free[row]:
                held[row], states[row], steps[row] = step * batch_size + row, None, 0
        outputs = [
            model(inputs[held[row]][None], labels=labels[held[row]][None], carry=states[row])
            for row in range(batch_size)
        ]
        loss = torch.stack([output.loss for output in outputs]).mean()
        fewest = fewest_segments(42, step, slice(0, batch_size), exploration, model.config.max_segments)
        for row, output in enumerate(outputs):
            states[row], steps[row] = output.carry, steps[row] + 1
            says_so = model.halts(output.halt_logits)
            done = steps[row] >= model.config.max_segments or bool(says_so)
            is_free[row] = done and steps[row] >= fewest[row]
        halts.append(list(is_free))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, halts


@pytest.mark.parametrize(
    ("preset", "exploration", "fields"),
    [("trm", 0.0, {}), ("trm", 0.5, {}), ("hrm", 0.3, {}), ("urm", 0.0, {"halting": "none"})],
    ids=str,
)
def test_it_is_the_loop_written_out(preset, exploration, fields, tmp_path):
    expected = puzzle_model(preset, **fields).train()
    losses, halts = written_out(expected, 9, exploration)
    trainer = train(tmp_path, puzzle_model(preset, **fields), exploration=exploration)
    assert logged(trainer) == pytest.approx(losses, rel=1e-4)
    assert_equal_weights(trainer.model, expected, rtol=1e-3, atol=1e-4)
    # some rows halt before others, so that the refill is really asynchronous
    if fields:
        assert {tuple(step) for step in halts} == {(True,) * 8, (False,) * 8}
    else:
        assert any(any(step) and not all(step) for step in halts)


def test_exploration_is_a_function_of_seed_step_and_row():
    whole = fewest_segments(3, 7, slice(0, 4000), 0.1, 16)
    assert np.array_equal(whole[100:200], fewest_segments(3, 7, slice(100, 200), 0.1, 16))
    assert not np.array_equal(whole, fewest_segments(3, 8, slice(0, 4000), 0.1, 16))
    explores = whole > 0
    assert 0.08 < explores.mean() < 0.12
    assert set(whole[explores]) == set(range(2, 17))
    assert set(fewest_segments(0, 0, slice(0, 50), 1.0, 1)) == {1}
    assert not fewest_segments(0, 0, slice(0, 50), 0.0, 16).any()


def test_one_batch_of_eight_equals_four_of_two(tmp_path):
    whole = train(tmp_path, exploration=0.5)
    parts = train(tmp_path, exploration=0.5, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert logged(parts) == pytest.approx(logged(whole), rel=1e-4)
    assert logged(parts, "mean_segments") == pytest.approx(logged(whole, "mean_segments"))
    assert_equal_weights(parts.model, whole.model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_repeats_the_run_bit_for_bit(accumulation, tmp_path):
    options = {
        "exploration": 0.5,
        "ema_decay": 0.9,
        "use_adam_atan2": accumulation == 2,
        "per_device_train_batch_size": 8 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "cut", save_strategy="steps", save_steps=4, **options)
    for step in (8, 9):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}", ignore_errors=True)
    resumed = train(tmp_path / "cut", puzzle_model(seed=9), resume=True, **options)
    assert logged(resumed) == logged(whole)
    assert_equal_weights(resumed.model, whole.model, rtol=0, atol=0)
    moved = shutil.copytree(tmp_path / "cut" / "checkpoint-4", tmp_path / "elsewhere")
    resumed = train(tmp_path / "new", puzzle_model(seed=9), resume=str(moved), **options)
    assert_equal_weights(resumed.model, whole.model, rtol=0, atol=0)


def test_what_cannot_be_resumed_says_so(tmp_path):
    train(tmp_path, save_strategy="steps", save_steps=4)
    with pytest.raises(ValueError, match="new rows must be like those that are under way"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-4"), per_device_train_batch_size=4)
    (tmp_path / "checkpoint-4" / "deep_supervision_0.safetensors").unlink()
    with pytest.raises(ValueError, match="has no deep_supervision_0.safetensors: it was written by another trainer"):
        train(tmp_path, resume=str(tmp_path / "checkpoint-4"))


def test_two_processes_equal_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    worker = str(ROOT / "tests" / "trainer" / "deep_supervision_worker.py")
    done = subprocess.run(
        [*command, worker, str(tmp_path / "two")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    one = train(tmp_path / "one", exploration=0.5, ema_decay=0.9)
    assert two["losses"] == pytest.approx(logged(one), rel=1e-4)
    assert two["resumed"] == two["losses"]
    assert_equal_weights(
        AutoModelForMaskedLM.from_pretrained(tmp_path / "two" / "model"), one.model, rtol=1e-3, atol=1e-4
    )
    metrics = one.evaluate()
    for name in ("eval_exact_accuracy", "eval_cell_accuracy", "eval_mean_segments"):
        assert two["metrics"][name] == pytest.approx(metrics[name], abs=1e-6), name


def test_evaluation_runs_all_segments_or_halts(tmp_path):
    model = puzzle_model()
    rows = puzzle_rows().select(range(10))
    inputs, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    for options in ({}, {"eval_segments": 7}, {"eval_halts": True}):
        trainer = puzzle_trainer(tmp_path, model, per_device_eval_batch_size=4, **options)
        metrics = trainer.evaluate()
        model.eval()
        solution = model.solve(inputs, num_segments=options.get("eval_segments"), halt="eval_halts" in options)
        is_right = (solution.tokens == labels) | (labels == -100)
        assert metrics["eval_exact_accuracy"] == pytest.approx(is_right.all(1).float().mean().item())
        right_cells = ((solution.tokens == labels) & (labels != -100)).sum() / (labels != -100).sum()
        assert metrics["eval_cell_accuracy"] == pytest.approx(right_cells.item())
        assert metrics["eval_mean_segments"] == pytest.approx(solution.segments.float().mean().item())
        names = [name for name in metrics if name.endswith("accuracy")]
        assert names == ["eval_exact_accuracy", "eval_cell_accuracy"]
        assert metrics["eval_loss"] > 0
    assert 1 < metrics["eval_mean_segments"] < 3


def test_the_averaged_weights_are_evaluated_and_saved(tmp_path):
    trainer = puzzle_trainer(tmp_path, ema_decay=0.5, eval_strategy="steps", eval_steps=3)
    seen = []
    solve = type(trainer.model).solve
    trainer.model.solve = lambda *args, **kwargs: (
        seen.append(trainer.model.lm_head.weight.detach().clone()),
        solve(trainer.model, *args, **kwargs),
    )[1]
    weights = []
    step = trainer.training_step

    def note(model, *args):
        weights.append(model.lm_head.weight.detach().clone())
        return step(model, *args)

    trainer.training_step = note
    start = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    # before a step the model has the weights of the step before; the last ones are not seen
    average, averages = start, []
    for count, after in enumerate(weights[1:], 1):
        average = average.lerp(after, 1 - min(0.5, (1 + count) / (10 + count)))
        averages.append(average)
    evaluated = [seen[index] for index in (0, 2, 4)]
    torch.testing.assert_close(evaluated[0], averages[2])
    torch.testing.assert_close(evaluated[1], averages[5])
    torch.testing.assert_close(evaluated[2], trainer.model.lm_head.weight.detach())
    # training went on from the weights, not from their average
    plain = train(tmp_path)
    assert logged(trainer) == logged(plain)


def test_it_learns(tmp_path):
    # a cell's answer is the cell itself
    model = puzzle_model(cell_loss="softmax", hidden_size=32, num_loops=1, low_cycles=1, halting="none")
    trainer = puzzle_trainer(tmp_path, model, max_steps=150, logging_steps=50, learning_rate=3e-3)
    trainer.train_dataset = trainer.train_dataset.map(lambda row: {"labels": row["input_ids"]})
    trainer.eval_dataset = trainer.train_dataset.select(range(16))
    trainer.train()
    assert trainer.evaluate()["eval_exact_accuracy"] > 0.9


def test_checkpointing_and_low_precision(tmp_path):
    whole = train(tmp_path)
    checkpointed = train(tmp_path, activation_checkpointing=True)
    assert logged(checkpointed) == pytest.approx(logged(whole), rel=1e-5)
    low = train(tmp_path, bf16=True)
    assert all(np.isfinite(logged(low))) and logged(low) == pytest.approx(logged(whole), rel=0.1)


def test_bad_arguments_are_refused(tmp_path):
    for fields, message in (
        ({"exploration": 1.5}, "exploration must be between 0 and 1, got 1.5"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, got 1.0"),
        ({"eval_segments": 0}, "`eval_segments` must be an integer of at least 1, got 0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0, got 0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            DeepSupervisionArguments(output_dir=str(tmp_path), use_cpu=True, **fields)
    with pytest.raises(ValueError, match="args must be DeepSupervisionArguments"):
        DeepSupervisionTrainer(puzzle_model(), TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="model must be a puzzle model"):
        DeepSupervisionTrainer(tiny_model(), DeepSupervisionArguments(str(tmp_path), use_cpu=True))


def rows_of_two_sizes(padded: bool):
    """Every other puzzle has three cells of five; `padded` writes the rows out as a batch of one size has them."""
    rows = []
    for number, row in enumerate(puzzle_rows()):
        length = CELLS if number % 2 else 3
        missing = CELLS - length if padded else 0
        rows.append(
            {
                "input_ids": row["input_ids"][:length] + [0] * missing,
                "labels": row["labels"][:length] + [-100] * missing,
            }
        )
        if padded:
            rows[-1]["attention_mask"] = [1] * length + [0] * missing
    return Dataset.from_list(rows)


@pytest.mark.parametrize("preset", ["trm", "hrm"])
def test_puzzles_of_several_sizes(preset, tmp_path):
    losses, weights, metrics = [], [], []
    for padded, batch_size in ((False, 8), (True, 8), (False, 2)):
        trainer = puzzle_trainer(
            tmp_path,
            puzzle_model(preset),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            per_device_eval_batch_size=3,
            exploration=0.5,
        )
        trainer.train_dataset = rows_of_two_sizes(padded)
        trainer.eval_dataset = trainer.train_dataset.select(range(10))
        trainer.train()
        losses.append(logged(trainer))
        weights.append(trainer.model)
        metrics.append({name: trainer.evaluate()[name] for name in ("eval_exact_accuracy", "eval_cell_accuracy")})
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=1e-4)
        assert_equal_weights(weights[other], weights[0], rtol=1e-3, atol=1e-4)
        assert metrics[other] == metrics[0]
