"""A model's way to the Hub and back, into a process that does not have hf_loop.

Every step runs in a process of its own, because `huggingface_hub` reads its settings when it is imported, and because
the reader must not have hf_loop: there an import hook refuses it.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from safetensors import safe_open

from .hub_processes import BLOCK_HF_LOOP, run_python
from .hub_server import LFS_THRESHOLD, HubServer


LOOP_COUNTS = [1, 3, 5]

MAKE_MODEL = """
import torch
from transformers import LlamaConfig, set_seed
from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.tasks.tokenizer import word_tokenizer

def make_config(**fields):
    backbone_config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
                                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                                  pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
                                  initializer_range=0.5)
    return LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1, num_loops=3,
                        injection="diagonal", **fields)

set_seed(0)
tokenizer = word_tokenizer([f"w{n}" for n in range(16)])
"""

# what a model answers, for comparing two processes
ANSWER = f"""
import json, torch

ids = torch.tensor([[1, 5, 6, 7]])

def answer(model, loop_counts={LOOP_COUNTS}):
    inputs = tokenizer(["w1 w2 w3", "w4 w5"], return_tensors="pt", padding=True)
    return [model.generate(**inputs, num_loops=n, max_new_tokens=8, do_sample=False, eos_token_id=-1).tolist()
            for n in loop_counts]
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server
        assert server.unknown_requests == []


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """The home of the process that has hf_loop."""
    return tmp_path_factory.mktemp("writer")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The home of the process that does not: its caches are empty."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def pushed(hub, writer):
    """Pushes a model with its tokenizer, its classifiers, and a larger model; returns what the models answer."""
    output = run_python(
        MAKE_MODEL
        + ANSWER
        + """
from hf_loop import LoopedForSequenceClassification, LoopedForTokenClassification

model = LoopedForCausalLM(make_config()).eval()
model.push_to_hub("looped", tags=["extra-tag"])
tokenizer.push_to_hub("looped")
logits = {}
for cls in (LoopedForSequenceClassification, LoopedForTokenClassification):
    classifier = cls(make_config(num_labels=3)).eval()
    classifier.push_to_hub(cls.__name__)
    logits[cls.__name__] = [classifier(ids, num_loops=n).logits.tolist() for n in (1, 4)]
states = model.model(ids, num_loops=4).last_hidden_state.tolist()
print(json.dumps({"tokens": answer(model), "logits": logits, "states": states}))

config = make_config()
config.backbone_config.vocab_size = 20_000
LoopedForCausalLM(config).push_to_hub("large")
""",
        hub,
        writer,
    )
    return json.loads(output.splitlines()[0])


@pytest.fixture(scope="module")
def read(hub, pushed, reader):
    """Load all of it in a process without hf_loop, return what the models answer there, and push again."""
    output = run_python(
        BLOCK_HF_LOOP
        + ANSWER
        + """
from transformers import (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification,
                          AutoModelForTokenClassification, AutoTokenizer)

def load(auto_class, name="me/looped", **fields):
    return auto_class.from_pretrained(name, trust_remote_code=True, **fields)

config, tokenizer, model = load(AutoConfig), load(AutoTokenizer), load(AutoModelForCausalLM)
assert (config.model_type, config.num_loops, config.num_hidden_layers) == ("looped_lm", 3, 5)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
states = load(AutoModel)(ids, num_loops=4).last_hidden_state.tolist()
deeper = load(AutoModelForCausalLM, num_loops=5)
assert deeper.config.num_hidden_layers == 7
logits = {}
for auto_class in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
    name = auto_class.__name__.replace("AutoModel", "Looped")
    classifier = load(auto_class, f"me/{name}")
    logits[name] = [classifier(ids, num_loops=n).logits.tolist() for n in (1, 4)]
print(json.dumps({"tokens": answer(model), "tokens_by_config": answer(deeper, [None]), "states": states,
                  "logits": logits}))

model.push_to_hub("me/copy")
model.push_to_hub("me/looped")
""",
        hub,
        reader,
    )
    return json.loads(output.splitlines()[0])


def test_what_a_push_uploads(hub, pushed, tmp_path):
    files = hub.files("me/looped")
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(files)
    assert {"configuration_looped.py", "modeling_looped.py", "backbone.py"} <= set(files)
    # transformers' Trainer does not upload files that start with an underscore, so none may be needed
    assert not [name for name in files if name.startswith("_")]
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    } <= set(auto_map)
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
    # three layers although eight are called, and one table for embeddings and head
    assert len([name for name in names if name.endswith("q_proj.weight")]) == 3
    assert not [name for name in names if "lm_head" in name]
    assert len([name for name in names if "embed" in name]) == 1


def test_a_push_writes_the_card(hub, pushed):
    card = hub.files("me/looped")["README.md"].decode()
    assert "| trained depth | 3 loops |" in card
    assert '.from_pretrained("me/looped", trust_remote_code=True)' in card
    for tag in ("hf_loop", "looped-transformer", "recurrent-depth", "looped_lm", "extra-tag"):
        assert f"- {tag}\n" in card
    assert (
        "AutoModelForSequenceClassification" in hub.files("me/LoopedForSequenceClassification")["README.md"].decode()
    )


def test_without_hf_loop_the_model_gives_the_same_tokens(pushed, read):
    assert read["tokens"] == pushed["tokens"]
    assert read["states"] == pushed["states"]
    assert read["tokens_by_config"] == [pushed["tokens"][LOOP_COUNTS.index(5)]]
    # the loop count matters for this model, so equality above says something
    assert len({json.dumps(tokens) for tokens in pushed["tokens"]}) == len(LOOP_COUNTS)


