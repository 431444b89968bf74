"""Studies are read and checked, and what tasks and arms say is laid over the base."""

import pytest
import yaml

from hf_loop.evaluation.study import laid_over, load_study, make_study


STUDY = {
    "title": "Loops",
    "question": "Do they help?",
    "base": {
        "model": {"backbone": {"model_type": "llama", "hidden_size": 16}},
        "training": {"max_steps": 5, "learning_rate": 1e-3},
    },
    "tasks": {"shell_game": {"task_options": {"num_swaps": 4}, "training": {"max_steps": 7}}, "coin_flips": None},
    "arms": {
        "looped": {"model": {"config": {"num_loops": 3}}, "loops": [4, 1]},
        "deep": {"model": {"backbone": {"num_hidden_layers": 3}}, "training": {"learning_rate": 2e-3}},
    },
}


def test_sections_are_laid_over_each_other():
    study = make_study(STUDY)
    assert study.reference == "looped" and study.others == ["deep"]
    assert study.arms["looped"].loops == [1, 4]
    assert study.sections("shell_game", "deep") == {
        "model": {"backbone": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3}},
        "data": {"task": "shell_game", "task_options": {"num_swaps": 4}},
        "training": {"max_steps": 7, "learning_rate": 2e-3},
    }
    assert study.sections("coin_flips", "looped")["training"] == STUDY["base"]["training"]
    # the file is not changed by what is made of it
    assert "num_hidden_layers" not in STUDY["base"]["model"]["backbone"]


def test_every_seed_is_a_run_of_every_arm_on_every_task():
    keys = make_study(STUDY | {"seeds": [3, 5]}).run_keys()
    assert len(keys) == len(set(keys)) == 8
    assert {key.seed for key in keys} == {3, 5}


def test_mappings_are_merged_and_everything_else_is_replaced():
    assert laid_over({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 2}}) == {
        "a": {"b": 1, "c": [2]},
        "d": {"e": 2},
    }
    assert laid_over({"a": 1, "b": {"c": 2}}, {"a": None, "b": {"c": None}}) == {"b": {}}
    llama = {"backbone": {"model_type": "llama", "hidden_size": 16}}
    assert laid_over(llama, {"backbone": {"model_type": "llama", "num_hidden_layers": 2}}) == {
        "backbone": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2}
    }
    assert laid_over(llama, {"backbone": {"model_type": "gpt2"}}) == {"backbone": {"model_type": "gpt2"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, r"seeds must be distinct integers, got \[1, 1\]"),
        ({"seeds": []}, "seeds must not be empty"),
        ({"reference": "looped_"}, "unknown arm 'looped_' in reference; did you mean 'looped'"),
        ({"arms": {"a": {"modell": {}}}}, "unknown field 'modell' in arms.a; did you mean 'model'"),
        ({"arms": {"a": {"votes": [0]}}}, "votes must hold integers of at least 1"),
        ({"arms": {"a": {"steps": "more"}}}, "'same' | 'equal_compute'"),
        ({"tasks": {"a": {"num_test_rows": 0}}}, "num_test_rows must be at least 1, got 0"),
        ({"tasks": ["a"]}, "'tasks' must be a mapping"),
        ({"base": {"modle": {}}}, "unknown key 'modle' in base; did you mean 'model'"),
        ({"titel": "x"}, "unknown field 'titel' in the study"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_study(STUDY | change)


def test_a_file_is_read_with_overrides(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"debug": {"base.training.max_steps": 1}}))
    assert load_study(path, debug=True).base["training"]["max_steps"] == 1
    assert load_study(path, ["tasks.shell_game.num_test_rows=9"]).tasks["shell_game"].num_test_rows == 9
    path.write_text("title: x\n")
    with pytest.raises(ValueError, match=f"{path}: 'tasks' must be a mapping"):
        load_study(path)
