"""`transformers.Trainer` with a depth for every step."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import PreTrainedModel

from .arguments import LoopTrainingArguments
from .card_trainer import CardTrainer
from .depth import DepthSchedule, StepDepth
from .distillation import distillation_loss
from .optimizer import build_muon_adamw, undecayed_parameter_names
from .state_norms import StateNorms, loop_states_of


# what the teacher is given of a batch: neither the labels nor the student's depth
TEACHER_INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")

# TRL's trainers whose steps get prompts and sample what follows them
SAMPLING_TRAINERS = ("GRPOTrainer", "RLOOTrainer")


def is_trainer_with_loss(trainer_class: type) -> bool:
    """Return whether a class is one of TRL's trainers that make a loss of their own of what the model returns."""
    return trainer_class.__module__.startswith("trl.") and "compute_loss" in vars(trainer_class)


class LoopTrainer(CardTrainer):
    """A `Trainer` that draws the number of loops anew for every optimizer step.

    All micro-batches of a step, on all ranks, run at the step's depth. The draw depends on `args.seed`, the step and
    the length of the run alone, so a resumed run repeats the depths of an uninterrupted one of the same length.
    Evaluation and prediction run at the model's `config.num_loops`. The mean depth since the last log entry is logged
    as `mean_loops` beside the loss.

    With a teacher, the training loss is `(1 - w) CE + w T^2 KL(teacher_T || student_T)`, where w is
    `args.distillation_weight` and T `args.distillation_temperature`; evaluation keeps the loss on the labels. The
    teacher is a model of its own because training changes the weights that it shares with the student. (Where only
    adapters are trained, the student at one loop with its adapters off would say the same without a second copy.)

    With `args.exit_objective` the training loss is that of a [`~hf_loop.ExitObjective`], over the loops of the step's
    depth. `"gain"` trains the exit gate and freezes everything else. Evaluation keeps the loss after the last loop.

    Beside `mean_loops`, the mean norm of the state after loops 1, 2, 4, ... is logged as `state_norm_1`, ... Both this
    and `args.exit_objective` are for the loss that the model computes, which TRL's trainers do not ask for.

    With `args.torch_compile`, a looped model is compiled in parts (see `LoopedForCausalLM.compile`), which serve all
    depths.

    It takes the arguments of `Trainer`. To train another trainer's way at sampled depth, put this class in front:
    `class LoopSFTTrainer(LoopTrainer, SFTTrainer)`, with arguments that derive from both argument classes. A reference
    model, as `DPOTrainer` has one, runs each step at the policy's depth. Trainers that sample what they train on
    (`GRPOTrainer`, `RLOOTrainer`) do that for several steps at once and are refused: use them as they are, at the
    depth of the model's configuration.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a looped model, bare or wrapped by PEFT: its `forward` takes
            `num_loops` and `num_backprop_loops`, and its config has `num_loops`.
        args (`LoopTrainingArguments`): the arguments of training.
        teacher (`PreTrainedModel`, *optional*): a causal language model with the student's vocabulary: the pretrained
            model before its layers were looped. It is frozen, moved to the device of training, and never saved. Any
            floating type will do; bfloat16 halves its memory.

    Raises:
        ValueError: if `args` is of another class; the trainer samples what it trains on; the model is not looped, or a
            reference model is of another depth; re-entrant activation checkpointing is asked for with more than one
            loop; `args.distillation_weight` asks for a teacher that is not there or does not fit; or
            `args.exit_objective` is one that the model, or a trainer that computes a loss of its own, cannot have.
    """

    args: LoopTrainingArguments

    def __init__(self, *args: Any, teacher: PreTrainedModel | None = None, **kwargs: Any) -> None:
        self._refuse_sampling_trainers()
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, LoopTrainingArguments):
            raise ValueError(f"args must be LoopTrainingArguments, got {type(self.args).__name__}")
        looped_model = self.recurrent_model
        # the config tells, not the signature: any model's **kwargs would swallow num_loops
        num_loops = getattr(looped_model.config, "num_loops", None)
        if num_loops is None:
            raise ValueError(
                f"model must have num_loops in its config, got {type(looped_model).__name__}; "
                "hf_loop.retrofit turns a plain causal language model into a looped one"
            )
        self._check_reference_model(num_loops)
        self._depth_schedule: DepthSchedule = self.args.depth_schedule(num_loops)
        self._refuse_reentrant_checkpointing()
        self._compile_in_parts()
        self._depths_since_log: dict[int, int] = {}
        self._state_norms = StateNorms()
        self._takes_model_loss = not [kind for kind in type(self).__mro__ if is_trainer_with_loss(kind)]
        self._objective = self.args.objective()
        self._prepare_exit_gate()
        self._teacher = self._frozen_teacher(teacher) if self.args.distillation_weight > 0 else None

    def depth_at(self, step: int) -> StepDepth:
        """The depth of optimizer step `step` (from 0) of the run under way.

        Raises:
            ValueError: if called before `train`, when the length of the run is not known.
        """
        if self.state.max_steps < 1:
            raise ValueError("the depth of a step depends on the length of the run, known once train() has begun")
        return self._depth_schedule.depth_at(step, self.state.max_steps)

    def begin_attempt(self) -> None:
        super().begin_attempt()
        self._depths_since_log.clear()
        self._state_norms.clear()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """`Trainer.training_step` at the step's depth.

        Raises:
            TypeError: if what the trainer's data loader gives is no dictionary of what the model is called with.
        """
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"inputs of {type(self).__name__} must be the model's, by name, for LoopTrainer to add the depth, got "
                f"{type(inputs).__name__}"
            )
        depth = self.depth_at(self.state.global_step)
        self._depths_since_log[self.state.global_step] = depth.num_loops
        return super().training_step(model, self._with_depth(inputs, depth), num_items_in_batch)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count the operations of a step at its depth, without those of a teacher."""
        return super().floating_point_ops(self._with_depth(inputs, self.depth_at(self.state.global_step)))

    def _with_depth(self, inputs: Mapping[str, Any], depth: StepDepth) -> dict[str, Any]:
        inputs = {**inputs, "num_loops": depth.num_loops}
        if depth.num_backprop_loops is not None:
            inputs["num_backprop_loops"] = depth.num_backprop_loops
        if self._objective is not None:
            inputs["exit_objective"] = self._objective
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss as `Trainer`; in training with a teacher, its weighted sum with the distillation loss."""
        if not model.training or (self._teacher is None and not self._takes_model_loss):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._takes_model_loss and "output_loop_states" in self.recurrent_model.argument_names:
            inputs = {**inputs, "output_loop_states": True}
        labels: Any = inputs.get("labels")  # label smoothing takes them out of the inputs
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        states = loop_states_of(outputs)
        if states is not None:
            self._state_norms.add(states, inputs.get("attention_mask"))
        if self._teacher is None:
            return (loss, outputs) if return_outputs else loss
        with torch.no_grad():
            teacher_inputs = {name: inputs[name] for name in TEACHER_INPUTS if name in inputs}
            teacher_logits = self._teacher(**teacher_inputs, use_cache=False).logits
        divergence = distillation_loss(
            outputs.logits, teacher_logits, labels, self.args.distillation_temperature, num_items_in_batch
        )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # the count is that of all processes, whose gradients are then averaged: the scale of the other loss
            divergence = divergence * (self.accelerator.num_processes // self.get_tp_size())
        weight = self.args.distillation_weight
        loss = (1 - weight) * loss + weight * divergence
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer`, with `mean_loops` and the norms of the state beside the training loss."""
        if "loss" in logs and self._depths_since_log:
            logs["mean_loops"] = sum(self._depths_since_log.values()) / len(self._depths_since_log)
            self._depths_since_log.clear()
            logs |= self._state_norms.logs()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of `Trainer`, or Muon and AdamW with `use_muon`."""
        if self.args.use_muon and self.optimizer is None:
            self.optimizer_cls_and_kwargs = (self._muon_factory, {})
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay: those that `Trainer` names, without vectors and the injection."""
        exempt = undecayed_parameter_names(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in exempt]

    def _muon_factory(self) -> Any:
        # `Trainer` calls the factory, then calls what it returns with the model
        def build(model: nn.Module) -> torch.optim.Optimizer:
            decay_parameters = set(self.get_decay_parameter_names(model))
            return build_muon_adamw(model, self.args, self.args.muon_learning_rate, decay_parameters)

        return build

    def _compile_in_parts(self) -> None:
        """Compile the parts of a model that has graphs for all depths. accelerate would compile the whole model, anew
        at every depth."""
        if not getattr(self.recurrent_model, "compiles_in_parts", False):
            return
        plugin: Any = self.accelerator.state.dynamo_plugin
        options = {} if plugin.backend == DynamoBackend.NO else plugin.to_kwargs()
        if self.args.torch_compile:
            # accelerate's state may be that of an earlier trainer
            options["backend"] = self.args.torch_compile_backend
            options["mode"] = self.args.torch_compile_mode
        if options:
            self.recurrent_model.compile(**options)
            plugin.backend = DynamoBackend.NO

    def _frozen_teacher(self, teacher: PreTrainedModel | None) -> Any:
        if teacher is None:
            raise ValueError(f"distillation_weight={self.args.distillation_weight} needs a teacher, got None")
        vocab_size = self.recurrent_model.config.vocab_size
        if teacher.config.vocab_size != vocab_size:
            raise ValueError(
                f"teacher must have the model's vocabulary of {vocab_size} tokens, got {teacher.config.vocab_size}"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"distillation_weight needs one process per GPU (accelerate launch), got {self.args.n_gpu} GPUs in one"
            )
        return cast(Any, teacher.requires_grad_(False).eval()).to(self.args.device)

    def _prepare_exit_gate(self) -> None:
        """Check that the model can have the objective, and freeze what it does not train."""
        model, kind = self.recurrent_model, self.args.exit_objective
        has_gate = getattr(model.config, "exit_gate", False)
        trains_gate = self._objective is not None and self._objective.uses_gate
        if has_gate and not trains_gate and self.args.ddp_find_unused_parameters is None:
            # the gate has no gradient
            self.args.ddp_find_unused_parameters = True
        if self._objective is None:
            return
        if "exit_objective" not in model.argument_names or not self._takes_model_loss:
            raise ValueError(
                f"exit_objective={kind} is for looped causal language models and the loss that they compute, got a "
                f"{type(model).__name__} and {type(self).__name__}"
            )
        if trains_gate and not has_gate:
            raise ValueError(f"exit_objective={kind} needs a model with exit_gate=True, got False")
        if kind != "gain":
            return
        if model is not self.model:
            raise ValueError(
                "exit_objective=gain trains the exit gate, which an adapter does not store: merge the adapter into "
                "the model first"
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("exit_gate" in name.split("."))

    def _refuse_sampling_trainers(self) -> None:
        for trainer_class in type(self).__mro__:
            if trainer_class.__name__ in SAMPLING_TRAINERS:
                name = trainer_class.__name__
                raise ValueError(
                    f"LoopTrainer cannot stand in front of {name}, which samples for several steps at once and scores "
                    f"at one depth: use {name} itself, with a model whose num_loops is that depth"
                )

    def _check_reference_model(self, num_loops: int) -> None:
        reference = getattr(self, "ref_model", None)
        if reference is None:
            return
        of_reference = getattr(reference.config, "num_loops", None)
        if of_reference != num_loops:
            raise ValueError(
                f"ref_model must have the model's num_loops, {num_loops}, got {of_reference}: give one, or load both "
                f"by path with model_init_kwargs={{'num_loops': {num_loops}}}"
            )

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