def test_without_hf_loop_the_classifiers_give_the_same_logits(pushed, read):
    assert read["logits"] == pushed["logits"]


def test_without_hf_loop_a_second_push_keeps_code_and_card(hub, read):
    original, copy, again = (
        hub.repositories["me/looped"].commits[1].files,
        hub.files("me/copy"),
        hub.files("me/looped"),
    )
    code = {name for name in original if name.endswith(".py")}
    for files in (copy, again):
        assert {name: files[name] for name in code} == {name: original[name] for name in code}
        assert files["model.safetensors"] == original["model.safetensors"]
    assert "| trained depth | 3 loops |" in again["README.md"].decode()


def test_trainers_push_a_model_that_loads(hub, writer, reader):
    run_python(
        MAKE_MODEL
        + """
from transformers import Trainer, TrainingArguments
from hf_loop.trainer import LoopTrainer, LoopTrainingArguments

rows = [{"input_ids": list(range(4, 12)), "labels": list(range(4, 12))} for _ in range(8)]
for trainer_class, arguments_class in ((Trainer, TrainingArguments), (LoopTrainer, LoopTrainingArguments)):
    name = trainer_class.__name__
    arguments = arguments_class(
        f"{name}-run", max_steps=2, per_device_train_batch_size=2, save_steps=1, logging_steps=1, use_cpu=True,
        report_to="none", push_to_hub=True, hub_model_id=f"me/{name}", hub_strategy="end")
    model = LoopedForCausalLM(make_config())
    trainer = trainer_class(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
""",
        hub,
        writer,
    )
    for name in ("Trainer", "LoopTrainer"):
        files = hub.files(f"me/{name}")
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "modeling_looped.py"} <= set(files)
        assert not [path for path in files if path.startswith("checkpoint")]
        assert "- hf_loop\n" in files["README.md"].decode()
        assert "- train_batch_size: 2\n" in files["README.md"].decode()
    # the stock Trainer writes its own card, ours writes the library's
    assert "| trained depth | 3 loops" in hub.files("me/LoopTrainer")["README.md"].decode()
    run_python(
        BLOCK_HF_LOOP
        + """
from transformers import pipeline

for name in ("Trainer", "LoopTrainer"):
    generator = pipeline("text-generation", model=f"me/{name}", trust_remote_code=True, device="cpu")
    generator("w1 w2", max_new_tokens=2, num_loops=5)
""",
        hub,
        reader,
    )


def test_the_command_pushes_a_folder_with_its_card(hub, writer):
    output = run_python(
        MAKE_MODEL
        + """
import os
from typer.testing import CliRunner
from hf_loop.cli.main import app
from hf_loop.evaluation import LoopCurve, Results

LoopedForCausalLM(make_config()).save_pretrained("folder")
tokenizer.save_pretrained("folder")
Results(curves=[LoopCurve("accuracy", "model", [1, 3], [0.4, 1.0], 3.0)], license="mit").save("folder")
os.makedirs("folder/checkpoint-2")
open("folder/checkpoint-2/model.safetensors", "w").close()
for arguments in (["card", "folder", "--repo-id", "me/folder"], ["push", "folder", "folder", "--private"]):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    print(result.output)
""",
        hub,
        writer,
    )
    assert output.split()[-1] == f"{hub.url}/me/folder"
    files = hub.files("me/folder")
    assert hub.repositories["me/folder"].private
    assert "figures/accuracy_over_loops.png" in files
    assert "| safe range (accuracy) | 3 to 3 loops |" in files["README.md"].decode()
    assert not [path for path in files if path.startswith("checkpoint")]


def test_a_large_file_travels_through_lfs_and_a_truncated_one_gets_a_clear_error(hub, pushed, reader):
    weights = hub.files("me/large")["model.safetensors"]
    assert len(weights) > LFS_THRESHOLD
    assert weights in hub.lfs_objects.values()
    hub.repositories["me/large"].commit({"model.safetensors": weights[: len(weights) // 2]}, [])
    error = run_python(
        BLOCK_HF_LOOP
        + """
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("me/large", trust_remote_code=True)
""",
        hub,
        reader,
        expect_failure=True,
    )
    last_line = error.strip().splitlines()[-1]
    assert last_line.startswith("safetensors") and "incomplete" in last_line, error


@pytest.mark.slow
def test_in_a_fresh_environment_without_hf_loop(hub, pushed, tmp_path):
    """As above, in a virtual environment that shares this one's packages except hf_loop."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    import torch
    import transformers

    packages = {Path(module.__file__).parents[1] for module in (torch, transformers)}
    shared = tmp_path / "packages"
    shared.mkdir()
    for entry in (entry for folder in packages for entry in folder.iterdir()):
        if not entry.name.startswith("hf_loop"):
            (shared / entry.name).symlink_to(entry)
    python = tmp_path / "venv" / "bin" / "python"
    code = """
        import json, importlib.util
        assert importlib.util.find_spec("hf_loop") is None
        from transformers import AutoModelForCausalLM
        import torch
        model = AutoModelForCausalLM.from_pretrained("me/looped", trust_remote_code=True)
        print(model.generate(torch.tensor([[1, 5, 6]]), num_loops=4, max_new_tokens=4).shape[0])
    """
    environment = hub.environment(HF_HOME=str(tmp_path / "home"), OMP_NUM_THREADS="1")
    # PYTHONPATH does not read .pth files, so an editable install of hf_loop stays out
    environment["PYTHONPATH"] = str(shared)
    result = subprocess.run(
        [python, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
