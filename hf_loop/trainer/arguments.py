"""Training arguments of looped models."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from ..models import ExitObjective
from ..models.checks import whole_number
from .depth import DepthSchedule, LoopSampling


TrainedExits = Literal["none", "expected", "batch_average", "gain", "distillation"]
# arguments of exits, with the objectives that read them
EXIT_WEIGHTS = {
    "exit_entropy_weight": ("expected", "batch_average"),
    "exit_gain_slope": ("gain",),
    "exit_gain_threshold": ("gain",),
    "exit_distillation_weight": ("distillation",),
}


class SafeTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` without the token of the Hub in the file that `Trainer` saves them to."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "hub_token": None}


@dataclass
class LoopTrainingArguments(SafeTrainingArguments):
    """`transformers.TrainingArguments` and the depth of each training step.

    Every field of `TrainingArguments` keeps its meaning. Evaluation runs at the model's `config.num_loops`; the
    sampled depth is never written to the config.

    Args:
        loop_sampling (`str`): how the depth of an optimizer step is drawn: `"fixed"`, `"uniform"` or
            `"poisson_lognormal"` (see [`~hf_loop.trainer.depth.DepthSchedule`] for the formulas).
        mean_loops (`float`, *optional*): the depth of `"fixed"`, the mean of the Poisson rate of `"poisson_lognormal"`
            (whose depth has mean `mean_loops + 1`), and for `"uniform"` the mean that sets `max_loops` when that is
            not given. `None` takes the model's `config.num_loops`.
        min_loops (`int`, *optional*): the lowest depth that may be drawn. `None` means 1.
        max_loops (`int`, *optional*): the highest depth that may be drawn. `None` means no bound for
            `"poisson_lognormal"` and `2 * mean_loops - min_loops` for `"uniform"`.
        loop_sigma (`float`): standard deviation of the logarithm of the rate of `"poisson_lognormal"`.
        num_backprop_loops (`int`, *optional*): truncated back-propagation: only the last so many loops carry gradient.
            `None` means all.
        loop_curriculum (`float`): the fraction of training over which the depth grows to its full value; 0 turns it
            off. Published values are 0.6 to 0.75.
        loop_start (`float`): the fraction of training before which every step runs one loop.
        use_muon (`bool`): train the matrices of the layers with Muon and everything else with AdamW.
        muon_learning_rate (`float`, *optional*): learning rate of Muon. `None` takes `learning_rate`: the update is
            scaled to the size of AdamW's (see [`~hf_loop.trainer.optimizer.build_muon_adamw`]), so one rate can serve
            both.
        distillation_weight (`float`): share of the divergence from a teacher in the training loss; the rest is the
            loss on the labels. 0 turns distillation off, 1 leaves the teacher alone.
        distillation_temperature (`float`): both distributions are flattened by this number before they are compared.
        exit_objective (`str`): what training steps minimize: `"none"`, the loss after the last loop, or one of
            `"expected"`, `"batch_average"`, `"gain"` and `"distillation"`, which train the model, or its exit gate, to
            leave the loop early (see [`~hf_loop.ExitObjective`] for the formulas).
        exit_entropy_weight (`float`): weight of the entropy in `"expected"` and `"batch_average"`.
        exit_gain_slope (`float`): how sharply a gain counts as one in `"gain"`.
        exit_gain_threshold (`float`): the gain, in nats, that is worth a loop in `"gain"`.
        exit_distillation_weight (`float`): weight of the divergence in `"distillation"`.

    Raises:
        ValueError: if a field has a value that makes no sense; the message names the field and the value.
    """

    loop_sampling: LoopSampling = field(
        default="poisson_lognormal", metadata={"help": "How the depth of a training step is drawn."}
    )
    mean_loops: float | None = field(
        default=None, metadata={"help": "Mean of the drawn depth. Default: the model's config.num_loops."}
    )
    min_loops: int | None = field(default=None, metadata={"help": "Lowest depth that may be drawn. Default: 1."})
    max_loops: int | None = field(default=None, metadata={"help": "Highest depth that may be drawn."})
    loop_sigma: float = field(default=0.5, metadata={"help": "Spread of the Poisson-lognormal rate."})
    num_backprop_loops: int | None = field(
        default=None, metadata={"help": "How many loops, counted from the last, carry gradient. Default: all."}
    )
    loop_curriculum: float = field(
        default=0.0, metadata={"help": "Fraction of training over which the depth grows; 0 turns it off."}
    )
    loop_start: float = field(
        default=0.0, metadata={"help": "Fraction of training before which every step runs one loop."}
    )
    use_muon: bool = field(
        default=False, metadata={"help": "Muon for the matrices of the layers, AdamW for everything else."}
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of Muon. Default: learning_rate."}
    )
    distillation_weight: float = field(
        default=0.0, metadata={"help": "Share of the divergence from a teacher in the loss; 0 turns it off."}
    )
    distillation_temperature: float = field(
        default=2.0, metadata={"help": "Temperature of both distributions in distillation."}
    )

    exit_objective: TrainedExits = field(
        default="none", metadata={"help": "What trains the model, or its exit gate, to leave the loop early."}
    )
    exit_entropy_weight: float = field(
        default=ExitObjective.entropy_weight, metadata={"help": "Weight of the entropy of exits."}
    )
    exit_gain_slope: float = field(
        default=ExitObjective.gain_slope, metadata={"help": "How sharply a loop's gain counts as one."}
    )
    exit_gain_threshold: float = field(
        default=ExitObjective.gain_threshold, metadata={"help": "The gain, in nats, that is worth a loop."}
    )
    exit_distillation_weight: float = field(
        default=ExitObjective.distillation_weight,
        metadata={"help": "Weight of the divergence of shorter depths from the full one."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loop_sampling not in get_args(LoopSampling):
            raise ValueError(
                f"loop_sampling must be one of {', '.join(get_args(LoopSampling))}, got {self.loop_sampling!r}"
            )
        for name in ("min_loops", "max_loops", "num_backprop_loops"):
            setattr(self, name, _checked_count(name, getattr(self, name)))
        _check_number("mean_loops", self.mean_loops, low=1, optional=True)
        _check_number("loop_sigma", self.loop_sigma, low=0)
        _check_number("loop_curriculum", self.loop_curriculum, low=0, high=1)
        _check_number("loop_start", self.loop_start, low=0, high=1)
        _check_number("muon_learning_rate", self.muon_learning_rate, low=0, optional=True)
        _check_number("distillation_weight", self.distillation_weight, low=0, high=1)
        _check_number("distillation_temperature", self.distillation_temperature, low=0)
        if self.distillation_temperature == 0:
            raise ValueError(f"distillation_temperature must be above 0, got {self.distillation_temperature!r}")
        if self.exit_objective not in get_args(TrainedExits):
            raise ValueError(
                f"exit_objective must be one of {', '.join(get_args(TrainedExits))}, got {self.exit_objective!r}"
            )
        for name in EXIT_WEIGHTS:
            _check_number(name, getattr(self, name), low=0)
        self._check_fields_together()
        self._check_exit_objective()
        if self.num_backprop_loops is not None and self.ddp_find_unused_parameters is None:
            # a learned initial state has no gradient in a step whose first loop is cut off; `Trainer` would look for
            # such parameters only without checkpointing, because of the re-entrant kind, which LoopTrainer refuses
            self.ddp_find_unused_parameters = True

    def _check_fields_together(self) -> None:
        if self.min_loops is not None and self.max_loops is not None and self.max_loops < self.min_loops:
            raise ValueError(f"max_loops must be at least min_loops={self.min_loops}, got {self.max_loops}")
        if self.loop_sampling == "fixed":
            if self.mean_loops is not None and self.mean_loops != int(self.mean_loops):
                raise ValueError(f"mean_loops must be whole for loop_sampling='fixed', got {self.mean_loops}")
            for name in ("min_loops", "max_loops"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no meaning for loop_sampling='fixed', got {getattr(self, name)}")
        if self.loop_sampling == "uniform" and self.mean_loops is not None and self.max_loops is not None:
            raise ValueError(
                "mean_loops and max_loops both set the range of loop_sampling='uniform'; give one of them, got "
                f"mean_loops={self.mean_loops} and max_loops={self.max_loops}"
            )
        if self.muon_learning_rate is not None and not self.use_muon:
            raise ValueError(f"muon_learning_rate needs use_muon=True, got {self.muon_learning_rate}")
        optim = OptimizerNames(self.optim).value
        if self.use_muon and not optim.startswith("adamw_torch"):
            raise ValueError(f"use_muon pairs Muon with torch's AdamW and ignores optim, got optim={optim}")

    def _check_exit_objective(self) -> None:
        for name, kinds in EXIT_WEIGHTS.items():
            value = getattr(self, name)
            if self.exit_objective not in kinds and value != getattr(ExitObjective, name.removeprefix("exit_")):
                raise ValueError(
                    f"{name} is for exit_objective={' or '.join(kinds)}, got {value} and {self.exit_objective}"
                )
        if self.exit_objective != "none" and self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor must be 0 with exit_objective={self.exit_objective}, whose loss is on the "
                f"labels, got {self.label_smoothing_factor}"
            )
        if self.exit_objective == "gain" and self.distillation_weight:
            raise ValueError(
                "distillation_weight must be 0 with exit_objective=gain, which trains the exit gate alone, got "
                f"{self.distillation_weight}"
            )

    def objective(self) -> ExitObjective | None:
        """Make the objective that these arguments describe, `None` for the loss after the last loop."""
        if self.exit_objective == "none":
            return None
        weights = {name.removeprefix("exit_"): getattr(self, name) for name in EXIT_WEIGHTS}
        return ExitObjective(self.exit_objective, **weights)

    def depth_schedule(self, default_mean_loops: float) -> DepthSchedule:
        """Make the schedule that these arguments describe.

        Args:
            default_mean_loops (`float`): the mean where `mean_loops` is `None`: the model's `config.num_loops`.

        Raises:
            ValueError: if the mean lies below `min_loops` of `"uniform"`, so that no range has it as its middle.
        """
        mean_loops = default_mean_loops if self.mean_loops is None else self.mean_loops
        min_loops = 1 if self.min_loops is None else self.min_loops
        max_loops = self.max_loops
        if self.loop_sampling == "uniform" and max_loops is None:
            if mean_loops < min_loops:
                raise ValueError(f"min_loops must not be above the mean of {mean_loops} loops, got {min_loops}")
            max_loops = round(2 * mean_loops) - min_loops
        return DepthSchedule(
            sampling=self.loop_sampling,
            mean_loops=mean_loops,
            min_loops=min_loops,
            max_loops=max_loops,
            sigma=self.loop_sigma,
            num_backprop_loops=self.num_backprop_loops,
            curriculum=self.loop_curriculum,
            start=self.loop_start,
            seed=self.seed,
        )


def _checked_count(name: str, value: Any) -> int | None:
    number = whole_number(value)
    if value is not None and (number is None or number < 1):
        raise ValueError(f"{name} must be a positive integer or None, got {value!r}")
    return number


def _check_number(name: str, value: Any, low: float, high: float = math.inf, optional: bool = False) -> None:
    if value is None and optional:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        bounds = f"at least {low}" if math.isinf(high) else f"between {low} and {high}"
        raise ValueError(f"{name} must be a number {bounds}{' or None' if optional else ''}, got {value!r}")
