"""Two gloo processes give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from .tiny import tiny_model


ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "training" / "recipes" / "looped" / "text_pretraining.yaml"
COMMON = ["training.max_steps=4", "training.use_muon=false"]
# with a learned initial state, which has no gradient in steps whose first loop is cut off
FROM_SCRATCH = ["model.config.state_init=learned", "training.num_backprop_loops=1"]
FROM_SCRATCH += ["training.activation_checkpointing=true"]
HEALING = [
    "model.backbone=null",
    "model.config.injection=none",
    "training.distillation_weight=0.5",
    "data.streaming=true",
]


def run(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("variant", [FROM_SCRATCH, HEALING], ids=["from scratch", "healing"])
def test_accelerate_launch_on_two_processes_equals_one(tmp_path, monkeypatch, variant):
    if variant is HEALING:
        config = tiny_model().config.backbone_config
        config.update({"vocab_size": 257, "num_hidden_layers": 5, "max_position_embeddings": 64})
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        variant = [*variant, f"model.pretrained={tmp_path / 'base'}"]

    def overrides(folder, batch_size):
        fields = [f"output_dir={tmp_path / folder}", f"per_device_train_batch_size={batch_size}", "disable_tqdm=true"]
        return COMMON + variant + [f"training.{field}" for field in fields]

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launcher += ["--config_file", ROOT / "training" / "accelerate" / "ddp.yaml", ROOT / "training" / "train.py"]
    sets = [part for override in overrides("two", 2) for part in ("--set", override)]
    output = run(*launcher, RECIPE, "--debug", *sets)
    assert output.splitlines()[-1] == str(tmp_path / "two")
    assert output.count("training loss") == 1  # reported by one process only

    monkeypatch.chdir(ROOT)
    run_recipe(load_recipe(RECIPE, overrides("one", 4), debug=True))
    one, two = (
        json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")
    )
    for name, tolerance in (("mean_loops", 0), ("loss", 1e-5), ("grad_norm", 1e-3), ("eval_loss", 1e-4)):
        values, expected = ([entry[name] for entry in log if name in entry] for log in (two, one))
        assert len(values) == (1 if name == "eval_loss" else 4)
        assert values == pytest.approx(expected, rel=tolerance), name
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two")]
    for weight, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-4)


def test_fsdp2_gradients_equal_one_process():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(*torchrun, ROOT / "tests" / "trainer" / "fsdp2_worker.py")
