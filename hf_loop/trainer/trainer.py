"""`transformers.Trainer` with a depth for every step."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from ..models.modeling_looped import LoopedPreTrainedModel
from .arguments import LoopTrainingArguments
from .depth import DepthSchedule, StepDepth
from .optimizer import build_muon_adamw, undecayed_parameter_names


class LoopTrainer(Trainer):
    """A `Trainer` that draws the number of loops anew for every optimizer step.

    All micro-batches of a step, on all ranks, run at the step's depth. The draw depends on `args.seed`, the step and
    the length of the run alone, so a resumed run repeats the depths of an uninterrupted one of the same length.
    Evaluation and prediction run at the model's `config.num_loops`. The mean depth since the last log entry is logged
    as `mean_loops` beside the loss.

    It takes the arguments of `Trainer`. To train another trainer's way at sampled depth, put this class in front:
    `class LoopSFTTrainer(LoopTrainer, SFTTrainer)`, with arguments that derive from both argument classes.

    Args:
        model: A looped model, bare or wrapped by PEFT: its `forward` takes `num_loops` and `num_backprop_loops`, and
            its config has `num_loops`.
        args: A [`LoopTrainingArguments`].

    Raises:
        ValueError: `args` is of another class; the model is not looped; or re-entrant activation checkpointing
            is asked for with more than one loop.
    """

    args: LoopTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, LoopTrainingArguments):
            raise ValueError(f"args must be LoopTrainingArguments, got {type(self.args).__name__}")
        looped_model = self._looped_model()
        # the config tells, not the signature: any model's **kwargs would swallow num_loops
        num_loops = getattr(looped_model.config, "num_loops", None)
        if num_loops is None:
            raise ValueError(
                f"model must have num_loops in its config, got {type(looped_model).__name__}; "
                "hf_loop.retrofit turns a plain causal language model into a looped one"
            )
        self._depth_schedule: DepthSchedule = self.args.depth_schedule(num_loops)
        self._refuse_reentrant_checkpointing()
        self._depths_since_log: dict[int, int] = {}

    def depth_at(self, step: int) -> StepDepth:
        """The depth of optimizer step `step` (from 0) of the run under way.

        Raises:
            ValueError: Called before `train`, when the length of the run is not known.
        """
        if self.state.max_steps < 1:
            raise ValueError("the depth of a step depends on the length of the run, known once train() has begun")
        return self._depth_schedule.depth_at(step, self.state.max_steps)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`Trainer.training_step` at the step's depth."""
        depth = self.depth_at(self.state.global_step)
        self._depths_since_log[self.state.global_step] = depth.num_loops
        inputs = {**inputs, "num_loops": depth.num_loops}
        if depth.num_backprop_loops is not None:
            inputs["num_backprop_loops"] = depth.num_backprop_loops
        return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`, with `mean_loops` beside the training loss."""
        if "loss" in logs and self._depths_since_log:
            logs["mean_loops"] = sum(self._depths_since_log.values()) / len(self._depths_since_log)
            self._depths_since_log.clear()
        if "train_loss" in logs:  # the last entry of a run: steps that were not logged do not count in the next
            self._depths_since_log.clear()
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """`Trainer.create_model_card`, then the looped model's own card, with what `Trainer` wrote as a section."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            folder = str(self.args.output_dir)
            self._looped_model().write_model_card(folder, self.hub_model_id or Path(folder).name)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """`Trainer.create_optimizer`, or Muon and AdamW with `use_muon`."""
        if self.args.use_muon and self.optimizer is None:
            self.optimizer_cls_and_kwargs = (self._muon_factory, {})
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: those that `Trainer` names, without vectors and the injection."""
        exempt = undecayed_parameter_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in exempt]

    def _muon_factory(self) -> Any:
        # `Trainer` calls the factory, then calls what it returns with the model
        def build(model: nn.Module) -> torch.optim.Optimizer:
            decay_parameters = set(self.get_decay_parameter_names(model))
            return build_muon_adamw(model, self.args, self.args.muon_learning_rate, decay_parameters)

        return build

    def _looped_model(self) -> LoopedPreTrainedModel:
        # only PEFT's wrapper has this method
        get_base_model = getattr(self.model, "get_base_model", None)
        return cast(LoopedPreTrainedModel, self.model if get_base_model is None else get_base_model())

    def _refuse_reentrant_checkpointing(self) -> None:
        # under DDP the re-entrant form marks a reused weight ready once per loop, which fails deep inside autograd
        options = self.args.activation_checkpointing_kwargs
        reentrant = isinstance(options, dict) and options.get("use_reentrant", False)
        loops_once = self._depth_schedule.sampling == "fixed" and self._depth_schedule.mean_loops == 1
        if self.args.activation_checkpointing and reentrant and not loops_once:
            raise ValueError(
                "gradient_checkpointing_kwargs (activation_checkpointing_kwargs) must have use_reentrant=False where "
                "layers run in more than one loop, got use_reentrant=True"
            )
