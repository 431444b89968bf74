import json
import re

import pytest
import torch
from safetensors.torch import save_file

import hf_loop as library
from hf_loop.analysis.inspection_results import Inspection
from hf_loop.tasks.tokenizer import word_tokenizer

from ..analysis.constructed import make_constructed, make_constructed_tokenizer
from ..models.composed_variants import make_composed
from ..models.hierarchical_variants import tiny_hierarchical
from ..retrofitting.converters import test_dory, test_huginn, test_ouro


PROMPT = "a>b b>c c>d d>d e>f f>e a"


@pytest.fixture
def machine(tmp_path):
    folder = tmp_path / "machine"
    make_constructed(num_loops=4).save_pretrained(folder)
    make_constructed_tokenizer().save_pretrained(folder)
    return folder


def test_it_shows_the_steps_and_keeps_them(hf_loop, machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = hf_loop("inspect", machine, PROMPT, "--last", 2, "--token", "d", "--quiet")
    assert (code, err) == (0, "")
    found = Inspection.load("inspections/machine/inspect.json")
    assert [row[-1] for row in found.top] == ["b", "c", "d", "d"]
    rows = re.findall(r"^│\s+(\d+) │.*│ (\w) 1\.00 │$", out, re.MULTILINE)
    assert rows == [("1", "b"), ("2", "c"), ("3", "d"), ("4", "d")]
    assert "machine: the answer after every loop" in out
    assert "after a: d from loop 3 on" in out
    assert (tmp_path / "inspections/machine/inspect.png").read_bytes().startswith(b"\x89PNG")


def test_more_loops_and_a_layer(hf_loop, machine, tmp_path):
    arguments = ("inspect", machine, PROMPT, "--loops", 7, "--layer", 0, "--output-dir", tmp_path / "out")
    code, out, err = hf_loop(*arguments)
    assert code == 0, err
    found = Inspection.load(tmp_path / "out" / "inspect.json")
    assert (found.num_loops, found.trained_loops, found.readout) == (7, 4, "layer 0")
    assert "its state is at a fixed point from loop 3 on" in out


def test_a_plain_checkpoint_is_looped(hf_loop, plain_folder, tmp_path):
    options = ("--core", "1-1", "--loops", 3, "--output-dir", tmp_path / "out")
    code, _, err = hf_loop("inspect", plain_folder, "ball:1 1<->2", *options)
    assert code == 0, err
    assert Inspection.load(tmp_path / "out" / "inspect.json").num_loops == 3


def huginn(folder):
    config = test_huginn.CONFIG
    return config, test_huginn.make_tensors(config)


def ouro(folder):
    return test_ouro.CONFIG, test_ouro.make_tensors(test_ouro.CONFIG)


def dory(folder):
    native = test_dory.make_native()
    return native.config.to_dict(), test_dory.published_tensors(native)


@pytest.mark.parametrize("published", [huginn, ouro, pytest.param(dory, marks=test_dory.needs_dory)])
def test_converted_checkpoints(hf_loop, published, tmp_path):
    config, tensors = published(tmp_path)
    source, folder = tmp_path / "source", tmp_path / "converted"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors")
    model = library.convert(source)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer([f"w{index}" for index in range(93)])
    tokenizer.save_pretrained(folder)
    code, _, err = hf_loop("inspect", folder, "w1 w2 w3", "--loops", 5, "--quiet", "--output-dir", tmp_path / "out")
    assert (code, err) == (0, "")
    found = Inspection.load(tmp_path / "out" / "inspect.json")
    with torch.no_grad():
        logits = model(torch.tensor([[1, 5, 6, 7]]), num_loops=5).logits[0]
    assert found.top[-1] == tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())


@pytest.mark.parametrize("make", [tiny_hierarchical, lambda: make_composed("feedback", "looped")])
def test_other_families(hf_loop, make, tmp_path):
    folder = tmp_path / "model"
    make().save_pretrained(folder)
    word_tokenizer([f"w{index}" for index in range(90)]).save_pretrained(folder)
    code, _, err = hf_loop("inspect", folder, "w1 w2 w3", "--quiet", "--output-dir", tmp_path / "out")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "inspect.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--loops", "0"], "--loops"),
        (["a", "--last", "0"], "--last"),
        (["a", "--token", "a b"], "'a b' is 2 tokens"),
        (["a", "--layer", "5"], "`layer` must be one of 0, got 5"),
        (["a", "--core", "0-0"], "its layer range cannot be chosen"),
    ],
)
def test_errors_are_one_line(hf_loop, machine, arguments, message, tmp_path):
    code, _, err = hf_loop("inspect", machine, *arguments, "--quiet", "--output-dir", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
