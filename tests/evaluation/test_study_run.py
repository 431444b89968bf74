"""A study runs, goes on where it was interrupted, and refuses runs of another study."""

import json
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import yaml

from hf_loop import LoopedForCausalLM
from hf_loop.evaluation import study_run
from hf_loop.evaluation.study import make_study
from hf_loop.evaluation.study_plan import Plan, depth_shares, plan_arm, plan_study, run_recipe_of
from hf_loop.evaluation.study_results import StudyRuns, read_run, run_settings
from hf_loop.evaluation.study_run import missing_keys, run_one, run_study
from hf_loop.trainer.recipe import load_recipe

from .study_example import STUDY, small_runs, small_study


@pytest.fixture(scope="module")
def plans():
    return plan_study(small_study())


def test_equal_compute_gives_cheaper_steps_more_of_them(plans):
    looped, once = plans["addition", "looped"], plans["addition", "once"]
    assert looped.num_steps == 3 and looped.num_parameters == once.num_parameters
    assert once.num_steps > 3
    assert once.training_flops == pytest.approx(looped.training_flops, rel=0.5 / 3)


def test_depths_are_those_that_the_run_draws(tmp_path):
    training = {"loop_sampling": "uniform", "min_loops": 1, "max_loops": 3, "num_backprop_loops": 2}
    arms = STUDY["arms"] | {"looped": {"model": {"config": {"num_loops": 2}}, "training": training}}
    recipe = run_recipe_of(small_study(arms=arms), "addition", "looped", 0, 300, tmp_path)
    model = LoopedForCausalLM.config_class(num_loops=2)
    shares = depth_shares(type("Model", (), {"config": model}), recipe.training)
    assert {dict(depth)["num_loops"] for depth in shares} == {1, 2, 3}
    assert all(dict(depth)["num_backprop_loops"] == min(2, dict(depth)["num_loops"]) for depth in shares)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share == pytest.approx(1 / 3, abs=0.1) for share in shares.values())


def test_the_recipe_of_a_run_is_a_recipe(tmp_path):
    recipe = run_recipe_of(small_study(), "addition", "once", 7, 11, tmp_path / "run")
    assert (recipe.training.max_steps, recipe.training.seed, recipe.data.num_train_rows) == (11, 7, 44)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.source))
    assert load_recipe(path).source == recipe.source
    with pytest.raises(ValueError, match="tasks.addition with arms.looped: .*num_loops"):
        arms = {"looped": {"model": {"config": {"num_loops": "many"}}}}
        run_recipe_of(small_study(arms=arms), "addition", "looped", 0, None, tmp_path)
    with pytest.raises(ValueError, match="training.max_steps must be a positive integer, got None"):
        run_recipe_of(small_study(base=STUDY["base"] | {"training": {}}), "addition", "once", 0, None, tmp_path)


def test_a_run_is_measured_once(plans, tmp_path, monkeypatch):
    study = small_study(seeds=[0])
    key = study.run_keys()[0]
    folder = key.folder(tmp_path)
    plan = vars(plans[key.task, key.arm])
    assert run_one(study.source, key, plan, str(folder)) is None
    run = read_run(folder)
    assert run.loops == [1, 2, 4] and run.reading_loops == 2 and len(run.state_growth) == 4
    assert {cell.difficulty: cell.num_rows for cell in run.cells} == {2: 2, 3: 2, 4: 2}
    assert not list(folder.glob("checkpoint-*"))
    assert [left.arm for left in missing_keys(study, tmp_path, plans)] == ["once"]
    # the same seed trains and measures the same
    again = tmp_path / "again"
    run_one(study.source, key, plan, str(again))
    assert read_run(again).cells == run.cells
    # killed after training: nothing is trained again
    (folder / "measured.json").unlink()
    monkeypatch.setattr(study_run, "run_recipe_of", None)
    assert run_one(study.source, key, plan, str(folder)) is None
    assert read_run(folder).cells == run.cells


