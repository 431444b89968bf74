"""What goes to the Hub is a list of what a model needs, without access tokens and without paths of this machine."""

import json
import pickle

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from hf_loop import DeepSupervisionArguments, LoopedConfig, LoopedForCausalLM, LoopTrainingArguments
from hf_loop.published_files import check_published, files_to_upload, published_files
from hf_loop.trainer.arguments import SafeTrainingArguments
from hf_loop.trainer.data import byte_tokenizer
from hf_loop.trainer.recipe import load_recipe

from .hub_processes import run_python
from .hub_server import HubServer


TOKEN = "hf_" + "SECRET" * 6
NEEDED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
# what runs, editors, notebooks and people leave in a folder
LEFT_OVER = (
    *("training_args.bin", "recipe.yaml", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *(
        "checkpoint-2/model.safetensors",
        "checkpoint-2/config.json",
        "runs/events.out",
        "notes.py",
        ".env",
        "train.log",
    ),
    *(".model.safetensors-1a2b.tmp", "memory.safetensors", "wandb/run.json", "scan.json", "figures/other.png"),
    *(".cache/huggingface/token", "last-checkpoint/optimizer.bin", "data.jsonl", "optimizer-1-of-2.safetensors"),
)


@pytest.fixture
def folder(tmp_path):
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LoopedForCausalLM(LoopedConfig(backbone_config=config)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").touch()
    return tmp_path


def test_a_model_folder_is_published_whole_and_what_lies_beside_it_is_not(folder):
    code = {path.name for path in folder.glob("*.py")}
    assert {"configuration_looped.py", "modeling_looped.py", "backbone.py"} <= code
    (folder / "README.md").write_text(
        "![curve](figures/a.png) [home](../other/x.png) [site](https://example.com/y.png)"
    )
    for name in LEFT_OVER:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    assert set(published_files(folder)) == NEEDED | code | {"README.md", "figures/a.png"}


def test_shards_are_published(folder):
    LoopedForCausalLM.from_pretrained(folder).save_pretrained(folder / "sharded", max_shard_size="20KB")
    names = published_files(folder / "sharded")
    shards = [name for name in names if name.startswith("model-")]
    assert len(shards) > 1 and "model.safetensors.index.json" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: {"backbone_config": {"_name_or_path": str(folder)}},
            "config.json names '.*', which is on this",
        ),
        (lambda folder: {"remark": ["x", TOKEN]}, "config.json holds an access token"),
    ],
)
def test_tokens_and_paths_are_refused_by_the_file_that_has_them(folder, change, message):
    check_published(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change(folder)))
    with pytest.raises(ValueError, match=message) as error:
        check_published(folder)
    assert TOKEN not in str(error.value)


def test_a_trainer_publishes_the_last_name_of_a_local_path(tmp_path):
    base = tmp_path / "private" / "base"
    base.mkdir(parents=True)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (folder / "README.md").write_text(f"base_model: {base}\n")
    (folder / "training_args.bin").write_text(str(base))
    contents = {file.path_in_repo: file.path_or_fileobj for file in files_to_upload(folder)}
    assert contents == {
        "adapter_config.json": b'{"base_model_name_or_path": "base"}',
        "README.md": b"base_model: base\n",
    }
    # a checkpoint goes whole, but for what names files here
    (folder / "optimizer.pt").touch()
    (folder / "recipe.yaml").touch()
    names = {file.path_in_repo for file in files_to_upload(folder, "last-checkpoint")}
    assert names == {f"last-checkpoint/{name}" for name in ("adapter_config.json", "README.md", "optimizer.pt")}


@pytest.mark.parametrize("arguments_class", [SafeTrainingArguments, LoopTrainingArguments, DeepSupervisionArguments])
def test_saved_arguments_have_no_token(arguments_class, tmp_path):
    arguments = arguments_class(str(tmp_path), hub_token=TOKEN, use_cpu=True)
    assert TOKEN.encode() not in pickle.dumps(arguments)
    assert arguments.hub_token == TOKEN


def test_a_saved_configuration_does_not_say_where_its_backbone_was(tmp_path):
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    loaded = LlamaConfig.from_pretrained(tmp_path / "base")
    LoopedForCausalLM(LoopedConfig(backbone_config=loaded)).save_pretrained(tmp_path / "looped")
    assert str(tmp_path) not in (tmp_path / "looped" / "config.json").read_text()


RECIPE = f"""\
model:
  family: FAMILY
  pretrained: HOME/base
data:
  files: [HOME/text.txt]
  block_size: 32
training:
  output_dir: HOME/run
  hub_token: {TOKEN}
  hub_model_id: me/trained
  accelerator_config: {{api_key: {TOKEN}}}
  lr_scheduler_kwargs: {{anything: {TOKEN}}}
  run_name: ${{oc.env:SECRET_OF_THE_ENVIRONMENT}}
  hub_strategy: every_save
  max_steps: 2
  save_steps: 1
  use_cpu: true
"""


def test_the_copy_of_a_recipe_has_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_ENVIRONMENT", "xyzzy")
    path = tmp_path / "recipe.yaml"
    text = RECIPE.replace("FAMILY", "looped").replace(f"  accelerator_config: {{api_key: {TOKEN}}}\n", "")
    path.write_text(text)
    recipe = load_recipe(path, [f"data.dataset_config={TOKEN}"])
    assert (recipe.training.hub_token, recipe.training.run_name) == (TOKEN, "xyzzy")
    assert TOKEN not in str(recipe.source) and "xyzzy" not in str(recipe.source)
    assert recipe.source["training"]["run_name"] == "${oc.env:SECRET_OF_THE_ENVIRONMENT}"
    assert recipe.source["training"]["hub_model_id"] == "me/trained"


# one run is pushed by the trainer after every save, and its folder by the command
RUN = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner
from hf_loop.cli.main import app
from hf_loop.trainer.data import byte_tokenizer

tokenizer = byte_tokenizer()
tokenizer.save_pretrained("base")
config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                     num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("base")
Path("text.txt").write_text("hello world" * 200)
for arguments in (["train", "recipe.yaml"], ["card", "run"], ["push", "run", "me/by_command"]):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
"""


@pytest.mark.parametrize("family", ["looped", "feedback"])
def test_what_is_pushed_has_no_token_and_no_path(tmp_path, family):
    text = RECIPE.replace("FAMILY", family).replace("HOME", str(tmp_path)) + "  push_to_hub: true\n"
    if family == "feedback":
        # with what a run needs to go on, which names the best checkpoint
        text = text.replace("every_save", "checkpoint").replace("block_size", "num_eval_rows: 2\n  block_size")
        text += "  load_best_model_at_end: true\n  eval_strategy: steps\n  eval_steps: 1\n"
    lines = [line for line in text.splitlines() if not line.strip().startswith(("accelerator", "lr_", "run_name"))]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with HubServer() as hub:
        run_python(RUN, hub, tmp_path)
        commits = {name: repository.commits[1:] for name, repository in hub.repositories.items()}
    # the saves, the end of the run, and the command's
    assert len(commits["me/trained"]) >= 2 and len(commits["me/by_command"]) == 1
    for states in commits.values():
        assert {*NEEDED, "README.md", f"modeling_{family}.py"} <= set(states[-1].files)
        for commit in states:
            assert not {"training_args.bin", "recipe.yaml", "trainer_state.json"} & set(commit.files)
            for name, data in commit.files.items():
                assert TOKEN.encode() not in data and str(tmp_path).encode() not in data, name
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
