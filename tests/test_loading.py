"""A checkpoint that does not fill its model is refused, by every command and for every family, and nothing is written.

`damage` is what happened to the file; `COMMANDS` is who reads which kind of model.
"""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    HrmTextForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralForCausalLM,
    set_seed,
)

from hf_loop import retrofit
from hf_loop.cli.load import load_config, load_plain_model
from hf_loop.cli.main import main
from hf_loop.evaluation.card_template import CARD_MARKER
from hf_loop.loading import check_model_folder, load_pretrained
from hf_loop.models import (
    FeedbackConfig,
    FeedbackForCausalLM,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    LoopedConfig,
    LoopedForCausalLM,
    SleepConfig,
    SleepForCausalLM,
)
from hf_loop.tasks import shell_game
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from .models.hierarchical_variants import tiny_hrm_text_config
from .models.tiny_backbones import tiny_backbone
from .retrofitting.converters import test_huginn as huginn
from .retrofitting.converters.recurrent_reference import write_checkpoint
from .tiny_gguf import write_gguf
from .trainer.tiny_puzzles import puzzle_model


ROOT = Path(__file__).parents[1]
TOKENIZER = shell_game(1, 1)[1]
DAMAGES = {
    "missing": "1 missing ({})",
    "unexpected": "1 unexpected (of_another_model)",
    "misshapen": "1 misshapen ({} ",
}
# what tqdm leaves of a progress bar
PROGRESS = re.compile(r"^[A-Z][\w ]+:? .*(it|examples)/s\]$")


def backbone():
    return tiny_backbone("llama", vocab_size=len(TOKENIZER))


MODELS = {
    "plain": lambda: LlamaForCausalLM(backbone()),
    "looped": lambda: LoopedForCausalLM(LoopedConfig(backbone_config=backbone(), num_prelude_layers=1, num_loops=2)),
    "feedback": lambda: FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone(), block_size=4)),
    "sleep": lambda: SleepForCausalLM(SleepConfig(backbone_config=backbone(), sleep_window=4)),
    "hierarchical": lambda: HierarchicalForCausalLM(HierarchicalConfig(backbone_config=backbone())),
    "puzzle": puzzle_model,
    "huginn": None,
    "hrm_text": lambda: HrmTextForCausalLM(tiny_hrm_text_config()),
}
# the command after `hf-loop`; {model} is the folder, {new} a place for what would be written
COMMANDS = {
    "retrofit": (["plain"], ["retrofit", "{model}", "{new}", "--core", "1-1"]),
    "retrofit feedback": (["plain"], ["retrofit", "{model}", "{new}", "--family", "feedback"]),
    "retrofit sleep": (["plain"], ["retrofit", "{model}", "{new}", "--family", "sleep"]),
    "fold": (["plain"], ["retrofit", "{model}", "{new}", "--set", "fold=first", "--set", "loop_lora_rank=2"]),
    "scan": (["plain"], ["scan", "{model}", "--text", "{text}", "--output-dir", "{new}"]),
    "sweep": (["plain", "looped", "hierarchical"], ["sweep", "{model}", "--text", "{text}", "--output-dir", "{new}"]),
    "generate": (["plain", "looped", "feedback", "sleep", "hierarchical"], ["generate", "{model}", "1<->2"]),
    "check": (["plain"], ["check", "{model}", "--weights"]),
    "unroll": (["looped"], ["unroll", "{model}", "{new}"]),
    "card": (["looped"], ["card", "{model}"]),
    "push": (["plain", "looped", "feedback", "sleep", "hierarchical", "puzzle"], ["push", "{model}", "me/model"]),
    "convert": (["huginn", "hrm_text"], ["convert", "{model}", "{new}"]),
    "train": (["plain", "looped", "feedback", "sleep", "puzzle"], ["train", "{recipe}"]),
}
CASES = [(command, kind) for command, (kinds, _) in COMMANDS.items() for kind in kinds]


@pytest.fixture(scope="session")
def whole_folders(tmp_path_factory):
    """A folder of every kind of model."""
    folders = {}
    for kind, make in MODELS.items():
        set_seed(0)
        folder = tmp_path_factory.mktemp("whole") / kind
        if make is None:
            write_checkpoint(folder, huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))
        else:
            make().save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        (folder / "README.md").write_text(CARD_MARKER)
        folders[kind] = folder
    return folders


@pytest.fixture
def damaged(whole_folders, tmp_path):
    """Make a damaged copy of a folder and return it and the name of the tensor that is not what it was."""

    def make(kind: str, damage: str) -> tuple[Path, str]:
        folder = tmp_path / kind
        folder.mkdir()
        for file in whole_folders[kind].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder, damage_weights(next(folder.glob("*.safetensors")), damage)

    return make


