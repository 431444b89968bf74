"""An exponential moving average of the weights, as a callback of `Trainer`."""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..files import read_safetensors
from .tensor_state import TensorStateCallback


FILE_NAME = "averaged_weights.safetensors"


class WeightAveraging(TensorStateCallback):
    """Averages the weights over the steps of training: `average <- d * average + (1 - d) * weights`.

    The decay warms up, `d = min(decay, (1 + t) / (10 + t))` after step `t`: with a constant one, a short run would
    still hold much of its random start. When training ends the average takes the place of the weights.

    ```python
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[WeightAveraging(0.999)])
    ```

    Training itself goes on with the weights. A checkpoint holds both: the weights, which `from_pretrained` loads and a
    resumed run goes on with, and their average in `averaged_weights.safetensors`. Evaluation in the middle of training
    uses the average with the trainers of this library; so with `load_best_model_at_end` they end with the average of
    the checkpoint whose average was best, as HRM and TRM choose what they publish. The stock `Trainer` has no place
    before an evaluation where a callback could put the average in.

    Args:
        decay (`float`): the highest decay, from 0 to below 1.
        checkpoint (`str` or `Path`, *optional*): the folder of the checkpoint that training resumes from. Only needed
            where that is neither `args.resume_from_checkpoint` nor in `args.output_dir`, since a callback is not told.

    Raises:
        ValueError: if the decay is out of range. When training begins, if weights are split over processes, the best
            checkpoint is to be loaded at the end by the stock `Trainer`, which has measured the weights and not their
            average, or the average of the checkpoint to resume from is not found.
    """

    file_name = FILE_NAME
    description = "averaged weights"

    def __init__(self, decay: float = 0.999, checkpoint: str | Path | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        super().__init__(checkpoint)
        self.decay = decay
        # by name; None before and after training
        self.average: dict[str, torch.Tensor] | None = None
        self._run = ""
        self._is_in_place = False

    def arguments(self) -> dict[str, Any]:
        return {"decay": self.decay}

    def proof(self) -> dict[str, Any]:
        return {"run": self._run}

    def file_facts(self, step: int) -> dict[str, str]:
        return {"run": self._run, "step": str(step)}

    def belongs(
        self, tensors: dict[str, torch.Tensor], facts: dict[str, str], proof: dict[str, Any], step: int
    ) -> bool:
        return facts == {"run": proof["run"], "step": str(step)}

    def tensors_to_save(self) -> dict[str, torch.Tensor] | None:
        return self.average

    def decay_at(self, step: int) -> float:
        """The decay after optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    @contextmanager
    def averaged(self, model: nn.Module) -> Generator[None]:
        """Put the average in the place of the model's weights, and the weights back afterwards."""
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
        if args.load_best_model_at_end and not self.in_checkpoint_trainer:
            raise ValueError(
                "load_best_model_at_end=True and weight averaging both decide on the weights at the end; train with "
                "LoopTrainer, DeepSupervisionTrainer or CardTrainer, which measure the average"
            )
        if any(hasattr(parameter, "device_mesh") for _, parameter in _trained(model)):
            raise ValueError("weight averaging needs whole weights in every process: launch with ddp.yaml")
        if proof := self.saved_proof(state):
            self._run = proof["run"]
            saved = self.read_saved(args, state)
            self.average = {name: saved[name].to(parameter.device) for name, parameter in _trained(model)}
        else:
            self._run = uuid.uuid4().hex
            self.average = {name: parameter.detach().float().clone() for name, parameter in _trained(model)}
        self.enter(state)

    def take_best(self, checkpoint: Path) -> None:
        """Take the average of a checkpoint of this run, which is in the model when training ends.

        Raises:
            ValueError: if the checkpoint does not have it.
        """
        path = checkpoint / self.file_name
        if not path.is_file():
            raise ValueError(f"{checkpoint} is the best checkpoint, but has no {self.file_name}")
        self.average = read_safetensors(path)[0]

    def abandon(self, model: Any) -> None:
        self.average = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        average = cast(dict[str, torch.Tensor], self.average)
        update = get_ema_multi_avg_fn(self.decay_at(state.global_step))
        # one weight at a time: only one is there twice, where the model is not in float32
        for name, parameter in _trained(model):
            update([average[name]], [parameter.detach().float()], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        _put(model, cast(dict[str, torch.Tensor], self.average))
        self.average = None


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def _put(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in _trained(model):
        parameter.copy_(weights[name])
