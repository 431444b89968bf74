"""Training of looped models on `transformers.Trainer`, and what the other families add to the stock one."""

from .arguments import LoopTrainingArguments
from .depth import DepthSchedule, StepDepth
from .state_passing import RandomStatePassing
from .trainer import LoopTrainer


__all__ = ["DepthSchedule", "LoopTrainer", "LoopTrainingArguments", "RandomStatePassing", "StepDepth"]
