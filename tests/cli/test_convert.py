"""`hf-loop convert`: what it writes, prints and refuses; the arithmetic is tested in tests/retrofitting."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, HrmTextForCausalLM

from hf_loop.field_values import parse_field_values

from ..models.hierarchical_variants import tiny_hrm_text_config
from ..models.looped_variants import OWN_LOOPS, tiny_looped
from ..retrofitting.converters import ifm_reference as ifm
from ..retrofitting.converters import test_huginn as huginn
from ..retrofitting.converters.recurrent_reference import write_checkpoint


@pytest.fixture
def source(tmp_path, tokenizer):
    folder = write_checkpoint(tmp_path / "source", huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))
    tokenizer.save_pretrained(folder)
    return folder


def test_convert_writes_a_folder_that_loads(hf_loop, source, tmp_path):
    output = tmp_path / "new" / "converted"
    code, out, err = hf_loop(
        "convert", source, output, "--set", "state_init=zeros", "--set", "num_loops=3", "--dtype", "bfloat16"
    )
    assert code == 0, err
    model = AutoModelForCausalLM.from_pretrained(output)
    assert (model.config.state_init, model.config.num_loops, model.dtype) == ("zeros", 3, torch.bfloat16)
    assert (
        AutoTokenizer.from_pretrained(output)("1<->2").input_ids
        == AutoTokenizer.from_pretrained(source)("1<->2").input_ids
    )
    assert "looped_lm over huginn_backbone" in out
    assert f"{model.num_parameters():,} in bfloat16" in out
    assert "2+3+1 layers (prelude, core, coda), 3 loops" in out
    assert f"Next: hf-loop generate {output} 'The capital of France is' --loops 1,3" in out
    # nothing is left beside the folder
    assert [path.name for path in output.parent.iterdir()] == ["converted"]


def test_a_native_hierarchical_model_is_converted(hf_loop, tmp_path):
    HrmTextForCausalLM(tiny_hrm_text_config()).save_pretrained(tmp_path / "source")
    code, out, err = hf_loop("convert", tmp_path / "source", tmp_path / "converted", "--set", "num_loops=5")
    assert code == 0, err
    assert "hierarchical_lm over hrm_text" in out
    assert "2 layers in each stack, 5 slow cycles of 3 fast ones" in out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "converted").config.num_loops == 5
    code, _, err = hf_loop("card", tmp_path / "converted")
    assert code == 0, err
    assert "5 slow cycles of 3 fast ones" in (tmp_path / "converted" / "README.md").read_text()


def test_a_tokenizer_in_a_folder_of_its_own_is_taken_along(hf_loop, tokenizer, tmp_path):
    settings = ifm.RECIPES["dense_split_hl_x2"]
    source = write_checkpoint(tmp_path / "source", {"model": settings}, ifm.make_tensors(settings))
    tokenizer.save_pretrained(source / "tokenizer")
    code, out, err = hf_loop("convert", source, tmp_path / "converted")
    assert code == 0, err
    assert "2 layers in each stack (run 2 times), between 1 and 1 other layers, 2 slow cycles of 3 fast ones" in out
    loaded = AutoTokenizer.from_pretrained(tmp_path / "converted")
    # the source's does not add the beginning that texts have in training
    words = tokenizer("1<->2", add_special_tokens=False).input_ids
    assert loaded("1<->2").input_ids == [tokenizer.bos_token_id, *words]
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((tmp_path / "converted" / name).read_text())
        assert fields["eos_token_id"] == tokenizer.eos_token_id is not None


def test_a_source_without_a_tokenizer_says_so(hf_loop, tmp_path):
    source = write_checkpoint(tmp_path / "source", huginn.CONFIG, huginn.make_tensors(huginn.CONFIG))
    (tmp_path / "converted").mkdir()
    code, out, err = hf_loop("convert", source, tmp_path / "converted")
    assert code == 0, err
    assert "The source has no tokenizer" in out
    assert "Next:" not in out


def test_what_convert_refuses_leaves_nothing_behind(hf_loop, source, tmp_path):
    output = tmp_path / "converted"
    config = source / "config.json"
    config.write_text(json.dumps(huginn.CONFIG | {"injection_type": "gate"}))
    for arguments, message in (
        ((source, output), "`injection_type` of the checkpoint is 'gate'"),
        ((source, output, "--set", "num_loops"), "'num_loops' is not a setting; give FIELD=VALUE, as in num_loops=8"),
        ((source, output, "--set", "num_loops=1", "--set", "num_loops=2"), "num_loops is set twice"),
        ((source, output, "--set", "dtype=float16"), "give the type of the weights as --dtype"),
        ((source, output, "--dtype", "int8"), "'int8' is not a floating-point type"),
        ((tmp_path / "none", output), f"there is no folder {tmp_path / 'none'}"),
    ):
        code, out, err = hf_loop("convert", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    config.write_text(json.dumps(huginn.CONFIG))
    code, _, err = hf_loop("convert", source, output, "--set", "depth=3")
    assert code == 2
    assert "`depth` is not a field of LoopedConfig, so it cannot be set to 3" in err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_that_holds_something_is_left_as_it_is(hf_loop, source, tmp_path):
    output = tmp_path / "converted"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    code, _, err = hf_loop("convert", source, output)
    assert code == 2
    assert "is not an empty folder" in err
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_a_model_is_converted_back(hf_loop, tmp_path, tokenizer):
    model = tiny_looped(loop_norm="final")
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    arguments = ["--to", "nanbeige", "--set", "num_loops=2"]
    code, out, err = hf_loop("convert", tmp_path / "ours", tmp_path / "written", *arguments)
    assert code == 0, err
    assert f"written: nanbeige, 2 loops, {model.num_parameters():,} parameters" in out
    assert json.loads((tmp_path / "written" / "config.json").read_text())["num_loops"] == 2
    code, _, err = hf_loop("convert", tmp_path / "written", tmp_path / "back")
    assert code == 0, err
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    ids = torch.arange(3, 20)[None]
    assert torch.equal(back(ids).logits, model(ids, num_loops=2).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "back").get_vocab() == tokenizer.get_vocab()
    assert not {*tmp_path.iterdir()} - {tmp_path / name for name in ("ours", "written", "back")}


@pytest.mark.skipif("inkling2_loop" not in CONFIG_MAPPING, reason="transformers has no inkling2_loop before 5.24")
def test_weights_that_are_always_float32_stay_so_in_another_type(hf_loop, tmp_path):
    model = tiny_looped(**OWN_LOOPS["inkling2_loop_text"])
    model.save_pretrained(tmp_path / "ours")
    code, _, err = hf_loop(
        "convert", tmp_path / "ours", tmp_path / "written", "--to", "inkling2_loop", "--dtype", "bfloat16"
    )
    assert code == 0, err
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype="auto")
    tensors, dtypes = model.state_dict(), set()
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, tensors[name.replace("model.", "model.backbone.", 1)].to(tensor.dtype)), name
        dtypes.add(tensor.dtype)
    assert dtypes == {torch.float32, torch.bfloat16}


def test_what_cannot_be_converted_back_leaves_nothing_behind(hf_loop, looped_folder, plain_folder, tmp_path):
    output = tmp_path / "written"
    for arguments, message in (
        ((looped_folder, output, "--to", "nanbeige"), "`num_prelude_layers` of nanbeige is always 0, got 1"),
        (
            (looped_folder, output, "--to", "ouro"),
            "`layout` must be one of 'nanbeige', 'dory', 'inkling2_loop', 'hrm_text', got 'ouro'",
        ),
        ((looped_folder, output, "--to", "nanbeige", "--set", "exit_gate=false"), "only num_loops can be set"),
        ((looped_folder, output, "--to", "nanbeige", "--set", "num_loops=0"), "`num_loops` must be an integer of at"),
        ((plain_folder, output, "--to", "nanbeige"), "is a plain 'llama' model: with --to, SOURCE is"),
    ):
        code, out, err = hf_loop("convert", *arguments, "--quiet")
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, out, err)
        assert message in err
        assert not output.exists()


def test_values_are_json_or_text():
    texts = ["num_loops=8", "coda_norm=true", "state_init=zeros", "eos_token_id=[1, 2]", "state_std=1e-4", "x=None"]
    assert parse_field_values(texts) == {
        "num_loops": 8,
        "coda_norm": True,
        "state_init": "zeros",
        "eos_token_id": [1, 2],
        "state_std": 1e-4,
        "x": None,
    }