def test_a_run_of_other_settings_is_refused(plans, tmp_path):
    study = small_study(seeds=[0])
    key = study.run_keys()[0]
    folder = key.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "measured.json").write_text("{")
    with pytest.raises(ValueError, match=r"measured.json is not valid JSON"):
        missing_keys(study, tmp_path, plans)
    run_one(study.source, key, vars(plans[key.task, key.arm]), str(tmp_path / "elsewhere"))
    (folder / "measured.json").write_text((tmp_path / "elsewhere" / "measured.json").read_text())
    base = STUDY["base"] | {"training": STUDY["base"]["training"] | {"learning_rate": 0.5}}
    with pytest.raises(ValueError, match=r"training.learning_rate 0.001 there, 0.5 here\); use another folder"):
        missing_keys(small_study(seeds=[0], base=base), tmp_path, plans)


def test_a_run_that_was_trained_or_begun_with_other_settings_is_refused(plans, tmp_path):
    study = small_study(seeds=[0])
    key = study.run_keys()[0]
    folder = key.folder(tmp_path)
    run_one(study.source, key, vars(plans[key.task, key.arm]), str(folder))
    (folder / "measured.json").unlink()
    base = STUDY["base"] | {"training": STUDY["base"]["training"] | {"learning_rate": 0.5}}
    changed = small_study(seeds=[0], base=base)
    assert missing_keys(study, tmp_path, plans) == study.run_keys()
    with pytest.raises(
        ValueError, match=r"recipe.yaml was measured with .*training.learning_rate 0.001 there, 0.5 here"
    ):
        missing_keys(changed, tmp_path, plans)
    # what is trained does not depend on what is measured
    assert missing_keys(
        small_study(seeds=[0], tasks={"addition": STUDY["tasks"]["addition"] | {"num_test_rows": 9}}), tmp_path, plans
    )
    # as a kill during training leaves it
    (folder / "checkpoint-2").mkdir()
    (folder / "recipe.yaml").rename(folder / "checkpoint-2" / "recipe.yaml")
    with pytest.raises(ValueError, match=r"checkpoint-2/recipe.yaml .*training.learning_rate 0.001 there"):
        missing_keys(changed, tmp_path, plans)


@pytest.mark.parametrize("place", ["test_options", "task_options", "training", "backbone"])
def test_a_setting_that_was_taken_away_is_another_setting(plans, tmp_path, place):
    values = json.loads(json.dumps(STUDY))
    mappings = {
        "test_options": values["tasks"]["addition"]["test_options"],
        "task_options": values["tasks"]["addition"]["task_options"],
        "training": values["base"]["training"],
        "backbone": values["base"]["model"]["backbone"],
    }
    mappings[place]["seed_of_old"] = 4
    key = small_study().run_keys()[0]
    old = run_settings(make_study(values), key, plans[key.task, key.arm])
    run = small_runs().runs[tuple(key)]
    run.settings = old
    folder = key.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "measured.json").write_text(json.dumps(run.to_dict()))
    assert read_run(folder, old).cells == run.cells
    with pytest.raises(ValueError, match="seed_of_old 4 there, None here"):
        missing_keys(small_study(), tmp_path, plans)


def test_another_checkpoint_under_the_same_name_is_measured_anew(tmp_path):
    settings = []
    for name, weights in (("a", b"one"), ("b", b"two")):
        folder = tmp_path / name / "final"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
        study = small_study(arms={"final": {"checkpoint": str(folder)}})
        settings.append(run_settings(study, study.run_keys()[0], Plan("addition", "final", 0, 0, 0.0)))
        moved = folder.rename(tmp_path / name / "moved")
        study.arms["final"].checkpoint = str(moved)
        assert run_settings(study, study.run_keys()[0], Plan("addition", "final", 0, 0, 0.0)) == settings[-1]
    assert settings[0] != settings[1]


