"""Tensors beside a checkpoint: found where they can be, and only if they are the checkpoint's."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from hf_loop.trainer.tensor_state import TensorStateCallback, checkpoint_folder


class Counter(TensorStateCallback):
    """A tensor that the file of its step belongs to."""

    file_name = "counter.safetensors"
    description = "counter"

    def __init__(self, checkpoint=None, counter=None):
        super().__init__(checkpoint)
        self.counter = counter

    def tensors_to_save(self):
        return None if self.counter is None else {"counter": self.counter}

    def file_facts(self, step):
        return {"step": str(step)}

    def proof(self):
        return {"total": None if self.counter is None else int(self.counter.sum())}

    def belongs(self, tensors, facts, proof, step):
        return facts == {"step": str(step)} and int(tensors["counter"].sum()) == proof["total"]


@pytest.fixture
def run(tmp_path):
    """Arguments, a state at step 3 and a counter that was written beside the checkpoint."""
    args = SimpleNamespace(output_dir=str(tmp_path / "run"), resume_from_checkpoint=None, should_save=True)
    state, callback = TrainerState(global_step=3), Counter(counter=torch.arange(4))
    callback.enter(state)
    checkpoint_folder(args, state).mkdir(parents=True)
    callback.on_save(args, state, None)
    return args, state, callback


def test_what_was_written_is_read(run):
    args, state, callback = run
    assert torch.equal(Counter().read_saved(args, state)["counter"], callback.counter)
    assert [path.name for path in checkpoint_folder(args, state).iterdir()] == ["counter.safetensors"]


def test_the_folder_can_be_named(run, tmp_path):
    args, state, _ = run
    folder = checkpoint_folder(args, state).rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"run/checkpoint-3 holds the counter of the .* step 3; .*Counter\("):
        Counter().read_saved(args, state)
    assert Counter(checkpoint=folder).read_saved(args, state)
    args.resume_from_checkpoint = str(folder)
    assert Counter().read_saved(args, state)


def test_a_file_of_another_step_or_run_is_passed_over(run):
    args, state, callback = run
    before = callback.counter
    callback.counter = before + 1
    callback.on_save(args, state, None)
    with pytest.raises(ValueError, match="none of the folders"):
        Counter().read_saved(args, state)
    callback.counter = before
    callback.on_save(args, state, None)
    assert Counter().read_saved(args, state)
    checkpoint_folder(args, state).rename(checkpoint_folder(args, TrainerState(global_step=4)))
    state.global_step = 4
    with pytest.raises(ValueError, match="none of the folders"):
        Counter().read_saved(args, state)


def test_a_damaged_file_is_named(run):
    args, state, _ = run
    path = checkpoint_folder(args, state) / "counter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"counter\.safetensors is truncated or damaged"):
        Counter().read_saved(args, state)


def test_new_runs_and_checkpoints_without_tensors_have_no_proof(run):
    _, state, _ = run
    assert Counter().saved_proof(state) == {"total": 6}
    assert Counter().saved_proof(TrainerState(global_step=0, stateful_callbacks=state.stateful_callbacks)) == {}
    Counter().enter(state)
    assert Counter().saved_proof(state) == {}
    assert Counter().saved_proof(TrainerState(global_step=3)) == {}


def test_other_processes_and_missing_folders_are_left_alone(run, tmp_path):
    args, state, callback = run
    args.output_dir = str(tmp_path / "other")
    callback.on_save(args, state, None)
    assert not (tmp_path / "other").exists()
    args.should_save = False
    checkpoint_folder(args, state).mkdir(parents=True)
    callback.on_save(args, state, None)
    assert list(checkpoint_folder(args, state).iterdir()) == []
