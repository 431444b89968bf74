"""Training of looped models on `transformers.Trainer`."""

from .arguments import LoopTrainingArguments
from .depth import DepthSchedule, StepDepth
from .trainer import LoopTrainer


__all__ = ["DepthSchedule", "LoopTrainer", "LoopTrainingArguments", "StepDepth"]
