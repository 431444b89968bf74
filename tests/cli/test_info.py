"""`hf-loop info` on a model of every family, on composed ones, and on what is not one of ours."""

import json
import re
import shutil

import pytest
from transformers import BertConfig, T5Config

from hf_loop import (
    FeedbackConfig,
    FeedbackForCausalLM,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    LoopedConfig,
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    SleepConfig,
    SleepForCausalLM,
)
from hf_loop.evaluation import LoopCurve, Results, kv_bytes_per_token
from hf_loop.models.cost import forward_parameters

from ..models.puzzle_variants import tiny_puzzle_model
from ..tiny_gguf import tiny_llama, write_gguf


BLOCKS = {"block_size": 4, "num_memory_segments": 1, "feedback_length": 2}


def looped(**fields):
    return LoopedConfig(backbone_config=tiny_llama().config, num_prelude_layers=1, num_coda_layers=1, **fields)


MODELS = {
    "looped": lambda: LoopedForCausalLM(looped(num_loops=3)),
    "feedback": lambda: FeedbackForCausalLM(FeedbackConfig(backbone_config=tiny_llama().config, **BLOCKS)),
    "sleep": lambda: SleepForCausalLM(SleepConfig(backbone_config=tiny_llama().config, sleep_window=4)),
    "hierarchical": lambda: HierarchicalForCausalLM(HierarchicalConfig(backbone_config=tiny_llama().config)),
    "puzzle": lambda: tiny_puzzle_model("trm"),
    "classifier": lambda: LoopedForSequenceClassification(looped(num_loops=2)),
    "feedback over looped": lambda: FeedbackForCausalLM(FeedbackConfig(backbone_config=looped(), **BLOCKS)),
    "sleep over looped": lambda: SleepForCausalLM(SleepConfig(backbone_config=looped(), sleep_window=4)),
    "plain": tiny_llama,
}


def facts(out):
    """The lines before the table, by name, and the rows of the table."""
    lines = [
        line for line in out.splitlines() if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz")) and "  " in line
    ]
    rows = [re.findall(r"[^│\s]+(?: [a-zA-Z])?", line) for line in out.splitlines() if line.startswith("│")]
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}, rows


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    model = MODELS[request.param]()
    model.save_pretrained(tmp_path / "model")
    return request.param, model, tmp_path / "model"


def test_it_says_what_a_model_is_from_its_configuration_alone(saved, hf_loop):
    name, model, folder = saved
    code, out, error = hf_loop("info", folder)
    assert (code, error) == (0, ""), error
    lines, rows = facts(out)
    assert lines["parameters"] == f"{model.num_parameters():,}"
    assert lines["tokenizer"] == "none"
    (folder / "model.safetensors").unlink()
    without = hf_loop("info", folder)
    assert without[0] == 0
    assert facts(without[1]) == (lines | {"weights": "float32, not read"}, rows)
    if name == "plain":
        assert "none: a plain llama model of 4 layers; `hf-loop retrofit`" in lines["family"]
        return
    family = {"classifier": "looped", "puzzle": "hierarchical_puzzle"}.get(name, name)
    assert lines["family"].startswith(f"{family} over ")
    config = model.config
    counts = sorted({1, config.num_loops, 2 * config.num_loops}) if config.has_loops else [None]
    for count, row in zip(counts, rows, strict=True):
        depth = {} if count is None else {"num_loops": count}
        assert row[:2] == [str(count or "-"), str(len(config.calls(**depth)))]
        if config.kind == "depth":
            assert row[2] == f"{forward_parameters(model, **depth):,}"
            assert row[4] == f"{kv_bytes_per_token(config, count, model.dtype):,}"


def test_one_loop_costs_what_the_decoder_costs(hf_loop, tmp_path):
    MODELS["plain"]().save_pretrained(tmp_path / "plain")
    MODELS["looped"]().save_pretrained(tmp_path / "looped")
    (plain,) = facts(hf_loop("info", tmp_path / "plain")[1])[1]
    (once,) = facts(hf_loop("info", tmp_path / "looped", "--loops", 1)[1])[1]
    assert once[1:] == plain[1:]


