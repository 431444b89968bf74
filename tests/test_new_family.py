"""A family of two files dropped into a copy of `hf_loop/models`, and nothing else, does all that the others do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_loop

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import HubServer


FILES = sorted((Path(__file__).parent / "new_family").glob("*.py"))
# the retrofitted decoder, the family's own depth, and what every model answers
ANSWER = """
import json, torch

ids = torch.tensor([[1, 5, 6, 7, 9, 3, 11, 4], [1, 9, 8, 4, 14, 5, 5, 7]])

def answer(model):
    model.eval()
    tokens = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    without = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1, use_cache=False)
    assert torch.equal(tokens, without)
    return {"tokens": tokens.tolist(), "logits": model(ids).logits.tolist()}
"""
MAKE = """
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed
import hf_loop
from hf_loop.trainer.data import byte_tokenizer

set_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=300, hidden_size=16, intermediate_size=32, num_attention_heads=4, num_hidden_layers=3,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
)).eval()
expected = base(ids).logits
base.save_pretrained("base")
byte_tokenizer().save_pretrained("base")
model = hf_loop.retrofit("base", "twice").eval()
assert torch.equal(model(ids).logits, expected)
assert model.config.num_hidden_layers == 6
with torch.no_grad():
    model.model.gates += 0.5
assert not torch.allclose(model(ids).logits, expected, atol=1e-3)
model(ids, labels=ids).loss.backward()
assert model.model.gates.grad.abs().min() > 0
model.save_pretrained("saved")
loaded = AutoModelForCausalLM.from_pretrained("saved")
assert type(loaded).__name__ == "TwiceForCausalLM"
assert answer(loaded) == answer(model)
model.push_to_hub("twice")
print(json.dumps(answer(model)))
"""
READ = """
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("me/twice", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
print(json.dumps(answer(model)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A copy of the library with the family in it."""
    folder = tmp_path_factory.mktemp("library")
    ignored = shutil.ignore_patterns("__pycache__")
    package = Path(hf_loop.__file__).parent
    shutil.copytree(package, folder / "hf_loop", ignore=ignored)
    templates = package.parent / "model_cards"
    if templates.is_dir():
        # a checkout has them beside the package, a wheel inside
        shutil.copytree(templates, folder / "model_cards", ignore=shutil.ignore_patterns("*.png", "*.safetensors"))
    for file in FILES:
        shutil.copy(file, folder / "hf_loop" / "models")
    return folder


def in_the_library(library: Path, code: str) -> str:
    """Code that imports the copy."""
    return f"import sys; sys.path.insert(0, {str(library)!r})\n" + code


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """The folder in which the family's models are made."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def pushed(library, work, tmp_path_factory):
    """What the model answers where it is made and where only its repository is, and the repository's files."""
    with HubServer() as hub:
        here = run_python(in_the_library(library, ANSWER + MAKE), hub, work)
        there = run_python(BLOCK_HF_LOOP + ANSWER + READ, hub, tmp_path_factory.mktemp("reader"))
        files = hub.files("me/twice")
    return json.loads(here.splitlines()[-1]), json.loads(there.splitlines()[-1]), files


def run_command(library: Path, folder: Path, *arguments: str) -> str:
    """The output of a command of the copy."""
    code = in_the_library(library, "from hf_loop.cli.main import main; main()")
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


def test_it_is_short():
    assert [file.name for file in FILES] == ["configuration_twice.py", "modeling_twice.py"]
    assert sum(len(file.read_text().splitlines()) for file in FILES) <= 150


def test_retrofitted_saved_and_pushed_it_answers_the_same(pushed):
    here, there, _ = pushed
    assert there == here


def test_the_commands_know_it(library, work, pushed):
    output = run_command(library, work, "retrofit", "base", "out", "--family", "twice", "--set", "initial_gate=0.25")
    assert "every layer twice, gates from 0.25" in output
    assert json.loads((work / "out" / "config.json").read_text())["initial_gate"] == 0.25


def test_a_recipe_trains_it(library, work):
    (work / "text.txt").write_text("the ball is under the second cup. " * 40)
    recipe = """
model:
  family: twice
  backbone: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_attention_heads: 2, num_hidden_layers: 2}
  config: {initial_gate: 0.1}
data: {files: [text.txt], tokenizer: bytes, block_size: 16}
training: {output_dir: run, max_steps: 3, per_device_train_batch_size: 2, learning_rate: 1e-2, use_cpu: true}
"""
    (work / "recipe.yaml").write_text(recipe)
    assert "training loss" in run_command(library, work, "train", "recipe.yaml")
    saved = json.loads((work / "run" / "config.json").read_text())
    assert saved["architectures"] == ["TwiceForCausalLM"] and saved["initial_gate"] == 0.1
    run_command(library, work, "generate", "run", "the ball", "--max-new-tokens", "2")


def test_its_card_says_what_it_is(pushed):
    card = pushed[2]["README.md"].decode()
    assert "every layer twice, gates from 0.0" in card
    assert "initial_gate" in card and "twice_lm" in card
