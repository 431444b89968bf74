"""Training of looped models on `transformers.Trainer`, and what the other families add to the stock one."""

from .adam_atan2 import AdamATan2
from .arguments import LoopTrainingArguments
from .card_trainer import CardTrainer
from .deep_supervision import DeepSupervisionArguments, DeepSupervisionTrainer
from .depth import DepthSchedule, StepDepth
from .ema import WeightAveraging
from .state_passing import RandomStatePassing
from .trainer import LoopTrainer


__all__ = [
    "AdamATan2",
    "CardTrainer",
    "DeepSupervisionArguments",
    "DeepSupervisionTrainer",
    "DepthSchedule",
    "LoopTrainer",
    "LoopTrainingArguments",
    "RandomStatePassing",
    "StepDepth",
    "WeightAveraging",
]


def __dir__() -> list[str]:
    return __all__
