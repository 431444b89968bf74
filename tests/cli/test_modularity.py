import json

import pytest
import torch
from transformers import LlamaConfig, set_seed

from hf_loop import LoopedConfig, LoopedForCausalLM, convert
from hf_loop.analysis.modularity_results import ModularityResults
from hf_loop.tasks import two_subroutines

from ..retrofitting.converters import test_dory as dory
from ..retrofitting.converters import test_huginn as huginn
from ..retrofitting.converters import test_ouro as ouro
from ..retrofitting.converters.llama_reference import converted_model


QUICK = ("--seeds", 1, "--epochs", 1, "--quiet")


@pytest.fixture
def task_folder(tmp_path):
    """A looped model with the task's tokenizer."""
    tokenizer = two_subroutines(1, 1, test_difficulties=[8])[1]
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "model"
    LoopedForCausalLM(LoopedConfig(backbone_config=config, num_loops=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def row_files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    files = []
    for name in ("a", "b"):
        rows = torch.randint(90, (8, 6), generator=generator).tolist()
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in rows))
        files += [f"--rows-{name}", file]
    return files


def test_a_search_on_the_task_goes_on_with_more_seeds(hf_loop, task_folder, tmp_path):
    out_folder = tmp_path / "out"
    sizes = ("--num-rows", 16, "--num-test-rows", 8, "--difficulty", 4)
    arguments = ("modularity", task_folder, "--task", "two_subroutines", *sizes, "--output-dir", out_folder)
    code, out, err = hf_loop(*arguments, *QUICK)
    assert (code, err) == (0, "")
    results = ModularityResults.load(out_folder / "modularity.json")
    assert results.label == "model"
    assert len(results.runs) == 6
    assert (out_folder / "modularity.md").read_text() == results.to_markdown()
    assert results.to_markdown() in out
    assert (out_folder / "modularity.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((out_folder / "masks").iterdir())) == 6

    code, _, err = hf_loop(*arguments, "--epochs", 1, "--seeds", 2)
    assert code == 0
    assert "mask 6/6" in err
    again = ModularityResults.load(out_folder / "modularity.json")
    assert again.runs[:6] == results.runs
    assert {run.seed for run in again.runs[6:]} == {1}
    code, _, err = hf_loop(*arguments, "--epochs", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "num_epochs 1 there, 2 here" in err


@pytest.mark.parametrize("layout", ["huginn", "ouro", pytest.param("dory", marks=dory.needs_dory)])
def test_published_layouts_converted_run_on_rows_of_ones_own(hf_loop, row_files, tmp_path, layout):
    folder = tmp_path / layout
    if layout == "ouro":
        model = converted_model(ouro.ouro, ouro.CONFIG, ouro.make_tensors(ouro.CONFIG))
    elif layout == "dory":
        dory.make_native().save_pretrained(tmp_path / "source")
        model = convert(tmp_path / "source", num_loops=4)
    else:
        source = tmp_path / "source"
        huginn.write_checkpoint(source, huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))
        model = huginn.convert(source)
    model.save_pretrained(folder)
    code, out, err = hf_loop("modularity", folder, *row_files, *QUICK, "--output-dir", tmp_path / "out")
    assert (code, err) == (0, "")
    results = ModularityResults.load(tmp_path / "out" / "modularity.json")
    assert results.loops == [0, 1, 2, 3]
    assert len(results.runs[0].ablated_in_loop) == 4
    assert "| A | one per loop |" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --task NAME, or --rows-a FILE and --rows-b FILE"),
        (["--task", "two_subroutines", "--rows-a", "a.jsonl"], "Give --task NAME, or"),
        (["--task", "coin_flips"], "unknown task 'coin_flips' in --task; there are two_subroutines"),
        (["--task", "two_subroutines"], "tokenizer is not the one of two_subroutines"),
        (["--rows-a", "README.md"], "--rows-b FILE is missing"),
        (["--rows-a", "a.jsonl", "--rows-b", "b.jsonl"], "there is no file a.jsonl"),
        (["--task", "two_subroutines", "--learning-rate", "0"], "learning_rate must be a number above 0"),
    ],
)
def test_errors_are_one_line_and_write_nothing(hf_loop, looped_folder, tmp_path, arguments, message):
    (tmp_path / "README.md").write_text("")
    if "README.md" in arguments:
        arguments = ["--rows-a", tmp_path / "README.md"]
    code, _, err = hf_loop("modularity", looped_folder, *arguments, "--output-dir", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()
