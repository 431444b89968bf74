"""The recipes and launch configurations in `training/`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, LlamaForCausalLM

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from ..trainer.tiny import tiny_model


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "recipes").glob("*/*.yaml"))
LAUNCH_CONFIGS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert {"shell_game", "text_pretraining", "smollm2_135m", "smollm2_135m_cpu"} <= names
    assert {"python_source", "python_source_16", "python_source_gate"} <= names
    assert {"passkey", "smollm2_135m_lora"} <= names
    assert {"associative_recall", "rule_110", "successor", "smollm2_135m_sleep"} <= names
    assert "delayed_shell_game" in names
    assert {"sudoku_4x4", "sudoku_6x6", "sudoku_9x9", "maze_30x30"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_without_its_debug_variant(path):
    recipe = load_recipe(path, ["training.bf16=false", "training.use_cpu=true"])  # the rest is for a GPU
    assert recipe.training.output_dir == f"outputs/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_killed_run_of_a_recipe_loses_little(path):
    args = load_recipe(path, ["training.bf16=false", "training.use_cpu=true"]).training
    assert args.save_strategy == "steps" and args.save_total_limit == 2
    data, training = (yaml.safe_load(path.read_text())[name] for name in ("data", "training"))
    rows = data.get("num_train_rows", 0) * training.get("num_train_epochs", 1)
    steps = training.get("max_steps") or rows // training["per_device_train_batch_size"]
    # of text nobody knows the number of rows before it is read
    assert args.save_steps <= (steps / 2 if steps else 100)
    assert load_recipe(path, debug=True).training.save_strategy == "no"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_debug_variant_runs_two_steps(path, tmp_path):
    output_dir = tmp_path / "run"
    recipe = load_recipe(path, [f"training.output_dir={output_dir}", "training.disable_tqdm=true"], debug=True)
    run_recipe(recipe)
    state = json.loads((output_dir / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert len([entry for entry in state["log_history"] if "loss" in entry]) == 2
    section, tokenizer = yaml.safe_load(path.read_text())["model"], AutoTokenizer.from_pretrained(output_dir)
    is_puzzle = section["family"] == "puzzle"
    model = (AutoModelForMaskedLM if is_puzzle else AutoModelForCausalLM).from_pretrained(output_dir)
    if is_puzzle:
        assert model.config.model_type == "hierarchical_puzzle"
        (evaluation,) = [entry for entry in state["log_history"] if "eval_loss" in entry]
        assert 0 <= evaluation["eval_exact_accuracy"] <= evaluation["eval_cell_accuracy"] <= 1
    elif section["family"] == "feedback":
        assert model.config.model_type == "feedback_lm"
        assert model.config.random_state_passing == section["config"].get("random_state_passing", 0)
        if section.get("backbone", {}).get("model_type") == "looped_lm":
            assert model.config.backbone_config.model_type == "looped_lm"
            assert model.config.num_loops == section["backbone"]["num_loops"]
    elif section["family"] == "sleep":
        assert model.config.model_type == "sleep_lm"
        assert model.config.num_sleep_passes == section["config"]["num_sleep_passes"]
    else:
        assert len([entry for entry in state["log_history"] if "mean_loops" in entry]) == 2
        assert model.config.model_type == "looped_lm"
        assert model.config.num_loops == section["config"]["num_loops"]
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.parametrize(("name", "injection_weights"), [("smollm2_135m", 2 * 32 * 32), ("smollm2_135m_cpu", 0)])
def test_healing_recipes_distill_a_checkpoint(tmp_path, name, injection_weights):
    config = tiny_model().config.backbone_config
    config.update({"vocab_size": 257, "num_hidden_layers": 3, "max_position_embeddings": 64})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    overrides = [
        f"training.output_dir={tmp_path / 'run'}",
        "training.disable_tqdm=true",
        "training.distillation_weight=0.5",
        "model.backbone=null",
        f"model.pretrained={tmp_path / 'base'}",
    ]
    recipe = load_recipe(ROOT / "training" / "recipes" / "retrofit" / f"{name}.yaml", overrides, debug=True)
    result = run_recipe(recipe)
    assert result.num_parameters == LlamaForCausalLM(config).num_parameters() + injection_weights
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.num_core_layers == 1


def test_lora_recipe_gives_a_checkpoint_a_memory(tmp_path):
    config = tiny_model().config.backbone_config
    config.update({"vocab_size": 257, "max_position_embeddings": 64})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    overrides = [
        f"training.output_dir={tmp_path / 'run'}",
        "training.disable_tqdm=true",
        "model.backbone=null",
        f"model.pretrained={tmp_path / 'base'}",
    ]
    path = ROOT / "training" / "recipes" / "feedback" / "smollm2_135m_lora.yaml"
    result = run_recipe(load_recipe(path, overrides, debug=True))
    assert result.num_parameters == LlamaForCausalLM(config).num_parameters() + 4 * 32
    model, base = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("run", "base"))
    weights = dict(model.model.backbone.named_parameters())
    changed = {name for name, weight in base.model.named_parameters() if not weight.equal(weights[name])}
    # merged into the linear maps, and nothing else moved
    assert changed == {name for name in weights if name.endswith("proj.weight")}


def test_text_of_the_small_healing_recipe(tmp_path):
    script = ROOT / "training" / "recipes" / "retrofit" / "python_docs.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    reference = (tmp_path / "topics.txt").read_text()
    texts = [json.loads(line)["text"] for line in (tmp_path / "docstrings.jsonl").read_text().splitlines()]
    assert len(texts) > 300
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert "\n\n".join(row["answer"] for row in answers) == "\n\n".join(texts)
    assert all(row["question"].startswith("What is ") for row in answers)
    words = reference.lower().split()
    shared = {tuple(words[start : start + 13]) for start in range(len(words) - 12)}
    for text in "\n\n".join(texts).lower().split("\n\n"):
        words = text.split()
        assert not any(tuple(words[start : start + 13]) in shared for start in range(len(words) - 12)), text


def test_text_and_tokenizer_of_the_python_source_recipes(tmp_path):
    script = ROOT / "training" / "recipes" / "looped" / "python_source.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    texts = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    held_out = (tmp_path / "held_out.txt").read_text()
    assert len(texts) > 300 and len(set(texts)) == len(texts)
    assert len(held_out) > sum(map(len, texts)) / 100
    trained_on = {paragraph.strip() for text in texts for paragraph in text.split("\n\n")}
    assert not trained_on & {paragraph.strip() for paragraph in held_out.split("\n\n")}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == 10_240
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.decode(tokenizer(held_out).input_ids) == held_out


def test_the_python_source_model_has_ten_million_parameters():
    section = yaml.safe_load((ROOT / "training" / "recipes" / "looped" / "python_source.yaml").read_text())["model"]
    config = LoopedConfig(backbone_config={**section["backbone"], "vocab_size": 10_240}, **section["config"])
    with torch.device("meta"):
        assert LoopedForCausalLM(config).num_parameters() > 10_000_000


@pytest.mark.parametrize("path", LAUNCH_CONFIGS, ids=lambda path: path.stem)
def test_launch_configuration_is_read_by_accelerate(path):
    config = load_config_from_file(str(path))
    expected = {
        "cpu": DistributedType.NO,
        "ddp": DistributedType.MULTI_GPU,
        "fsdp2": DistributedType.FSDP,
        "deepspeed_zero2": DistributedType.DEEPSPEED,
    }
    assert config.distributed_type == expected[path.stem]
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_reshard_after_forward"] is False
    if path.stem == "deepspeed_zero2":
        assert config.deepspeed_config["zero_stage"] == 2


def test_launch_configurations_reach_the_processes():
    # what `accelerate launch` puts into the environment of every process
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    def environment(name, prepare):
        path = str(ROOT / "training" / "accelerate" / f"{name}.yaml")
        args = launch_command_parser().parse_args(["--config_file", path, "training/train.py"])
        args, defaults, _ = _validate_launch_command(args)
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return prepare(args)

    fsdp2 = environment("fsdp2", prepare_multi_gpu_env)
    assert (fsdp2["ACCELERATE_USE_FSDP"], fsdp2["FSDP_VERSION"]) == ("true", "2")
    assert (fsdp2["FSDP_RESHARD_AFTER_FORWARD"], fsdp2["ACCELERATE_MIXED_PRECISION"]) == ("false", "bf16")
    _, zero2 = environment("deepspeed_zero2", prepare_deepspeed_cmd_env)
    assert (zero2["ACCELERATE_USE_DEEPSPEED"], zero2["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "2")
    assert zero2["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
