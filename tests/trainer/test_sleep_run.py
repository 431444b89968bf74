"""Recipes of sleep models: what is trained, saved, resumed and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_loop import retrofit
from hf_loop.trainer.family_model import build_model, check_model
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe
from hf_loop.trainer.sections import ModelSection

from .tiny import tiny_model


BACKBONE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
SLEEP = {"sleep_window": 12, "num_sleep_passes": 2, "fast_weight_layers": [0, 1]}
TASK_OPTIONS = {"min_blocks": 2, "max_blocks": 3, "block_size": 12, "group_size": 4}


@pytest.fixture
def make_recipe(tmp_path):
    sections = {
        "model": {"family": "sleep", "backbone": BACKBONE, "config": SLEEP},
        "data": {
            "task": "associative_recall",
            "task_options": TASK_OPTIONS,
            "num_train_rows": 32,
            "num_eval_rows": 4,
        },
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return lambda *overrides: load_recipe(path, overrides)


def losses(folder):
    log = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_run_saves_a_model_that_loads(make_recipe, tmp_path):
    result = run_recipe(make_recipe())
    run_folder = tmp_path / "run"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run_folder), AutoTokenizer.from_pretrained(run_folder)
    assert (type(model).__name__, model.config.sleep_window) == ("SleepForCausalLM", 12)
    assert model.num_parameters() == result.num_parameters
    assert model.config.use_cache
    assert len(tokenizer) == model.config.vocab_size == 134
    assert load_recipe(run_folder / "recipe.yaml").model.config == SLEEP
    copy = run_recipe(load_recipe(run_folder / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"]))
    assert (copy.train_loss, copy.eval_loss) == (result.train_loss, result.eval_loss)


@pytest.mark.parametrize("override", ["training.seed=42", "training.activation_checkpointing=true"])
def test_resuming_repeats_the_run(make_recipe, tmp_path, override):
    run_recipe(make_recipe(override))
    cut = tmp_path / "cut"
    run_recipe(make_recipe(f"training.output_dir={cut}", override))
    for path in cut.iterdir():
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_recipe(make_recipe(f"training.output_dir={cut}", "training.resume_from_checkpoint=true", override))
    assert losses(cut) == losses(tmp_path / "run")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run", cut)]
    for weight, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_a_pretrained_model_is_made_to_sleep_and_a_sleep_model_goes_on(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(tiny_model().config.backbone_config)
    base.save_pretrained(tmp_path / "base")
    fields = {"sleep_window": 8, "fast_weight_layers": [0]}
    section = ModelSection("sleep", pretrained=str(tmp_path / "base"), config=fields)
    check_model(section)
    model = build_model(section, tokenizer=[0] * 32)
    assert (model.config.sleep_window, model.config.memory_layers) == (8, [0])
    assert model.lm_head.weight.equal(base.lm_head.weight)

    retrofit(base, "sleep", **fields).save_pretrained(tmp_path / "sleep")
    section = ModelSection(
        "sleep", pretrained=str(tmp_path / "sleep"), config={"num_sleep_passes": 4, "fast_weight_layers": [0]}
    )
    check_model(section)
    model = build_model(section, tokenizer=[0] * 32)
    assert (model.config.sleep_window, model.config.num_sleep_passes) == (8, 4)
    section = ModelSection("sleep", pretrained=str(tmp_path / "sleep"), config={"fast_weight_layers": [0, 1]})
    with pytest.raises(ValueError, match="the tensors of .* are not those of SleepForCausalLM"):
        build_model(section, tokenizer=[0] * 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.family=slep", "model.family must be one of feedback, hierarchical, puzzle, looped, sleep, got 'slep'"),
        ("model.config.sleep_windw=4", "unknown key 'sleep_windw' in model.config; did you mean 'sleep_window'?"),
        ("model.config.vocab_size=4", "unknown key 'vocab_size' in model.config"),
        ("model.num_loops=4", "unknown key 'num_loops' in section 'model'"),
        ("model.config.num_loops=4", "unknown key 'num_loops' in model.config"),
        ("training.loop_sampling=fixed", "unknown key 'loop_sampling' in section 'training'"),
        ("model.pretrained=x", "model: give exactly one of model.backbone, model.preset, model.pretrained"),
    ],
)
def test_bad_recipes_name_the_key(make_recipe, override, message):
    with pytest.raises(ValueError) as error:
        make_recipe(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fields_that_the_config_refuses(make_recipe):
    with pytest.raises(ValueError, match="`sleep_window` must be an integer of at least 1, got -1"):
        run_recipe(make_recipe("model.config.sleep_window=-1"))
    with pytest.raises(ValueError, match="must hold the tokenizer's 134 tokens, got vocab_size=69"):
        run_recipe(make_recipe("model.backbone.vocab_size=69"))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("rule_110", "{num_steps: 2, num_states: 2, state_size: 6}"),
        ("successor", "{max_hops: 2, max_nodes: 4, num_edge_blocks: 2, block_size: 6}"),
    ],
)
def test_the_other_tasks_train_too(make_recipe, task, options):
    overrides = [f"data.task={task}", f"data.task_options={options}", "model.config.sleep_window=6"]
    result = run_recipe(make_recipe(*overrides, "model.config.sleep_over_labels=false", "training.max_steps=1"))
    assert 0 < result.train_loss < 10


def test_weights_are_for_feedback_models(make_recipe):
    with pytest.raises(ValueError, match="data.repeated_segment needs model.family=feedback, .* and a sleep model"):
        make_recipe(
            "data.task=null", "data.task_options={}", "data.files=[a.txt]", "data.tokenizer=bytes",
            "data.repeated_segment=8",
        )  # fmt: skip