def test_a_gguf_file_says_how_it_is_stored(hf_loop, tmp_path):
    model = write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    code, out, _ = hf_loop("info", tmp_path / "tiny.gguf")
    lines, rows = facts(out)
    assert code == 0 and "a plain llama model" in lines["family"]
    assert lines["weights"] == "GGUF Q4_1, unpacked on loading"
    assert lines["parameters"] == f"{model.num_parameters():,}"
    assert "tokens, no chat template" in lines["tokenizer"]


def test_it_says_what_a_run_left_beside_the_model(hf_loop, looped_folder):
    curve = LoopCurve("accuracy", "model", [1], [0.5], 2.0)
    Results([curve], command="hf-loop quickstart", loop_sampling="uniform from 4 to 8").save(looped_folder)
    (looped_folder / "recipe.yaml").write_text("model: {}\ndata: {task: shell_game}\ntraining: {}\n")
    lines, _ = facts(hf_loop("info", looped_folder)[1])
    assert lines["made for"] == "2 loops, in training uniform from 4 to 8"
    assert (lines["made by"], lines["trained on"]) == ("hf-loop quickstart", "task shell_game")


@pytest.mark.parametrize("config", [BertConfig(), T5Config()], ids=["bert", "t5"])
def test_a_model_that_hf_loop_cannot_open_is_told_so(config, hf_loop, tmp_path):
    config.save_pretrained(tmp_path)
    code, out, error = hf_loop("info", tmp_path)
    assert (code == 2 and error.count("\n") == 1) or "cannot open it" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--loops", "0"], "'0' is not a loop count"), (["--loops", "2"], "which has no loops")],
)
def test_a_wrong_option_is_one_line(arguments, message, hf_loop, plain_folder):
    code, out, error = hf_loop("info", plain_folder, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1) and message in error


def test_a_folder_that_is_damaged_or_missing_is_named(hf_loop, looped_folder, tmp_path):
    assert "there is no folder ./no/such" in hf_loop("info", "./no/such")[2]
    config = json.loads((looped_folder / "config.json").read_text())
    (looped_folder / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    code, _, error = hf_loop("info", looped_folder)
    assert code == 2 and "NoSuchModel" in error
    shutil.rmtree(looped_folder)
    looped_folder.mkdir()
    assert "has no config.json" in hf_loop("info", looped_folder)[2]


@pytest.mark.parametrize("command", [["info"], ["check"], ["retrofit"]], ids=lambda command: command[0])
@pytest.mark.parametrize("source", [{"model_type": "ouro"}, {"model_type": "huginn_raven"}], ids=["ouro", "huginn"])
def test_a_published_looped_checkpoint_is_sent_to_convert(source, command, hf_loop, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text(json.dumps(source))
    target = [tmp_path / "new"] if command == ["retrofit"] else []
    code, _, error = hf_loop(*command, tmp_path / "source", *target)
    assert code == 2 and "is a published looped checkpoint: make it one of hf_loop's with hf-loop convert" in error


@pytest.mark.parametrize("name", ["looped", "puzzle", "plain"])
@pytest.mark.parametrize("field", ["block_size", "sleep_window", "num_memory_segments"])
def test_a_field_of_another_familys_name_means_nothing(name, field, tmp_path, hf_loop):
    MODELS[name]().save_pretrained(tmp_path)
    expected = hf_loop("info", tmp_path)
    path = tmp_path / "config.json"
    # decoders of transformers keep any field
    fields = json.loads(path.read_text())
    fields.get("backbone_config", fields)[field] = 0
    path.write_text(json.dumps(fields))
    assert hf_loop("info", tmp_path) == expected


@pytest.mark.parametrize("change", [{"hidden_act": "cube"}, {"pad_token_id": 10**6}, {"vocab_size": -1}])
def test_a_configuration_that_makes_no_model_is_named(change, tmp_path, hf_loop):
    tiny_llama().config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, error = hf_loop("info", tmp_path)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert str(tmp_path) in error