def test_batches_whose_gradients_are_added_up_are_all_counted(plans, tmp_path):
    training = STUDY["base"]["training"]
    base = STUDY["base"] | {"training": training | {"gradient_accumulation_steps": 3}}
    study = small_study(base=base)
    plan = plan_arm(study, "addition", "looped")
    assert plan.flops_per_step == pytest.approx(3 * plans["addition", "looped"].flops_per_step, rel=0.02)
    recipe = run_recipe_of(study, "addition", "looped", 0, None, tmp_path)
    # new rows throughout
    assert recipe.data.num_train_rows == 3 * training["max_steps"] * training["per_device_train_batch_size"]
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        study = small_study(base=STUDY["base"] | {"training": training | {name: "many"}})
        with pytest.raises(ValueError, match=f"training.{name} must be a positive integer, got 'many'"):
            run_recipe_of(study, "addition", "looped", 0, None, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("exit_objective", "expected"), ("distillation_weight", 0.5)])
def test_training_whose_compute_is_not_counted_is_refused(name, value):
    training = STUDY["base"]["training"] | {name: value}
    study = small_study(base=STUDY["base"] | {"training": training})
    with pytest.raises(ValueError, match=f"tasks.addition with arms.looped: .*{name}"):
        plan_study(study)


@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), KeyError("x"), ValueError("no")])
def test_whatever_stops_a_run_is_noted_until_it_is_measured(plans, tmp_path, monkeypatch, error):
    study = small_study(seeds=[0])
    key = study.run_keys()[0]
    plan, folder = vars(plans[key.task, key.arm]), key.folder(tmp_path)

    def fails(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(study_run, "train_and_measure", fails)
        reason = run_one(study.source, key, plan, str(folder))
    named = {"RuntimeError": "RuntimeError: out of memory", "KeyError": "KeyError: 'x'", "ValueError": "no"}
    assert reason == named[type(error).__name__]
    assert StudyRuns.load(study, tmp_path).failures == {tuple(key): reason}
    run = small_runs().runs[tuple(key)]
    monkeypatch.setattr(study_run, "train_and_measure", lambda *args: run)
    assert run_one(study.source, key, plan, str(folder)) is None
    assert not StudyRuns.load(study, tmp_path).failures


def test_a_process_that_was_killed_is_a_failure_of_what_it_ran():
    future = Future()
    future.set_exception(BrokenProcessPool("A process was terminated abruptly"))
    assert "a process of the study was killed" in study_run._outcome(future)


def test_an_interrupted_run_goes_on_from_its_checkpoint(plans, tmp_path, monkeypatch):
    study = small_study(seeds=[0])
    key = study.run_keys()[1]
    plan, folder = vars(plans[key.task, key.arm]), tmp_path / "run"
    run_one(study.source, key, plan, str(tmp_path / "whole"))
    saved = study_run.run_recipe_of

    def stops_half_way(*args):
        recipe = saved(*args)
        recipe.training.max_steps //= 2
        recipe.training.save_steps = 1
        return recipe

    monkeypatch.setattr(study_run, "run_recipe_of", stops_half_way)
    study_run.train(study, key, plans[key.task, key.arm], folder)
    # as a kill leaves it: a checkpoint, and no model
    for name in ("trained.json", "config.json", "model.safetensors"):
        (folder / name).unlink()
    assert list(folder.glob("checkpoint-*"))
    monkeypatch.setattr(study_run, "run_recipe_of", saved)
    assert run_one(study.source, key, plan, str(folder)) is None
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == plan["num_steps"]


@pytest.mark.timeout(300)
def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    arms = {"once": STUDY["arms"]["once"], "diverging": {"training": {"learning_rate": 1e30}}}
    study = small_study(seeds=[0], arms=arms)
    plans = plan_study(study)
    finished = list(run_study(study, tmp_path, plans, num_processes=1))
    errors = {result.key.arm: result.error for result in finished}
    assert errors["once"] is None and "finite" in errors["diverging"]
    runs = StudyRuns.load(study, tmp_path)
    assert runs.num_missing == 1 and len(runs.of("addition", "once")) == 1
    assert runs.failures == {("addition", "diverging", 0): errors["diverging"]}
