"""`transformers.Trainer` whose checkpoints are whole, and which goes on from the newest one that is."""

import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..files import fault_named
from ..loading import check_resumable, load_pretrained
from ..models.files import write_errors_named
from ..output_folders import finish_folder, folder_lock, remove, whole_folder
from .attempts import RunStart
from .checkpoints import changed_fields, checkpoints_in, describe_changes, drop_old, fault_of
from .ema import WeightAveraging
from .tensor_state import CheckpointCallback
from .trainer_hooks import TrainerHooks


logger = logging.get_logger(__name__)

# of an optimizer's groups of parameters, with the arguments of training that set them; `lr` is the scheduler's
OPTIMIZER_SETTINGS = {
    "initial_lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "(adam_beta1, adam_beta2)",
    "eps": "adam_epsilon",
}


class CheckpointTrainer(TrainerHooks):
    """A `Trainer` that can be killed at any moment and goes on as if it had not been.

    - A checkpoint is written beside its place and renamed when it is whole, with what callbacks keep
      ([`CheckpointCallback`]). Older ones are dropped afterwards.
    - `train(resume_from_checkpoint=True)` goes on from the newest checkpoint of which every file is there and whole,
      and says which it passes over. It refuses weights or a configuration that are not the model's.
    - Weights are loaded as `from_pretrained` loads them: `Trainer` leaves out what that converts, such as the experts
      of a mixture.
    - A model is saved whole or not at all, and one process at a time trains into an output folder.
    - Where a callback averages weights ([`WeightAveraging`]), evaluation is of the average, and the best checkpoint is
      the one with the best average, which `load_best_model_at_end` puts into the model.
    - A second attempt of a run (`auto_find_batch_size`) and a run after an error start afresh.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # of the run under way: where it resumed, what it passed over, what it started from
        self.checkpoint: Path | None = None
        self._passed_over: list[Path] = []
        self._start: RunStart | None = None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run `Trainer.train`, from the newest whole checkpoint if `resume_from_checkpoint` is `True`.

        Raises:
            ValueError: if another process trains into `args.output_dir`; there is no whole checkpoint to resume from;
                or the one to resume from is of another model.
        """
        with run_lock(str(self.args.output_dir)):
            self.checkpoint = self._find_checkpoint(resume_from_checkpoint or None)
            if self.checkpoint is not None:
                self.check_checkpoint(self.checkpoint)
            for callback in self._keepers():
                callback.checkpoint = self.checkpoint
                callback.in_checkpoint_trainer = True
            try:
                return super().train(None if self.checkpoint is None else str(self.checkpoint), *args, **kwargs)
            except BaseException:
                self._abandon()
                raise
            finally:
                self._start = None
                for callback in self._keepers():
                    callback.in_checkpoint_trainer = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Run `Trainer.evaluate`, of the averaged weights where there are any."""
        with ExitStack() as stack:
            for callback in self._averages():
                stack.enter_context(callback.averaged(cast(torch.nn.Module, self.model)))
            return super().evaluate(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Run `Trainer.create_optimizer`.

        Raises:
            ValueError: if `optim` or its arguments make no optimizer.
        """
        args_of = f"optim_args={self.args.optim_args!r}, learning_rate={self.args.learning_rate}"
        with fault_named(f"training.optim={OptimizerNames(self.args.optim).value!r}, {args_of}"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Run `Trainer.create_scheduler`.

        Raises:
            ValueError: if `lr_scheduler_type` and its arguments make no scheduler.
        """
        name = SchedulerType(self.args.lr_scheduler_type).value
        with fault_named(f"training.lr_scheduler_type={name!r}, lr_scheduler_kwargs={self.args.lr_scheduler_kwargs}"):
            return super().create_scheduler(*args, **kwargs)

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Refuse a checkpoint of another model.

        Raises:
            ValueError: if the configuration or the tensors differ; the message names them.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PreTrainedModel) and (changes := changed_fields(checkpoint, model.config)):
            raise ValueError(
                f"the model is not the one of {checkpoint}: {'; '.join(changes)}. Give the old values back, or begin "
                "a new run with the weights of the checkpoint"
            )
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled and isinstance(model, PeftModel):
            check_resumable(model, checkpoint)
        for callback in self._keepers():
            callback.check(checkpoint)

    def needed_files(self) -> list[str]:
        """Name the files, or patterns of them, that a checkpoint must have beside weights and trainer state."""
        rank = self.args.process_index
        names = ["rng_state.pth" if self.args.world_size <= 1 else f"rng_state_{rank}.pth"]
        if self.is_deepspeed_enabled:
            return names
        names += [SCHEDULER_NAME, "optimizer*" if self.is_fsdp_enabled else OPTIMIZER_NAME]
        return names + ([SCALER_NAME] if getattr(self.accelerator, "scaler", None) is not None else [])

    def begin_attempt(self) -> None:
        if self._start is not None:
            self._start.restore(self)
        elif self.args.auto_find_batch_size and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            self._start = RunStart(self)

    def write_checkpoint(self, write: Callable[[], None], run_dir: Path) -> None:
        folder = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # all processes write into it, so its name is no random one
        staging = run_dir / f".{folder.name}-{self.state.global_step:08x}.tmp"
        new = staging / folder.name
        if self.args.should_save:
            remove(staging)
        self.accelerator.wait_for_everyone()
        self.staging_dir = staging
        try:
            with write_errors_named(folder):
                write()
                for callback in self._keepers():
                    callback.write(new, self.args, self.state)
                if self.state.best_model_checkpoint == str(new):
                    self.state.best_model_checkpoint = str(folder)
                    if self.args.should_save:
                        self.state.save_to_json(str(new / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    finish_folder(new)
                    if folder.exists():
                        folder.rename(staging / "replaced")
                    new.rename(folder)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self.staging_dir = None
        self._name_saved(new, folder)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_checkpoint(folder)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            drop_old(run_dir, self.args.save_total_limit, folder, best, self._passed_over)

    def write_model(self, write: Callable[[str], None], folder: Path) -> None:
        is_checkpoint = self.staging_dir is not None and folder.is_relative_to(self.staging_dir)
        if is_checkpoint or not self.args.should_save:
            write(str(folder))
            return
        with whole_folder(folder) as scratch:
            write(str(scratch))
        self._name_saved(scratch, folder)

    def load_weights(self, load: Callable[[], None], checkpoint: Path) -> None:
        model: Any = self.model
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            load()
            return
        stored = load_pretrained(type(model), checkpoint, config=model.config, dtype=model.dtype)
        model.load_state_dict(stored.state_dict())

    def load_best_weights(self, load: Callable[[], None], checkpoint: Path) -> None:
        self.load_weights(load, checkpoint)
        for callback in self._averages():
            callback.take_best(checkpoint)

    def load_optimizer(self, load: Callable[[], None], checkpoint: Path) -> None:
        given = self._optimizer_settings()
        _load_named(load, f"the optimizer's state in {checkpoint} is not of this run's optimizer and parameters")
        # torch takes these from the state, so that other values would be ignored
        for stored, settings in zip(self._optimizer_settings(), given, strict=True):
            if changes := describe_changes(stored, settings):
                raise ValueError(
                    f"the optimizer is not the one of {checkpoint}: {'; '.join(changes)}. Give the old values back, "
                    "or begin a new run with the weights of the checkpoint"
                )

    def load_random_state(self, load: Callable[[], None], checkpoint: Path) -> None:
        _load_named(load, f"the file rng_state of {checkpoint} does not hold states of random number generators")

    def _optimizer_settings(self) -> list[dict[str, Any]]:
        groups = [] if self.is_deepspeed_enabled or self.optimizer is None else self.optimizer.param_groups
        return [
            {argument: group[name] for name, argument in OPTIMIZER_SETTINGS.items() if name in group}
            for group in groups
        ]

    def _find_checkpoint(self, resume: Any) -> Path | None:
        self._passed_over = []
        if resume is None:
            return None
        if resume is not True:
            folder = Path(resume)
            fault = self._fault_of(folder) if folder.is_dir() else "there is no such folder"
            if fault is not None:
                raise ValueError(f"{folder} cannot be resumed from: {fault}")
            return folder
        output_dir = Path(str(self.args.output_dir))
        # all processes look at the same folders, in the same order
        found = broadcast_object_list([checkpoints_in(output_dir) if output_dir.is_dir() else []])[0]
        if not found:
            raise ValueError(f"No valid checkpoint found in output directory ({output_dir})")
        faults = []
        for folder in found:
            fault = self._fault_of(folder)
            if fault is None:
                if faults and self.is_world_process_zero():
                    logger.warning(f"passed over {'; '.join(faults)}. The run goes on from {folder}")
                return folder
            self._passed_over.append(folder)
            faults.append(f"{folder}: {fault}")
        raise ValueError(f"no checkpoint in {output_dir} can be resumed from: {'; '.join(faults)}")

    def _fault_of(self, folder: Path) -> str | None:
        fault = fault_of(folder, self.needed_files())
        for callback in self._keepers():
            fault = callback.fault_of(folder, self.args) if fault is None else fault
        # a file of any one process
        return next((found for found in gather_object([fault]) if found is not None), None)

    def _abandon(self) -> None:
        self.is_in_train = False
        for callback in self._keepers():
            callback.abandon(self.model)
        # `Trainer` would add the noise twice in the next run
        handle = getattr(self, "neftune_hook_handle", None)
        if handle is not None:
            handle.remove()

    def _name_saved(self, scratch: Path, folder: Path) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if getattr(model, "saved_in", None) == str(scratch):
            model.name_or_path = model.saved_in = str(folder)

    def _keepers(self) -> list[CheckpointCallback]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, CheckpointCallback)]

    def _averages(self) -> list[WeightAveraging]:
        return [callback for callback in self._keepers() if isinstance(callback, WeightAveraging)]


def _load_named(load: Callable[[], None], fault: str) -> None:
    try:
        load()
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, UnpicklingError) as error:
        # torch's message about a file that may run code goes on with how to let it
        raise ValueError(f"{fault}: {str(error).split('. ')[0]}") from error


@contextmanager
def run_lock(folder: str) -> Generator[None]:
    """Hold the lock of an output folder for all processes of a run.

    Raises:
        ValueError: in every process, if another run holds it.
    """
    with ExitStack() as stack:
        refusal = None
        if PartialState().is_main_process:
            try:
                stack.enter_context(folder_lock(folder))
            except (ValueError, OSError) as error:
                refusal = str(error)
        refusal = broadcast_object_list([refusal])[0]
        if refusal is not None:
            raise ValueError(refusal)
        yield
