"""Deep supervision: `transformers.Trainer` for puzzle models that work in segments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainerState, TrainingArguments

from ..models.checks import check_positive_int
from ..models.puzzle_loss import IGNORE_INDEX, puzzle_loss
from ..models.transformers_seams import prepare_inputs
from .adam_atan2 import AdamATan2
from .arguments import SafeTrainingArguments
from .card_trainer import CardTrainer
from .ema import WeightAveraging
from .optimizer import undecayed_parameter_names
from .persistent_rows import PersistentRows, fewest_segments, file_name
from .puzzle_batches import PuzzleCollator
from .tensor_state import CheckpointCallback


@dataclass
class DeepSupervisionArguments(SafeTrainingArguments):
    """`TrainingArguments`, and how rows halt, how weights are averaged, and what evaluation runs.

    Args:
        exploration (`float`): probability that a row may not halt before a number of segments drawn from 2 to the
            model's `config.max_segments`.
        ema_decay (`float`): decay of the moving average of the weights that is evaluated and saved in the end; 0 turns
            it off.
        use_adam_atan2 (`bool`): train with [`AdamATan2`] in place of the optimizer that `optim` names.
        eval_segments (`int`, *optional*): segments of an evaluation, `config.max_segments` if not given.
        eval_halts (`bool`): whether evaluation reads a row where the model halts, or after the last segment.

    Raises:
        ValueError: if a field has a value that makes no sense; the message names the field and the value.
    """

    exploration: float = field(default=0.1, metadata={"help": "Probability that a row may not halt early."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of the average of the weights; 0 turns it off."})
    use_adam_atan2: bool = field(default=False, metadata={"help": "Train with AdamATan2."})
    eval_segments: int | None = field(default=None, metadata={"help": "Segments of an evaluation."})
    eval_halts: bool = field(default=False, metadata={"help": "Whether evaluation reads a row where it halts."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration must be between 0 and 1, got {self.exploration}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.eval_segments is not None:
            self.eval_segments = check_positive_int("eval_segments", self.eval_segments)
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor must be 0, got {self.label_smoothing_factor}")


class DeepSupervisionTrainer(CardTrainer):
    """A `Trainer` that makes an optimizer step after every segment (2506.21734, 2510.04871).

    A row stays for several steps. Each runs one segment from where the row's last one ended, without gradient into
    it. A row halts when the model says so or after `config.max_segments`; a new row of the data then takes its place
    at the next step. New rows whose place is not free are dropped, so that an epoch is a number of steps and not a
    pass over the data; a last batch that is not full is dropped, too. The loss is the mean over rows, whatever number
    of cells they have.

    Evaluation starts every row anew and runs all segments, or halts with `args.eval_halts`. It reports
    `exact_accuracy`, the share of rows with every labelled cell right, then `cell_accuracy` and `mean_segments`; with
    `args.ema_decay`, of the averaged weights.

    Puzzles may be of several sizes: without a `data_collator`, smaller ones are padded, and their padding changes
    nothing.

    The rows under way are written beside every checkpoint, a file for each process: a resumed run repeats the
    uninterrupted one if neither batch nor processes change.

    Args:
        model (`PreTrainedModel`): a [`HierarchicalForPuzzle`].
        args (`DeepSupervisionArguments`): a [`DeepSupervisionArguments`].

    Raises:
        ValueError: if `args` is of another class, the model is no puzzle model, or one process drives several GPUs.
    """

    args: DeepSupervisionArguments
    # our loss is the mean of a micro-batch
    loss_is_scaled_for_ga = False

    def __init__(self, model: Any = None, args: Any = None, data_collator: Any = None, *rest: Any, **kwargs: Any):
        super().__init__(model, args, data_collator or PuzzleCollator(), *rest, **kwargs)
        if not isinstance(self.args, DeepSupervisionArguments):
            raise ValueError(f"args must be DeepSupervisionArguments, got {type(self.args).__name__}")
        if not hasattr(self.model, "solve"):
            raise ValueError(f"model must be a puzzle model such as HierarchicalForPuzzle, got {self.model}")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"deep supervision needs one process per GPU (accelerate launch), got {self.args.n_gpu} GPUs in one"
            )
        if self.compute_metrics is None:
            self.compute_metrics = puzzle_metrics
        self._rows = PersistentRows()
        self._counted_step = -1
        self._next_micro_batch = 0
        self.add_callback(_RowsKeeper(self._rows))
        if self.args.ema_decay > 0:
            self.add_callback(WeightAveraging(self.args.ema_decay))

    def begin_attempt(self) -> None:
        super().begin_attempt()
        self._rows.micro_batches = {}
        self._counted_step = -1
        if self.checkpoint is not None:
            self._rows.load(self.checkpoint, self.args.process_index, self.args.device)

    def get_train_dataloader(self) -> DataLoader:
        """Make the data loader of `Trainer`, without a last batch that is not full."""
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = True
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = given

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss of one segment of the rows under way, some of which `inputs` replaces."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        index = self._count_micro_batch()
        rows, carry = self._rows.refill(index, inputs)
        outputs = model(**rows, carry=carry)
        self._rows.keep(index, rows, outputs.carry, self._halted(outputs, index))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """Compute the loss after the last segment that is read, the tokens with the number of segments, the labels."""
        inputs = prepare_inputs(self, inputs)
        labels = inputs.get("labels")
        solver: Any = self.accelerator.unwrap_model(model)
        with torch.no_grad(), self.compute_loss_context_manager():
            solution = solver.solve(
                inputs["input_ids"],
                puzzle_ids=inputs.get("puzzle_ids"),
                attention_mask=inputs.get("attention_mask"),
                num_segments=self.args.eval_segments,
                halt=self.args.eval_halts,
            )
            loss = None
            if labels is not None:
                halt_logits = solution.halt_logits if hasattr(solver, "halt_head") else None
                loss = puzzle_loss(solution.logits, labels, solver.config.cell_loss, halt_logits)
        if prediction_loss_only:
            return loss, None, None
        return loss, (solution.tokens, solution.segments), labels

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer`, with the mean number of segments that the rows under way have run."""
        mean_segments = self._rows.mean_segments() if "loss" in logs else None
        if mean_segments is not None:
            logs["mean_segments"] = mean_segments
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of `Trainer`, or AdamATan2 with `use_adam_atan2`."""
        if self.args.use_adam_atan2 and self.optimizer is None:
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer_cls_and_kwargs = (AdamATan2, {"lr": self.args.learning_rate, "betas": betas})
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay: those that `Trainer` names, without vectors."""
        exempt = undecayed_parameter_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in exempt]

    def _count_micro_batch(self) -> int:
        """The index of the micro-batch that is under way, from 0 in every step."""
        if self._counted_step != self.state.global_step:
            self._counted_step, self._next_micro_batch = self.state.global_step, 0
        self._next_micro_batch += 1
        return self._next_micro_batch - 1

    def _halted(self, outputs: Any, index: int) -> torch.Tensor:
        solver: Any = self.accelerator.unwrap_model(self.model)
        steps, num_rows = outputs.carry.steps, len(outputs.carry.steps)
        max_segments = solver.config.max_segments
        # accelerate deals whole batches to the processes in turn
        first = (index * self.args.world_size + self.args.process_index) * num_rows
        rows = slice(first, first + num_rows)
        step, exploration = self.state.global_step, self.args.exploration
        fewest = fewest_segments(self.args.seed, step, rows, exploration, max_segments)
        done = (steps >= max_segments) | solver.halts(outputs.halt_logits)
        return done & (steps >= torch.from_numpy(fewest).to(steps))


class _RowsKeeper(CheckpointCallback):
    """Writes the rows under way into every checkpoint."""

    def __init__(self, rows: PersistentRows) -> None:
        self.rows = rows

    def write(self, folder: Path, args: TrainingArguments, state: TrainerState) -> None:
        if not args.save_only_model:
            self.rows.save(folder, args.process_index)

    def fault_of(self, folder: Path, args: TrainingArguments) -> str | None:
        name = file_name(args.process_index)
        if (folder / name).is_file():
            return None
        return f"it has no {name}: it was written by another trainer or by fewer processes"


def puzzle_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute exact accuracy, cell accuracy and mean segments of what `prediction_step` returned."""
    predictions: Any = prediction.predictions
    (tokens, segments), labels = predictions, np.asarray(prediction.label_ids)
    is_labelled = labels != IGNORE_INDEX
    is_right = (np.asarray(tokens) == labels) & is_labelled
    return {
        "exact_accuracy": float((is_right | ~is_labelled).all(1).mean()),
        "cell_accuracy": float(is_right.sum() / max(1, is_labelled.sum())),
        "mean_segments": float(np.mean(segments)),
    }
