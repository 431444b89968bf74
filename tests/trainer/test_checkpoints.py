"""Which checkpoint a run goes on from: the newest whole one, of the same model; and what the others are told."""

import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, Trainer, TrainingArguments

from hf_loop import (
    DeepSupervisionTrainer,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    LoopedConfig,
    LoopedForCausalLM,
    LoopTrainer,
    RandomStatePassing,
    WeightAveraging,
)
from hf_loop.trainer.card_trainer import CardTrainer
from hf_loop.trainer.checkpoints import checkpoints_in

from ..models.feedback_variants import make_feedback
from .tiny import VOCAB_SIZE, tiny_arguments, tiny_dataset, tiny_model
from .tiny_puzzles import puzzle_model, puzzle_trainer


SAVED = {"save_strategy": "steps", "save_steps": 2}


def looped(folder: Path, **fields) -> LoopTrainer:
    args = tiny_arguments(folder, **{**SAVED, **fields})
    return LoopTrainer(tiny_model(), args, train_dataset=tiny_dataset(), callbacks=[WeightAveraging(0.5)])


def feedback(folder: Path, **fields) -> CardTrainer:
    fields = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, **fields}
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**SAVED, **fields})
    model = make_feedback(random_state_passing=0.8)
    return CardTrainer(model, args, train_dataset=tiny_dataset(length=8), callbacks=[RandomStatePassing()])


def lora(folder: Path, **fields) -> LoopTrainer:
    torch.manual_seed(5)
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    return LoopTrainer(model, tiny_arguments(folder, **{**SAVED, **fields}), train_dataset=tiny_dataset())


def puzzles(folder: Path, model=None, **fields) -> DeepSupervisionTrainer:
    return puzzle_trainer(folder, model, **{**SAVED, "max_steps": 6, "ema_decay": 0.9, **fields})


