"""Private methods of transformers' `Trainer` that our trainers change: each calls a method with a public name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer


class TrainerHooks(Trainer):
    """A `Trainer` whose hooks by default do what `Trainer` does."""

    # where the checkpoint that is being written lies, instead of the output folder
    staging_dir: Path | None = None

    def begin_attempt(self) -> None:
        """Called before the first step of a run, and again when it starts anew with a smaller batch."""

    def write_checkpoint(self, write: Callable[[], None], run_dir: Path) -> None:
        """Write the checkpoint of the current step.

        Args:
            write (`Callable`): writes it into `staging_dir`, or into `run_dir` if that is `None`, and drops old ones.
            run_dir (`Path`): the folder of checkpoints.
        """
        write()

    def write_model(self, write: Callable[[str], None], folder: Path) -> None:
        """Write the model, its configuration and the tokenizer.

        Args:
            write (`Callable`): writes them into the folder that it is given.
            folder (`Path`): the folder.
        """
        write(str(folder))

    def load_weights(self, load: Callable[[], None], checkpoint: Path) -> None:
        """Load the weights of a checkpoint to resume from.

        Args:
            load (`Callable`): loads them as `Trainer` does.
            checkpoint (`Path`): the checkpoint.
        """
        load()

    def load_best_weights(self, load: Callable[[], None], checkpoint: Path) -> None:
        """Load the weights of the best checkpoint at the end of training, with the arguments of `load_weights`."""
        load()

    def load_optimizer(self, load: Callable[[], None], checkpoint: Path) -> None:
        """Load the states of optimizer and scheduler, with the arguments of `load_weights`."""
        load()

    def load_random_state(self, load: Callable[[], None], checkpoint: Path) -> None:
        """Load the states of random number generators, with the arguments of `load_weights`."""
        load()

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Upload the model of a checkpoint, as `args.hub_strategy` says."""
        super()._push_from_checkpoint(str(checkpoint))

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.begin_attempt()
        return super()._inner_training_loop(*args, **kwargs)

    def _run_epoch(self, *args: Any, resume_from_checkpoint: str | None = None, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            return
        # `Trainer` would go one step beyond the last when it resumes from the checkpoint of the last
        self._load_rng_state(resume_from_checkpoint)
        self.control.should_training_stop = True

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self.staging_dir is None else str(self.staging_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.write_checkpoint(partial(super()._save_checkpoint, model, trial), Path(self._get_output_dir(trial)))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # a folder that is about to be renamed is uploaded afterwards
        if self.staging_dir is None:
            self.push_checkpoint(Path(checkpoint_folder))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        self.write_model(partial(super()._save, state_dict=state_dict), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load = partial(super()._load_from_checkpoint, resume_from_checkpoint, model)
        self.load_weights(load, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.load_best_weights(super()._load_best_model, Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_optimizer(partial(super()._load_optimizer_and_scheduler, checkpoint), Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.load_random_state(partial(super()._load_rng_state, checkpoint), Path(checkpoint))
