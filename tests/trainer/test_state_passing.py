"""Random state passing in the stock `Trainer`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, Trainer, TrainerCallback, TrainingArguments

from hf_loop import FeedbackConfig, FeedbackForCausalLM, LoopedConfig, LoopTrainer, LoopTrainingArguments
from hf_loop.models import modeling_feedback
from hf_loop.trainer import RandomStatePassing
from hf_loop.trainer.state_passing import FILE_NAME, find_feedback_model, passes_state

from .tiny import tiny_model


ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 20


def feedback_model(**config):
    torch.manual_seed(0)
    backbone = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
    )
    fields = {"block_size": 4, "num_memory_segments": 0, "feedback_length": 2, "random_state_passing": 0.8, **config}
    return FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone, **fields))


def rows(lengths=(8, 12, 12)):
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1, VOCAB_SIZE, (lengths[i // 8 % len(lengths)],), generator=generator) for i in range(64)]
    return Dataset.from_dict({"input_ids": tokens, "labels": tokens})


def train(folder, model=None, callback=None, data=None, resume=None, **arguments):
    """Eight steps of eight rows, in order."""
    fields = {"per_device_train_batch_size": 8, "max_steps": 8, "save_strategy": "no", **arguments}
    args = TrainingArguments(
        output_dir=str(folder),
        learning_rate=1e-2,
        logging_steps=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
        **fields,
    )
    model = feedback_model() if model is None else model
    callbacks = [RandomStatePassing() if callback is None else callback]
    trainer = Trainer(model, args, train_dataset=rows() if data is None else data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_equal_weights(first, second, **tolerance):
    for (name, weight), expected in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


class TracingCallback(RandomStatePassing):
    """Also watches the model, after its own hooks are in place."""

    def __init__(self, spy):
        super().__init__()
        self.spy = spy

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, model=model, **kwargs)

        def note(module, args, kwargs, outputs):
            self.spy.append((kwargs.get("initial_feedback"), outputs.feedback.detach()))

        find_feedback_model(model).register_forward_hook(note, with_kwargs=True)


def test_a_step_starts_from_the_first_row_of_the_step_before(tmp_path):
    model = feedback_model()
    trainer = train(tmp_path, model, TracingCallback(spy := []), seed=3)
    assert len(spy) == 8
    some = {True: 0, False: 0}
    for step, (started, ended) in enumerate(spy):
        passes = step > 0 and passes_state(3, step, 0.8)
        some[passes] += 1
        assert ended.shape == (8, 2, 2, 16)
        if passes:
            torch.testing.assert_close(started, spy[step - 1][1][0], rtol=0, atol=0)
            assert not started.requires_grad
        else:
            assert started is None
    assert min(some.values()) >= 1
    assert len(losses(trainer)) == 8


def test_the_draw_depends_on_seed_and_step_alone():
    draws = [passes_state(7, step, 0.8) for step in range(5000)]
    assert draws == [passes_state(7, step, 0.8) for step in range(5000)]
    assert 0.78 < sum(draws) / 5000 < 0.82
    assert draws != [passes_state(8, step, 0.8) for step in range(5000)]
    assert not any(passes_state(7, step, 0.0) for step in range(100))
    assert all(passes_state(7, step, 1.0) for step in range(100))


def test_it_makes_a_difference_to_training(tmp_path):
    passed = train(tmp_path)
    never = train(tmp_path, feedback_model(random_state_passing=0.0))
    assert losses(passed)[0] == losses(never)[0]
    assert losses(passed)[1:] != losses(never)[1:]


@pytest.mark.parametrize("lengths", [(8, 12, 12), (2, 12)], ids=["whole blocks", "a step of short rows"])
def test_one_batch_of_eight_equals_eight_of_one(tmp_path, lengths):
    data = rows(lengths)
    whole = train(tmp_path, data=data)
    parts = train(tmp_path, data=data, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert_equal_weights(parts.model, whole.model, rtol=1e-3, atol=5e-4)


def test_checkpointing_changes_nothing(tmp_path):
    whole = train(tmp_path)
    checkpointed = train(
        tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}
    )
    assert losses(checkpointed) == pytest.approx(losses(whole), rel=1e-6)


def test_what_is_generated_within_a_step_is_no_part_of_it(tmp_path):
    class Sampling(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
            self.sampled = model.generate(inputs["input_ids"][:1, :6], **options)
            self.expected = model.generate(inputs["input_ids"][:1, :6], use_cache=False, **options)
            return super().compute_loss(model, inputs, *args, **kwargs)

    losses = {}
    for trainer_class in (Trainer, Sampling):
        model = feedback_model()
        args = TrainingArguments(str(tmp_path), max_steps=4, logging_steps=1, learning_rate=1e-2, use_cpu=True)
        trainer = trainer_class(model, args, train_dataset=rows((12,)), callbacks=[RandomStatePassing()])
        trainer.train()
        losses[trainer_class] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[Sampling] == losses[Trainer] and len(losses[Trainer]) == 4
    assert torch.equal(trainer.sampled, trainer.expected)


@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "lora"])
def test_resuming_repeats_the_run_bit_for_bit(tmp_path, wrap):
    def model():
        lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=True)
        torch.manual_seed(5)
        return get_peft_model(feedback_model(), lora) if wrap else feedback_model()

    whole = train(tmp_path / "whole", model())
    cut = train(tmp_path / "cut", model(), save_strategy="steps", save_steps=3)
    assert losses(cut) == losses(whole)
    assert (tmp_path / "cut" / "checkpoint-3" / FILE_NAME).is_file()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-8")
    # a new model, a new callback: the rest comes from the folder
    resumed = train(tmp_path / "cut", model(), resume=True)
    assert losses(resumed) == losses(whole)
    assert_equal_weights(resumed.model, whole.model, rtol=0, atol=0)


def test_a_checkpoint_that_was_moved(tmp_path):
    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=4)
    moved = shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"holds the feedback memory of the checkpoint of step 4; .*nt=\.\.\."):
        train(tmp_path / "new", resume=str(moved))
    resumed = train(tmp_path / "new", callback=RandomStatePassing(checkpoint=moved), resume=str(moved))
    assert losses(resumed) == losses(whole)
    # another run's memory under the same name is not taken for it
    other = tmp_path / "other"
    train(other, feedback_model(initializer_range=0.1), save_strategy="steps", save_steps=4)
    with pytest.raises(ValueError, match="none of the folders .* holds the feedback memory"):
        train(other, resume=str(moved))
    (moved / FILE_NAME).unlink()
    with pytest.raises(ValueError, match="none of the folders .* holds the feedback memory"):
        train(tmp_path / "new", callback=RandomStatePassing(checkpoint=moved), resume=str(moved))


def test_a_run_that_began_without_state_passing_can_go_on_with_it(tmp_path):
    train(tmp_path, callback=TrainerCallback(), save_strategy="steps", save_steps=4)
    shutil.rmtree(tmp_path / "checkpoint-8")
    resumed = train(tmp_path, resume=True, save_strategy="steps", save_steps=4)
    assert len(losses(resumed)) == 8


def test_evaluation_and_later_calls_start_from_the_learned_memory(tmp_path):
    model = feedback_model(random_state_passing=1.0)
    ids = torch.tensor([row for row in rows()["input_ids"] if len(row) == 12])

    class Evaluates(RandomStatePassing):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            super().on_step_begin(args, state, control, **kwargs)
            with torch.no_grad():
                model.eval()
                during.append(model(ids, use_cache=False).logits)
                inner = find_feedback_model(model)
                hooks = inner._forward_pre_hooks, inner._forward_hooks
                inner._forward_pre_hooks, inner._forward_hooks = type(hooks[0])(), type(hooks[1])()
                bare.append(model(ids, use_cache=False).logits)
                inner._forward_pre_hooks, inner._forward_hooks = hooks
                model.train()

    during, bare = [], []
    train(tmp_path, model, Evaluates(), max_steps=3)
    for logits, expected in zip(during, bare, strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    inner = find_feedback_model(model)
    assert not inner._forward_hooks and not inner._forward_pre_hooks
    assert not inner.has_state_passing


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    class Stops(RandomStatePassing):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    model = feedback_model(random_state_passing=1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model, Stops())
    model.load_state_dict(feedback_model().state_dict())
    again = train(tmp_path, model)
    assert losses(again) == losses(train(tmp_path, feedback_model(random_state_passing=1.0)))
    assert not find_feedback_model(model)._forward_hooks


def test_the_model_warns_where_nothing_passes_states(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(modeling_feedback.logger, "warning_once", warnings.append)
    model = feedback_model()
    train(tmp_path, model, max_steps=1)
    assert not warnings
    model.train()(torch.ones(1, 8, dtype=torch.long), use_cache=False)
    assert "callbacks=[hf_loop.RandomStatePassing()]" in warnings[0]


def test_models_without_memory_and_with_a_cache_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model must hold one feedback model, got 0 in LoopedForCausalLM"):
        train(tmp_path, tiny_model())
    model = feedback_model()
    callback = RandomStatePassing()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=[callback])
    callback.on_train_begin(args, trainer.state, trainer.control, model=model)
    callback.on_step_begin(args, trainer.state, trainer.control)
    with pytest.raises(ValueError, match="random state passing needs use_cache=False"):
        model.train()(torch.ones(1, 8, dtype=torch.long), use_cache=True)


def test_a_step_with_other_loops_starts_from_the_learned_memory(tmp_path):
    plain = feedback_model().config
    looped = LoopedConfig(backbone_config=plain.backbone_config, num_loops=2)
    fields = {"block_size": 4, "feedback_length": 2, "random_state_passing": 1.0}
    model = FeedbackForCausalLM(FeedbackConfig(backbone_config=looped, **fields))
    starts = []

    def note(module, args, kwargs):
        memory = kwargs.get("initial_feedback")
        starts.append((kwargs.get("num_loops"), None if memory is None else len(memory)))

    args = LoopTrainingArguments(
        output_dir=str(tmp_path),
        loop_sampling="uniform",
        min_loops=1,
        max_loops=2,
        max_steps=12,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [RandomStatePassing(), _Hook(model.model, note)]
    LoopTrainer(model, args, train_dataset=rows((8,)), callbacks=callbacks).train()
    assert {loops for loops, _ in starts} == {1, 2}
    before = None
    for loops, memories in starts:
        assert memories == (2 * loops if loops == before else None)
        before = loops


class _Hook(TrainerCallback):
    """Looks at what the model is given once the memory is passed in."""

    def __init__(self, module, hook):
        self.module, self.hook = module, hook

    def on_train_begin(self, args, state, control, **kwargs):
        self.module.register_forward_pre_hook(self.hook, with_kwargs=True)


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = ROOT / "tests" / "trainer" / "state_passing_worker.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*torchrun, str(worker), str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(tmp_path / "one")
    two = json.loads((tmp_path / "two" / "losses.json").read_text())
    assert two == pytest.approx(losses(one), rel=1e-5)