def damage_weights(file: Path, damage: str) -> str:
    tensors = load_file(file)
    # embeddings and heads may be tied
    chosen = [name for name, tensor in tensors.items() if tensor.ndim == 2 and not re.search("embed|head", name)]
    name = min(chosen)
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["of_another_model"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    return name


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command on a folder, check that it writes nothing, and return its exit code and stderr."""

    def request_made(*arguments, **options):
        raise AssertionError("a request was made")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", request_made)
    text = tmp_path / "text.txt"
    text.write_text("1<->2 2<->3 " * 20)

    def run_command(command: str, kind: str, folder: Path) -> tuple[int, str]:
        places = {"model": folder, "new": tmp_path / "new", "text": text, "recipe": tmp_path / "recipe.yaml"}
        places["recipe"].write_text(yaml.safe_dump(recipe(kind, folder, text, tmp_path)))
        arguments = [str(argument).format(**places) for argument in COMMANDS[command][1]]
        before = snapshot(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hf-loop", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        assert snapshot(tmp_path) == before
        return int(stop.value.code or 0), capsys.readouterr().err

    return run_command


def recipe(kind: str, folder: Path, text: Path, tmp_path: Path) -> dict:
    model = {"pretrained": str(folder)}
    data = {"files": [str(text)], "tokenizer": str(folder), "block_size": 8}
    if kind != "plain":
        model |= {"family": kind}
    if kind == "puzzle":
        data = {"task": "sudoku", "task_options": {"size": 4}, "num_train_rows": 64, "num_eval_rows": 0}
    training = {"output_dir": str(tmp_path / "new"), "max_steps": 1, "use_cpu": True, "disable_tqdm": True}
    return {"model": model, "data": data, "training": training}


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_one_line(code: int, error: str, *parts: str) -> None:
    lines = [line for line in error.replace("\r", "\n").splitlines() if line and not PROGRESS.search(line)]
    assert code == 2, error
    assert len(lines) == 1, error
    for part in ("hf-loop: error: ", *parts):
        assert part in lines[0]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("command", "kind"), CASES)
def test_a_command_refuses_a_checkpoint_that_does_not_fill_its_model(command, kind, damage, damaged, run):
    folder, name = damaged(kind, damage)
    code, error = run(command, kind, folder)
    if command == "convert":
        # the converters say it in words of their own, of the tensors as they are read or as they are converted
        words = {"missing": "missing|lacks", "unexpected": "of_another_model", "misshapen": "shape|instead of"}
        check_one_line(code, error)
        assert re.search(words[damage], error)
    else:
        check_one_line(code, error, f"the tensors of {folder} are not those of ", DAMAGES[damage].format(name))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("family", ["looped", "feedback", "sleep"])
def test_retrofit_refuses_it_in_python_too(family, damage, damaged):
    folder, name = damaged("plain", damage)
    with pytest.raises(ValueError, match=f"the tensors of {folder} are not those of LlamaForCausalLM: 1 {damage}"):
        retrofit(folder, family)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "huginn"])
def test_a_whole_folder_passes(kind, whole_folders):
    check_model_folder(whole_folders[kind])


def shards(folder: Path) -> Path:
    """Store a model in several files, and return their index."""
    LlamaForCausalLM(backbone()).save_pretrained(folder, max_shard_size="60KB")
    TOKENIZER.save_pretrained(folder)
    return folder / "model.safetensors.index.json"


def truncate(folder: Path) -> str:
    LlamaForCausalLM(backbone()).save_pretrained(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "model.safetensors is truncated or damaged"


def lose_a_shard(folder: Path) -> str:
    shards(folder)
    shard = sorted(folder.glob("model-0000*"))[1]
    shard.unlink()
    return f"lacks {shard.name}, which model.safetensors.index.json lists"


def list_a_file_that_is_not_there(folder: Path) -> str:
    index = shards(folder)
    listed = json.loads(index.read_text())
    listed["weight_map"]["lm_head.weight"] = "elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    return "lacks elsewhere.safetensors, which model.safetensors.index.json lists"


def damage_the_index(folder: Path) -> str:
    shards(folder).write_text('{"weight_map": ')
    return "model.safetensors.index.json is not valid JSON"


def list_a_tensor_that_is_not_there(folder: Path) -> str:
    index = shards(folder)
    shard = folder / json.loads(index.read_text())["weight_map"]["lm_head.weight"]
    tensors = load_file(shard)
    del tensors["lm_head.weight"]
    save_file(tensors, shard, {"format": "pt"})
    return "1 missing (lm_head.weight)"


def damage_a_pickle(folder: Path) -> str:
    LlamaForCausalLM(backbone()).config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    return "pytorch_model.bin is truncated or damaged"


def store_no_head(folder: Path) -> str:
    LlamaModel(backbone()).save_pretrained(folder)
    return "1 missing (lm_head.weight)"


def store_another_head(folder: Path) -> str:
    LlamaForSequenceClassification(backbone()).save_pretrained(folder)
    return "1 missing (lm_head.weight); 1 unexpected (score.weight)"


def damage_an_expert(folder: Path) -> str:
    # a checkpoint has a tensor for every expert, which transformers puts together
    MixtralForCausalLM(tiny_backbone("mixtral")).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(tensor for tensor in tensors if "experts.1.w1" in tensor)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file, {"format": "pt"})
    return "1 unusable (model.layers.0.mlp.experts.gate_up_proj)"


def lose_an_expert(folder: Path) -> str:
    damage_an_expert(folder)
    file = folder / "model.safetensors"
    tensors = {
        name: tensor for name, tensor in load_file(file).items() if "layers.0." not in name or "experts.1." not in name
    }
    save_file(tensors, file, {"format": "pt"})
    return "layers.0.mlp.experts"


@pytest.mark.parametrize(
    "make",
    [
        truncate,
        lose_a_shard,
        list_a_file_that_is_not_there,
        damage_the_index,
        list_a_tensor_that_is_not_there,
        damage_a_pickle,
        store_no_head,
        store_another_head,
        damage_an_expert,
        lose_an_expert,
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused(make, tmp_path, run):
    folder = tmp_path / "damaged"
    message = make(folder)
    TOKENIZER.save_pretrained(folder)
    code, error = run("retrofit", "plain", folder)
    check_one_line(code, error, message)
    with pytest.raises((ValueError, OSError)):
        retrofit(folder)


def test_tied_weights_and_what_a_class_ignores_are_allowed(tmp_path):
    LlamaForCausalLM(tiny_backbone("llama", tie_word_embeddings=True)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    # old checkpoints hold these
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file, {"format": "pt"})
    model = load_pretrained(AutoModelForCausalLM, tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_model_folder(tmp_path)


@pytest.mark.parametrize("lost", [None, "blk.1.attn_q.weight"])
def test_a_gguf_file_is_held_to_its_model_too(lost, tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf", lost=lost)
    if lost is None:
        load_config(str(tmp_path / "tiny.gguf"))
        assert load_plain_model(str(tmp_path / "tiny.gguf")).num_parameters() == model.num_parameters()
    else:
        with pytest.raises(
            ValueError, match=r"tiny\.gguf are not those of LlamaFor.*: 1 missing .*layers\.1\.self_attn"
        ):
            load_plain_model(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["looped", "feedback", "sleep", "puzzle"])
def test_a_run_does_not_resume_from_a_checkpoint_that_does_not_fill_its_model(kind, damage, whole_folders, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("1<->2 2<->3 " * 20)
    sections = recipe(kind, whole_folders[kind], text, tmp_path)
    if kind == "feedback":
        sections["model"]["lora_rank"] = 2
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    run_recipe(load_recipe(path, ["training.save_strategy=steps", "training.save_steps=1"]))
    resumed = load_recipe(path, ["training.resume_from_checkpoint=true", "training.max_steps=2"])
    checkpoint = tmp_path / "new" / "checkpoint-1"
    name = damage_weights(next(checkpoint.glob("*.safetensors")), damage)
    with pytest.raises(ValueError, match=re.escape(f"the tensors of {checkpoint} are not those of ")) as error:
        run_recipe(resumed)
    assert DAMAGES[damage].format(name) in str(error.value)


def test_nothing_else_loads_a_model():
    """A model is loaded by `hf_loop.loading` alone; configurations and tokenizers have no weights."""
    others = []
    for path in [*ROOT.glob("hf_loop/**/*.py"), *ROOT.glob("training/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("from_pretrained", "load_state_dict"):
                owner = ast.unparse(node.value)
                if owner not in ("AutoConfig", "AutoTokenizer", "PreTrainedTokenizerFast", "GenerationConfig"):
                    others.append(f"{path.relative_to(ROOT)}: {owner}.{node.attr}")
    assert sorted(others) == [
        "hf_loop/loading.py: model_class.from_pretrained",
        # the method of a class of ours, which the loader calls
        "hf_loop/models/puzzle_embeddings.py: super().from_pretrained",
        # the tensors of the converted model, which were checked when it was converted; strict
        "hf_loop/retrofitting/converters/native.py: native.load_state_dict",
        # tensors that were made for this layer, by name; strict
        "hf_loop/retrofitting/unrolling.py: copied.load_state_dict",
        # what the same run held before, strict
        "hf_loop/trainer/attempts.py: getattr(trainer, name).load_state_dict",
        "hf_loop/trainer/attempts.py: trainer.model.load_state_dict",
        # what the loader has loaded; strict
        "hf_loop/trainer/checkpoint_trainer.py: model.load_state_dict",
        # a configuration
        "hf_loop/trainer/checkpoints.py: type(config).from_pretrained",
    ]
