"""LoopTrainingArguments: validation, the schedule they describe, and HfArgumentParser."""

import pytest
from transformers import HfArgumentParser

from hf_loop import LoopTrainingArguments

from .tiny import tiny_arguments


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loop_sampling", "gaussian"),
        ("mean_loops", 0),
        ("mean_loops", "4"),
        ("mean_loops", True),
        ("mean_loops", float("nan")),
        ("min_loops", 0),
        ("min_loops", 1.5),
        ("max_loops", -1),
        ("max_loops", True),
        ("num_backprop_loops", 0),
        ("num_backprop_loops", "x"),
        ("loop_sigma", -0.1),
        ("loop_curriculum", 1.5),
        ("loop_curriculum", "half"),
        ("muon_learning_rate", -1.0),
        ("distillation_weight", 1.5),
        ("distillation_weight", -0.5),
        ("distillation_weight", None),
        ("distillation_temperature", 0.0),
        ("distillation_temperature", -1),
    ],
)
def test_bad_values_name_the_field_and_the_value(tmp_path, field, value):
    with pytest.raises(ValueError, match=field) as error:
        tiny_arguments(tmp_path, use_muon=True, **{field: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_loops": 5, "max_loops": 4}, "max_loops must be at least min_loops=5, got 4"),
        ({"loop_sampling": "fixed", "mean_loops": 2.5}, "mean_loops must be whole"),
        ({"loop_sampling": "fixed", "max_loops": 4}, "max_loops has no meaning for loop_sampling='fixed', got 4"),
        ({"loop_sampling": "uniform", "mean_loops": 4, "max_loops": 8}, "mean_loops=4 and max_loops=8"),
        ({"muon_learning_rate": 1e-3}, "muon_learning_rate needs use_muon=True"),
        ({"use_muon": True, "optim": "sgd"}, "optim=sgd"),
    ],
)
def test_fields_that_contradict_each_other(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **fields)


def test_schedule(tmp_path):
    schedule = tiny_arguments(tmp_path, seed=3, num_backprop_loops=2, loop_curriculum=0.6).depth_schedule(4)
    assert (schedule.sampling, schedule.mean_loops, schedule.min_loops, schedule.max_loops) == (
        "poisson_lognormal",
        4,
        1,
        None,
    )
    assert (schedule.seed, schedule.num_backprop_loops, schedule.curriculum, schedule.sigma) == (3, 2, 0.6, 0.5)
    assert tiny_arguments(tmp_path, mean_loops=7).depth_schedule(4).mean_loops == 7


def test_truncation_lets_ddp_look_for_parameters_without_gradient(tmp_path):
    assert tiny_arguments(tmp_path).ddp_find_unused_parameters is None
    assert tiny_arguments(tmp_path, num_backprop_loops=2).ddp_find_unused_parameters is True
    given = tiny_arguments(tmp_path, num_backprop_loops=2, ddp_find_unused_parameters=False)
    assert given.ddp_find_unused_parameters is False


def test_uniform_range_around_the_mean(tmp_path):
    schedule = tiny_arguments(tmp_path, loop_sampling="uniform").depth_schedule(4)
    assert (schedule.min_loops, schedule.max_loops) == (1, 7)
    schedule = tiny_arguments(tmp_path, loop_sampling="uniform", mean_loops=6, min_loops=3).depth_schedule(4)
    assert (schedule.min_loops, schedule.max_loops) == (3, 9)
    with pytest.raises(ValueError, match="min_loops must not be above the mean of 4 loops, got 5"):
        tiny_arguments(tmp_path, loop_sampling="uniform", min_loops=5).depth_schedule(4)


def test_argument_parser_reads_yaml_and_command_line(tmp_path):
    recipe = tmp_path / "arguments.yaml"
    recipe.write_text(f"output_dir: {tmp_path}\nloop_sampling: uniform\nmin_loops: 2\nmax_loops: 6\nuse_cpu: true\n")
    (args,) = HfArgumentParser(LoopTrainingArguments).parse_yaml_file(recipe)
    assert (args.loop_sampling, args.min_loops, args.max_loops) == ("uniform", 2, 6)

    line = f"--output_dir {tmp_path} --mean_loops 6 --num_backprop_loops 3 --use_muon --use_cpu"
    (args,) = HfArgumentParser(LoopTrainingArguments).parse_args_into_dataclasses(line.split())
    assert (args.mean_loops, args.num_backprop_loops, args.use_muon) == (6, 3, True)