MAKERS = {"looped": looped, "feedback": feedback, "lora": lora, "puzzles": puzzles}


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture(scope="module", params=MAKERS)
def finished(request, tmp_path_factory):
    """The kind of a run, its folder with checkpoints at 2, 4 and 6, and what it came to."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer = MAKERS[request.param](folder)
    trainer.train()
    return request.param, folder, losses(trainer), weights(trainer)


def state_files(checkpoint: Path) -> list[str]:
    """Every file of a checkpoint that a run needs to go on, with everything else that can be cut off."""
    readable = (".safetensors", ".json", ".pt", ".pth", ".bin")
    return sorted(path.name for path in checkpoint.iterdir() if path.suffix in readable)


@pytest.fixture
def warnings(caplog):
    logger = logging.getLogger("transformers")
    logger.propagate = True
    with caplog.at_level(logging.WARNING, "transformers"):
        yield lambda: [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    logger.propagate = False


CUTS = {
    "half": lambda content: content[: len(content) // 2],
    "last byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_checkpoint_with_any_file_cut_off_is_passed_over(finished, cut, tmp_path):
    kind, folder, _, _ = finished
    shutil.copytree(folder / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    trainer = MAKERS[kind](tmp_path / "run")
    names = state_files(folder / "checkpoint-4")
    assert {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < set(names)
    for name in names:
        path = tmp_path / "run" / "checkpoint-4" / name
        content = path.read_bytes()
        # the last byte of a JSON file is a line break, and zeros may be the values of a tensor
        if (cut, path.suffix) in {("last byte", ".json"), ("zeros", ".safetensors")}:
            continue
        path.write_bytes(CUTS[cut](content))
        with pytest.raises(ValueError, match=f"checkpoint-4: .*{name} is cut off or damaged"):
            trainer.train(resume_from_checkpoint=True)
        path.write_bytes(content)


def test_a_checkpoint_that_lacks_a_file_is_passed_over(finished, tmp_path):
    kind, folder, _, _ = finished
    shutil.copytree(folder / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    trainer = MAKERS[kind](tmp_path / "run")
    needed = {"trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    own = {"averaged_weights.safetensors", "passed_feedback.safetensors", "deep_supervision_0.safetensors"}
    needed |= own & set(state_files(folder / "checkpoint-4"))
    for name in [*needed, "model.safetensors", "adapter_model.safetensors"]:
        path = tmp_path / "run" / "checkpoint-4" / name
        if path.exists():
            content = path.read_bytes()
            path.unlink()
            message = "it has no weights" if "model.s" in name else f"it has no {name}"
            with pytest.raises(
                ValueError, match=f"no checkpoint in .*run can be resumed from: .*checkpoint-4: {message}"
            ):
                trainer.train(resume_from_checkpoint=True)
            with pytest.raises(ValueError, match=f"checkpoint-4 cannot be resumed from: {message}"):
                trainer.train(resume_from_checkpoint=str(path.parent))
            path.write_bytes(content)


def test_the_run_goes_on_from_the_newest_whole_one_and_says_so(finished, tmp_path, warnings):
    kind, folder, expected_losses, expected_weights = finished
    run = shutil.copytree(folder, tmp_path / "run")
    (run / "checkpoint-6" / "optimizer.pt").write_bytes(b"PK")
    trainer = MAKERS[kind](run, save_total_limit=2)
    trainer.train(resume_from_checkpoint=True)
    message = (
        f"passed over {run}/checkpoint-6: optimizer.pt is cut off or damaged. The run goes on from {run}/checkpoint-4"
    )
    assert warnings() == [message]
    assert losses(trainer) == expected_losses
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights(trainer).items())
    # the damaged one is replaced, and the oldest dropped
    assert [path.name for path in checkpoints_in(run)] == ["checkpoint-6", "checkpoint-4"]
    assert sorted(os.listdir(run)) == ["checkpoint-4", "checkpoint-6"]


def test_a_finished_run_that_resumes_takes_no_further_step(finished, tmp_path):
    kind, folder, expected_losses, expected_weights = finished
    run = shutil.copytree(folder, tmp_path / "run")
    trainer = MAKERS[kind](run)
    trainer.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, losses(trainer)) == (6, expected_losses)
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights(trainer).items())


def test_files_of_checkpoints_and_models_have_the_mode_of_the_umask(finished, tmp_path):
    kind, folder, _, _ = finished
    trainer = MAKERS[kind](tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    files = [path for root in (folder, tmp_path / "model") for path in root.rglob("*") if path.is_file()]
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def mixtral() -> LoopedForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = MixtralConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=1, num_local_experts=2, **sizes)
    return LoopedForCausalLM(LoopedConfig(backbone_config=backbone, num_loops=2))


def hrm_text() -> HierarchicalForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return HierarchicalForCausalLM(HierarchicalConfig.from_preset("hrm_text", vocab_size=VOCAB_SIZE, **sizes))


@pytest.mark.parametrize("make", [mixtral, hrm_text])
def test_weights_that_are_converted_on_loading_are_loaded_too(make, tmp_path):
    # a learning rate at which step 2 is the best, and every later one is worse
    fields = {
        **SAVED,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.5,
    }
    rows = tiny_dataset(length=8)

    def trainer(**more):
        args = tiny_arguments(tmp_path / "run", **{**fields, **more})
        return LoopTrainer(make(), args, train_dataset=rows, eval_dataset=rows.select(range(4)))

    best = trainer(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    best.train()
    measured = {entry["step"]: entry["eval_loss"] for entry in best.state.log_history if "eval_loss" in entry}
    assert len(set(measured.values())) == 3
    assert best.evaluate()["eval_loss"] == max(measured.values())

    whole = losses(best)
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    resumed = trainer()
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == whole


def test_what_changed_since_the_checkpoint_is_named(tmp_path):
    looped(tmp_path / "run").train()
    args = tiny_arguments(tmp_path / "run", **SAVED)
    for fields, message in (
        ({"num_loops": 5}, "num_loops is 5, was 3"),
        ({"injection": "add"}, "injection is add, was none"),
    ):
        trainer = LoopTrainer(tiny_model(**fields), args, train_dataset=tiny_dataset())
        with pytest.raises(ValueError, match=f"the model is not the one of .*checkpoint-6: {message}. Give the old"):
            trainer.train(resume_from_checkpoint=True)
    model = tiny_model()
    model.config.backbone_config.intermediate_size = 96
    model = LoopedForCausalLM(model.config)
    with pytest.raises(ValueError, match="backbone_config.intermediate_size is 96, was 64"):
        LoopTrainer(model, args, train_dataset=tiny_dataset()).train(resume_from_checkpoint=True)
    for fields, message in (
        ({"learning_rate": 1e-3}, "learning_rate is 0.001, was 0.01"),
        ({"weight_decay": 0.5}, "weight_decay is 0.5, was 0.0"),
        ({"adam_beta2": 0.9}, r"\(adam_beta1, adam_beta2\) is \(0.9, 0.9\), was \(0.9, 0.999\)"),
        ({"use_muon": True}, "the optimizer's state in .*checkpoint-6 is not of this run's optimizer"),
    ):
        with pytest.raises(ValueError, match=message):
            looped(tmp_path / "run", max_steps=8, **fields).train(resume_from_checkpoint=True)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


def test_weights_of_another_model_are_refused(tmp_path):
    looped(tmp_path / "run").train()
    path = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, path, {"format": "pt"})
    with pytest.raises(
        ValueError, match="the tensors of .*checkpoint-6 are not those of LoopedForCausalLM: 5 missing"
    ):
        looped(tmp_path / "run").train(resume_from_checkpoint=True)


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("content", [None, [1, 2], {"state": 1}, Evil()], ids=["none", "list", "dict", "code"])
def test_files_that_hold_something_else_are_named_and_run_nothing(name, content, tmp_path, capfd):
    looped(tmp_path / "run", max_steps=2).train()
    path = tmp_path / "run" / "checkpoint-2" / name
    torch.save(content, path)
    with pytest.raises(ValueError, match="(optimizer's state in|file rng_state of) .*checkpoint-2") as error:
        looped(tmp_path / "run", max_steps=4).train(resume_from_checkpoint=True)
    assert "weights_only" not in str(error.value)
    assert "ran" not in capfd.readouterr().out.split()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[1, 2]", "config.json is cut off or damaged"),
        ("trainer_state.json", "null", "trainer_state.json holds no state of a trainer"),
        ("trainer_state.json", '{"global_step": "2"}', "trainer_state.json holds no state of a trainer"),
        ("trainer_state.json", '{"global_step": 4, "stateful_callbacks": {}}', "trainer_state.json is of step 4"),
    ],
)
def test_json_that_holds_something_else_is_named(name, text, message, tmp_path):
    looped(tmp_path / "run", max_steps=2).train()
    (tmp_path / "run" / "checkpoint-2" / name).write_text(text)
    with pytest.raises(ValueError, match=f"no checkpoint in .* can be resumed from: .*checkpoint-2: {message}"):
        looped(tmp_path / "run", max_steps=4).train(resume_from_checkpoint=True)


def test_a_run_that_left_a_branch_drops_that_first(tmp_path):
    looped(tmp_path / "run").train()
    trainer = looped(tmp_path / "run", save_steps=1, save_total_limit=2, max_steps=3)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    # 4 and 6 are of the run that this one does not go on from
    assert [path.name for path in checkpoints_in(tmp_path / "run")] == ["checkpoint-3", "checkpoint-2"]


@pytest.mark.parametrize("limit", [1, 2, None])
def test_the_best_checkpoint_stays_and_is_the_average_that_was_measured(limit, tmp_path):
    fields = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_total_limit": limit}
    # the higher, the better, so that the first evaluation is the best
    fields |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    whole = puzzles(tmp_path / "whole", **fields)
    whole.train()
    measured = {entry["step"]: entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry}
    best = max(measured, key=measured.__getitem__)
    assert best == 2 and len(set(measured.values())) == 3
    assert whole.evaluate()["eval_loss"] == measured[best]
    average = load_file(tmp_path / "whole" / f"checkpoint-{best}" / "averaged_weights.safetensors")
    weights_of_best = load_file(tmp_path / "whole" / f"checkpoint-{best}" / "model.safetensors")
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, average[name])
    # the checkpoint itself holds what training goes on with
    assert any(not torch.equal(weights_of_best[name], average[name]) for name in average)

    # a run that is cut and goes on keeps the best
    puzzles(tmp_path / "cut", **{**fields, "save_total_limit": None}).train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    resumed = puzzles(tmp_path / "cut", puzzle_model(seed=9), **fields)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == best
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, average[name])


class OutOfMemory:
    """Lets the n-th step of a trainer fail as if memory had run out."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.step, self.count, self.training_step = step, 0, trainer.training_step
        trainer.training_step = self

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count == self.step:
            raise RuntimeError("CUDA out of memory. (a test)")
        return self.training_step(*args, **kwargs)


