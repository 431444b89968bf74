"""Recipes of feedback models: what is trained, saved, resumed and refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_loop import retrofit
from hf_loop.trainer.family_model import build_model, check_model
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe
from hf_loop.trainer.sections import ModelSection
from hf_loop.trainer.state_passing import FILE_NAME

from .test_distributed import ROOT, run
from .tiny import tiny_model


BACKBONE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
FEEDBACK = {"block_size": 12, "num_memory_segments": 0, "feedback_length": 2, "random_state_passing": 0.8}
TASK_OPTIONS = {"min_blocks": 2, "max_blocks": 3, "block_size": 12, "group_size": 4}
LORA = ("model.lora_rank=2",)


@pytest.fixture
def make_recipe(tmp_path):
    sections = {
        "model": {"family": "feedback", "backbone": BACKBONE, "config": FEEDBACK},
        "data": {"task": "passkey", "task_options": TASK_OPTIONS, "num_train_rows": 32, "num_eval_rows": 4},
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


@pytest.mark.parametrize("overrides", [(), LORA], ids=["whole", "lora"])
def test_a_run_saves_a_model_that_loads(make_recipe, tmp_path, overrides):
    result = run_recipe(make_recipe(*overrides))
    run_folder = tmp_path / "run"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run_folder), AutoTokenizer.from_pretrained(run_folder)
    assert (type(model).__name__, model.config.feedback_length) == ("FeedbackForCausalLM", 2)
    assert model.num_parameters() == result.num_parameters  # an adapter is merged
    assert model.config.use_cache
    assert len(tokenizer) == model.config.vocab_size == 70
    assert not list(run_folder.rglob("*.tmp"))
    assert (run_folder / "checkpoint-6" / FILE_NAME).is_file()
    assert load_recipe(run_folder / "recipe.yaml").model.config == FEEDBACK
    copy = run_recipe(load_recipe(run_folder / "recipe.yaml", [f"training.output_dir={tmp_path / 'again'}"]))
    assert (copy.train_loss, copy.eval_loss) == (result.train_loss, result.eval_loss)


@pytest.mark.parametrize("overrides", [(), LORA], ids=["whole", "lora"])
def test_resuming_repeats_the_run(make_recipe, tmp_path, overrides):
    run_recipe(make_recipe(*overrides))
    cut = tmp_path / "cut"
    run_recipe(make_recipe(f"training.output_dir={cut}", *overrides))
    for path in cut.iterdir():
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_recipe(make_recipe(f"training.output_dir={cut}", "training.resume_from_checkpoint=true", *overrides))
    assert losses(cut) == losses(tmp_path / "run")
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run", cut)]
    for weight, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_lora_trains_the_first_vectors_of_the_memory(make_recipe, tmp_path):
    run_recipe(make_recipe("training.max_steps=4", *LORA))
    adapters = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (2, 4)]
    vectors = [adapter["base_model.model.model.feedback_embedding.weight"] for adapter in adapters]
    assert not vectors[0].equal(vectors[1])
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run").model.feedback_embedding.weight
    torch.testing.assert_close(saved.detach(), vectors[1], rtol=0, atol=0)


def test_two_processes_equal_one(make_recipe, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    sets = [f"training.output_dir={tmp_path / 'two'}", "training.per_device_train_batch_size=2", *LORA]
    arguments = [part for override in sets for part in ("--set", override)]
    run(*torchrun, ROOT / "training" / "train.py", tmp_path / "recipe.yaml", *arguments)
    run_recipe(make_recipe(*LORA))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), rel=1e-5)


def test_a_pretrained_model_gets_a_memory_and_a_feedback_model_goes_on(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(tiny_model().config.backbone_config)
    base.save_pretrained(tmp_path / "base")
    section = ModelSection("feedback", pretrained=str(tmp_path / "base"), config=FEEDBACK)
    check_model(section)
    model = build_model(section, tokenizer=[0] * 32)
    assert model.config.block_size == 12
    assert model.lm_head.weight.equal(base.lm_head.weight)

    retrofit(base, "feedback", **FEEDBACK).save_pretrained(tmp_path / "feedback")
    section = ModelSection("feedback", pretrained=str(tmp_path / "feedback"), config={"random_state_passing": 0.5})
    check_model(section)
    model = build_model(section, tokenizer=[0] * 32)
    assert (model.config.block_size, model.config.random_state_passing) == (12, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.family=fedback",
            "model.family must be one of feedback, hierarchical, puzzle, looped, sleep, got 'fedback'",
        ),
        ("model.config.blok_size=4", "unknown key 'blok_size' in model.config; did you mean 'block_size'?"),
        ("model.config.vocab_size=4", "unknown key 'vocab_size' in model.config"),
        ("model.num_loops=4", "unknown key 'num_loops' in section 'model'"),
        ("model.config.num_loops=4", "unknown key 'num_loops' in model.config"),
        ("model.lora_rank=-1", "model.lora_rank must be at least 0 and at most 65536, got -1"),
        ("model.lora_alpha=8", "model.lora_alpha needs model.lora_rank of at least 1, got 8"),
        ("training.loop_sampling=fixed", "unknown key 'loop_sampling' in section 'training'"),
        ("data.answer_column=a", "data.answer_column is for text that is packed before training, got 'a'"),
        ("data.repeated_segment=4", "data.repeated_segment is for text that is packed before training, got 4"),
        ("data.tokenizer=bytes", "data.tokenizer cannot be chosen for a task, got 'bytes'"),
        ("model.pretrained=x", "model: give exactly one of model.backbone, model.preset, model.pretrained"),
    ],
)
def test_bad_recipes_name_the_key(make_recipe, override, message):
    with pytest.raises(ValueError) as error:
        make_recipe(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fields_that_the_config_refuses(make_recipe):
    with pytest.raises(ValueError, match="`feedback_length` must not be negative, got -1"):
        run_recipe(make_recipe("model.config.feedback_length=-1"))
    with pytest.raises(ValueError, match=r"model.backbone.model_type must be a model type .*, got 'lama'"):
        run_recipe(make_recipe("model.backbone.model_type=lama"))
    with pytest.raises(ValueError, match="must hold the tokenizer's 70 tokens, got vocab_size=69"):
        run_recipe(make_recipe("model.backbone.vocab_size=69"))


def test_text_with_answers_and_repeated_segments(make_recipe, tmp_path):
    rows = [{"question": f"{i}? ", "answer": f"number {i}"} for i in range(40)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = ["data.task=null", "data.task_options={}", "data.tokenizer=bytes", "data.block_size=32"]
    text += [f"data.files=[{tmp_path / 'answers.jsonl'}]", "data.text_column=question", "data.repeated_segment=8"]
    result = run_recipe(make_recipe(*text, "data.answer_column=answer", "training.max_steps=2"))
    assert 0 < result.train_loss < result.eval_loss < 10  # a tenth of the weight on every third label
    with pytest.raises(ValueError, match="data.answer_column must be one of question, answer, got 'anser'"):
        run_recipe(make_recipe(*text, "data.answer_column=anser", f"training.output_dir={tmp_path / 'new'}"))


def test_weights_are_for_feedback_models(tmp_path):
    path = tmp_path / "recipe.yaml"
    sections = {
        "model": {"backbone": BACKBONE},
        "data": {"files": ["a.txt"], "tokenizer": "bytes", "repeated_segment": 8},
        "training": {"output_dir": "x", "use_cpu": True},
    }
    path.write_text(yaml.safe_dump(sections))
    with pytest.raises(ValueError, match="data.repeated_segment needs model.family=feedback"):
        load_recipe(path)


def test_passkey_as_text_takes_a_tokenizer(make_recipe, tmp_path):
    options = "data.task_options={min_filler: 20, max_filler: 40, key_digits: 3}"
    overrides = ["data.task=passkey_text", options, "training.max_steps=1"]
    with pytest.raises(ValueError, match="data.tokenizer must be given when the model is not pretrained"):
        run_recipe(make_recipe(*overrides))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    result = run_recipe(make_recipe(*overrides, "data.tokenizer=bytes"))
    assert 0 < result.train_loss < 10


def test_the_command_line_trains_it(tmp_path):
    command = ["train", ROOT / "training" / "recipes" / "feedback" / "passkey.yaml", "--debug"]
    program = [sys.executable, "-m", "hf_loop.cli", *command, "--set", f"training.output_dir={tmp_path / 'run'}"]
    done = subprocess.run([str(part) for part in program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
