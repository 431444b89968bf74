"""An exponential moving average of the weights, as a callback of `Trainer`."""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import atomic_path, read_safetensors


FILE_NAME = "averaged_weights.safetensors"


class WeightAveraging(TrainerCallback, ExportableState):
    """Averages the weights over the steps of training: `average <- d * average + (1 - d) * weights`.

    The decay warms up, `d = min(decay, (1 + t) / (10 + t))` after step `t`: with a constant one, a short run would
    still hold much of its random start. When training ends the average takes the place of the weights.

    ```python
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[WeightAveraging(0.999)])
    ```

    Training itself goes on with the weights. The average is written beside every checkpoint, in
    `averaged_weights.safetensors`, and a resumed run repeats the uninterrupted one. Evaluation in the middle of
    training uses the average with [`DeepSupervisionTrainer`]; the stock `Trainer` has no place before an evaluation
    where a callback could put it in.

    Args:
        decay: The highest decay, from 0 to below 1.
        checkpoint: The folder of the checkpoint that training resumes from. Only needed where that is neither
            `args.resume_from_checkpoint` nor in `args.output_dir`, since a callback is not told.

    Raises:
        ValueError: The decay is out of range. When training begins: weights are split over processes, the best
            checkpoint is to be loaded at the end (its weights would be overwritten), or the average of the checkpoint
            to resume from is not found.
    """

    def __init__(self, decay: float = 0.999, checkpoint: str | Path | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.decay = decay
        self.checkpoint = checkpoint
        # by name; None before and after training
        self.average: dict[str, torch.Tensor] | None = None
        self._run = ""
        self._is_in_place = False

    def state(self) -> dict[str, Any]:
        """For the state of the trainer: whose average the file beside it holds."""
        return {"args": {"decay": self.decay}, "attributes": {"run": self._run}}

    def decay_at(self, step: int) -> float:
        """The decay after optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    @contextmanager
    def averaged(self, model: nn.Module) -> Generator[None]:
        """Puts the average in the place of the model's weights, and the weights back afterwards."""
        if self.average is None or self._is_in_place:
            yield
            return
        weights = {name: parameter.detach().clone() for name, parameter in _trained(model)}
        self._is_in_place = True
        try:
            _put(model, self.average)
            yield
        finally:
            _put(model, weights)
            self._is_in_place = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end=True and weight averaging both decide on the weights at the end")
        if any(hasattr(parameter, "device_mesh") for _, parameter in _trained(model)):
            raise ValueError("weight averaging needs whole weights in every process: launch with ddp.yaml")
        saved = _callback_states(state).get(type(self).__name__) or {}
        run = saved.get("attributes", {}).get("run")
        if state.global_step > 0 and run:
            self._run = run
            self.average = self._read(args, state, model)
        else:
            self._run = uuid.uuid4().hex
            self.average = {name: parameter.detach().float().clone() for name, parameter in _trained(model)}
        # the trainer overwrites this entry when it saves, and fails where a checkpoint came without it
        _callback_states(state)[type(self).__name__] = self.state()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        average = cast(dict[str, torch.Tensor], self.average)
        with torch.no_grad():
            for name, parameter in _trained(model):
                average[name].lerp_(parameter.detach().float(), 1 - self.decay_at(state.global_step))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if self.average is None or not args.should_save or not folder.is_dir():
            return
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.average.items()}
        with atomic_path(folder / FILE_NAME) as temporary:
            save_file(tensors, temporary, {"run": self._run, "step": str(state.global_step)})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        _put(model, cast(dict[str, torch.Tensor], self.average))
        self.average = None

    def _read(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> dict[str, torch.Tensor]:
        """The average that belongs to the checkpoint the run resumes from."""
        usual = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        folders = [str(folder) for folder in (self.checkpoint, args.resume_from_checkpoint, usual) if folder]
        for path in (Path(folder, FILE_NAME) for folder in folders):
            if path.is_file():
                tensors, facts = read_safetensors(path)
                if facts == {"run": self._run, "step": str(state.global_step)}:
                    return {name: tensors[name].to(parameter.device) for name, parameter in _trained(model)}
        raise ValueError(
            f"the averaged weights of the checkpoint of step {state.global_step} are in none of the folders "
            f"{', '.join(folders)}; name the checkpoint's folder with WeightAveraging(checkpoint=...)"
        )


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _put(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(weights[name])


def _callback_states(state: TrainerState) -> dict[str, Any]:
    # annotated as the list it is built from
    return cast(dict[str, Any], state.stateful_callbacks)