@pytest.mark.parametrize("make", [looped, feedback, lora, puzzles])
def test_a_second_attempt_after_memory_ran_out_is_a_run_of_its_own(make, tmp_path):
    # 0.9 of 8, as accelerate and transformers shrink a batch
    fields = {"save_strategy": "no", "auto_find_batch_size": True}
    second = make(tmp_path / "second", per_device_train_batch_size=8, **fields)
    OutOfMemory(second, 4)
    second.train()
    found = second.state.train_batch_size
    assert found < 8
    first = make(tmp_path / "first", per_device_train_batch_size=found, **fields)
    first.train()
    assert losses(second) == losses(first)
    expected = weights(first)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(second).items())


@pytest.mark.parametrize("make", [looped, feedback, lora, puzzles])
def test_a_run_after_an_error_starts_afresh(make, tmp_path):
    trainer = make(tmp_path / "run", save_strategy="no", max_steps=3)
    start = weights(trainer)
    OutOfMemory(trainer, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    module = next((part for part in trainer.model.modules() if hasattr(type(part), "has_state_passing")), None)
    if module is not None:
        # the hooks that pass memories are off
        assert not module._forward_hooks and not module._forward_pre_hooks and not module.has_state_passing
    trainer.model.load_state_dict(start)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    # random numbers go on, so only the rows' order differs; what is kept from step to step begins anew
    assert len(losses(trainer)) == 3
    assert os.listdir(tmp_path) in ([], ["run"]) and not any((tmp_path / "run").glob("*"))
