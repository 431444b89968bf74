"""The studies in `training/`: every run is a recipe whose rows and model can be made, and each runs, tiny."""

import pytest

from hf_loop.evaluation import study_run
from hf_loop.evaluation.study import load_study
from hf_loop.evaluation.study_plan import plan_study, run_recipe_of
from hf_loop.evaluation.study_report import write_report
from hf_loop.evaluation.study_results import StudyRuns

from ..documents import ROOT


STUDIES = sorted((ROOT / "training" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_is_a_recipe(path, tmp_path):
    for debug in (False, True):
        study = load_study(path, debug=debug)
        for task in study.tasks:
            for arm in study.arms:
                if study.arms[arm].checkpoint is None:
                    recipe = run_recipe_of(study, task, arm, 0, None, tmp_path)
                    assert recipe.training.max_steps <= 2 or not debug
    assert study.limits and (len(study.seeds) >= 3 or all(arm.checkpoint for arm in study.arms.values()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_rows_and_models_of_a_study_can_be_made(path):
    study = load_study(path)
    for task in study.tasks:
        study_run.check_test_rows(study, task)
    plans = plan_study(study)
    assert all(plan.flops_per_step for plan in plans.values() if study.arms[plan.arm].checkpoint is None)


@pytest.mark.slow
@pytest.mark.timeout(600)
# the checkpoints of the other are not here; tests/cli/test_study.py runs it with others
@pytest.mark.parametrize(
    "path", [path for path in STUDIES if path.stem != "ifm_looped_lm"], ids=lambda path: path.stem
)
def test_a_study_runs(path, tmp_path):
    study = load_study(path, debug=True)
    study.seeds = study.source["seeds"] = [0]
    finished = list(study_run.run_study(study, tmp_path, plan_study(study), num_processes=2))
    assert [result.error for result in finished] == [None] * len(study.run_keys())
    write_report(StudyRuns.load(study, tmp_path), tmp_path, "hf-loop study run")
