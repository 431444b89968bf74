"""The plan of a study: how many steps each arm trains on each task, how many parameters it has, what it computes.

The compute of a training step is counted by [`training_flops`] at the depths that the run will draw, over a sample of
the rows that it will read.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.checks import whole_number
from ..trainer.arguments import LoopTrainingArguments
from ..trainer.data import TrainingData, load_training_data
from ..trainer.family_model import build_model, new_config
from ..trainer.recipe import Recipe, make_recipe
from .flops import steps_at_equal_compute, training_flops
from .study import Study, laid_over


# batches whose lengths are looked at
SAMPLED_BATCHES = 16
# of a run that keeps its learning rate up to the end, the share of the steps over which it falls
DECAY_SHARE = 0.3
# arguments of training that compute other answers too, a teacher's or those after every loop, and what turns them off
UNCOUNTED = {"exit_objective": "none", "distillation_weight": 0.0}


@dataclass(frozen=True)
class Plan:
    """What every run of an arm on a task comes to, whatever its seed.

    Args:
        task (`str`): name of the task.
        arm (`str`): name of the arm.
        num_parameters (`int`): parameters of the model.
        num_steps (`int`): training steps.
        flops_per_step (`float`): floating-point operations of a training step, forward and backward, in the mean.
    """

    task: str
    arm: str
    num_parameters: int
    num_steps: int
    flops_per_step: float

    @property
    def training_flops(self) -> float:
        """Floating-point operations of the whole training."""
        return self.num_steps * self.flops_per_step


def plan_study(study: Study) -> dict[tuple[str, str], Plan]:
    """Plan all arms on all tasks, by task and arm.

    Raises:
        ValueError: if a recipe of the study does not hold; the message names the task and the arm.
    """
    plans = {}
    for task in study.tasks:
        reference = plan_arm(study, task, str(study.reference))
        for arm, section in study.arms.items():
            plan = reference if arm == study.reference else plan_arm(study, task, arm)
            if section.steps == "equal_compute" and arm != study.reference:
                num_steps = steps_at_equal_compute(
                    round(reference.flops_per_step), reference.num_steps, round(plan.flops_per_step)
                )
                plan = replace(plan, num_steps=num_steps)
            plans[task, arm] = plan
    return plans


def plan_arm(study: Study, task: str, arm: str) -> Plan:
    """Plan one arm on one task, for as many steps as its recipe says."""
    checkpoint = study.arms[arm].checkpoint
    if checkpoint is not None:
        # its size is known when it is read
        return Plan(task, arm, 0, 0, 0.0)
    recipe = run_recipe_of(study, task, arm, study.seeds[0], None, Path("unused"))
    num_batch = recipe.training.per_device_train_batch_size
    # as many rows as are looked at; a curriculum over the rows spreads over them alike
    data_section = replace(recipe.data, num_train_rows=SAMPLED_BATCHES * num_batch)
    with _named(task, arm):
        data = load_training_data(data_section, default_tokenizer=None, seed=recipe.training.seed)
        model = model_on_meta(recipe, data)
        flops = mean_training_flops(model, recipe, data)
    return Plan(task, arm, model.num_parameters(), recipe.training.max_steps, flops)


def run_recipe_of(study: Study, task: str, arm: str, seed: int, num_steps: int | None, output_dir: Path) -> Recipe:
    """Make the recipe of one run.

    Args:
        study (`Study`): the study.
        task, arm (`str`): which run.
        seed (`int`): its seed.
        num_steps (`int`, *optional*): its steps, by default those of the study.
        output_dir (`Path`): its folder.

    Raises:
        ValueError: if the sections do not make a recipe; the message names the task and the arm.
    """
    sections = study.sections(task, arm)
    training = sections["training"]
    num_steps = training.get("max_steps") if num_steps is None else num_steps
    with _named(task, arm):
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"training.max_steps must be a positive integer, got {num_steps!r}")
    training = laid_over(_quiet_training(num_steps), training) | {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": num_steps,
    }
    if training["lr_scheduler_type"] == "warmup_stable_decay" and "lr_scheduler_kwargs" not in training:
        training["lr_scheduler_kwargs"] = {"num_decay_steps": max(1, int(DECAY_SHARE * num_steps))}
    num_rows = num_steps
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        count = whole_number(training.get(name, 1))
        with _named(task, arm):
            if count is None or count < 1:
                raise ValueError(f"training.{name} must be a positive integer, got {training[name]!r}")
        num_rows *= count
    data = sections["data"] | {"num_train_rows": num_rows}
    sections = {"model": sections["model"], "data": data, "training": training}
    with _named(task, arm):
        return make_recipe(sections, sections)


@contextmanager
def _named(task: str, arm: str) -> Generator[None]:
    """Name the run in the message of a `ValueError` inside the `with` block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"tasks.{task} with arms.{arm}: {error}") from error


def _quiet_training(num_steps: int) -> dict[str, Any]:
    """The arguments of training that every run has unless the study says otherwise."""
    return {
        "per_device_train_batch_size": 64,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": max(1, num_steps // 30),
        "weight_decay": 0.01,
        # rows are new ones throughout, and a curriculum is in their order
        "train_sampling_strategy": "sequential",
        "logging_steps": max(1, num_steps // 10),
        "save_steps": max(1, num_steps // 4),
        "save_total_limit": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def model_on_meta(recipe: Recipe, data: TrainingData) -> PreTrainedModel:
    """Make the model of a recipe without weights, if it is a new one."""
    if recipe.model.pretrained is not None:
        return build_model(recipe.model, data.tokenizer)
    config = new_config(recipe.model, data.tokenizer)
    record = recipe.model.record
    with torch.device("meta"):
        return record.classes[record.loader](config)


def mean_training_flops(model: PreTrainedModel, recipe: Recipe, data: TrainingData) -> float:
    """Count the floating-point operations of a training step of a recipe, in the mean over its depths and rows.

    Raises:
        ValueError: if the recipe trains with what is not counted.
    """
    args: Any = recipe.training
    for name, off in UNCOUNTED.items():
        value = getattr(args, name, off)
        if value != off:
            raise ValueError(f"training.{name} must be {off!r} in a study, which does not count it, got {value!r}")
    num_rows = args.per_device_train_batch_size
    row_lengths = [len(row) for row in data.train_dataset["input_ids"]]
    # a batch is as long as its longest row
    lengths = Counter(max(row_lengths[start : start + num_rows]) for start in range(0, len(row_lengths), num_rows))
    total = 0.0
    for depth, share in depth_shares(model, args).items():
        for length, count in lengths.items():
            flops = training_flops(model, length, batch_size=num_rows, **dict(depth))
            total += share * flops * count / lengths.total()
    # a step adds up the gradients of several batches
    return total * args.gradient_accumulation_steps


def depth_shares(model: Any, args: Any) -> dict[tuple[tuple[str, int], ...], float]:
    """Return the share of the steps at each depth that a run draws, the depths as arguments of `forward`."""
    # other arguments train models without loops
    if not isinstance(args, LoopTrainingArguments):
        return {(): 1.0}
    schedule = args.depth_schedule(model.config.num_loops)
    counts: Counter = Counter()
    for step in range(args.max_steps):
        depth = schedule.depth_at(step, args.max_steps)
        counts[tuple((name, value) for name, value in vars(depth).items() if value is not None)] += 1
    return {depth: count / args.max_steps for depth, count in counts.items()}
