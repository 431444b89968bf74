"""A GGUF file is taken wherever a pretrained model is, from Python as by the commands, and cards tell what it held."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hf_loop
from hf_loop.cli.main import main
from hf_loop.evaluation.hub_card import write_card
from hf_loop.loading import load_pretrained
from hf_loop.text_parts import load_decoder
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from .tiny_gguf import byte_vocabulary, tiny_llama, write_gguf, write_llama


TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}
INPUT_IDS = torch.arange(40, 60)[None]
FAMILIES = ["looped", "feedback", "sleep"]
QUANTIZATIONS = ["Q4_1", "Q8_0", None]
SENTENCE = "unpacked from quantized ones (GGUF {})"


@pytest.fixture(params=QUANTIZATIONS)
def quantization(request):
    return request.param


def has_sentence(folder, quantization):
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert (SENTENCE.format(quantization) in text) == (quantization is not None)
    return "unpacked" in text


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_gguf_file_becomes_a_model_that_is_saved(family, quantization, tmp_path):
    file = tmp_path / "tiny.gguf"
    original = write_gguf(file, quantization)
    model = hf_loop.retrofit(file, family)
    expected = load_decoder(str(file))(INPUT_IDS).logits
    logits = original(INPUT_IDS).logits
    # four bits leave a rounding error of some percent
    assert (expected - logits).norm() < (1e-6 if quantization is None else 0.2) * logits.norm()
    if family == "looped":
        assert torch.equal(model(INPUT_IDS, num_loops=1).logits, expected)
    model.save_pretrained(tmp_path / "saved")
    loaded = load_pretrained(AutoModelForCausalLM, tmp_path / "saved")
    assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)
    assert has_sentence(tmp_path / "saved", quantization) == (quantization is not None)


def test_the_fact_outlives_everything_that_is_made_of_the_model(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    looped = hf_loop.retrofit(tmp_path / "tiny.gguf", core_layers="1-2", num_loops=2)
    looped.save_pretrained(tmp_path / "looped")
    plain = hf_loop.unroll(load_pretrained(AutoModelForCausalLM, tmp_path / "looped"))
    plain.save_pretrained(tmp_path / "plain")
    again = hf_loop.retrofit(tmp_path / "plain", "sleep")
    composed = hf_loop.retrofit(load_pretrained(AutoModelForCausalLM, tmp_path / "looped"), "feedback")
    for name, model in {"again": again, "composed": composed}.items():
        model.save_pretrained(tmp_path / name)
        assert has_sentence(tmp_path / name, "Q4_1")


@torch.no_grad()
def test_an_unrolled_folder_is_what_a_converter_to_gguf_needs(tmp_path, monkeypatch):
    """What llama.cpp's converter reads: configuration, tensors by name and tokenizer, here put into a file by gguf."""
    looped = hf_loop.retrofit(tiny_llama(), core_layers="1-2", num_loops=3)
    # settings that only our models have must not be in the way
    looped.generation_config.num_loops = 3
    looped.save_pretrained(tmp_path / "looped")
    vocabulary = {token: index for index, token in enumerate(byte_vocabulary())}
    tokenizer = Tokenizer(BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path / "looped")
    monkeypatch.setattr(sys, "argv", ["hf-loop", "unroll", str(tmp_path / "looped"), str(tmp_path / "plain"), "-q"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {*("config.json", "generation_config.json", "model.safetensors"), *TOKENIZER_FILES}
    stored = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert (stored["model_type"], stored["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert stored["num_hidden_layers"] == 2 + 2 * 3
    # nothing of ours, and no code
    assert stored.keys() <= {*AutoConfig.for_model("llama").to_dict(), "tokenizer_class"}
    assert "num_loops" not in (tmp_path / "plain" / "generation_config.json").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").get_vocab() == vocabulary
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    write_llama(tmp_path / "plain.gguf", AutoConfig.from_pretrained(tmp_path / "plain"), tensors)
    loaded = load_pretrained(AutoModelForCausalLM, tmp_path / "plain.gguf").eval()
    assert loaded.config.num_hidden_layers == 2 + 2 * 3
    torch.testing.assert_close(loaded(INPUT_IDS).logits, looped.eval()(INPUT_IDS).logits, atol=1e-6, rtol=1e-6)
    generated = loaded.generate(INPUT_IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, looped.generate(INPUT_IDS, max_new_tokens=8, do_sample=False))


@torch.no_grad()
def test_the_commands_do_what_python_does(tmp_path, monkeypatch, capsys):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "Q4_1")
    monkeypatch.setattr(sys, "argv", ["hf-loop", "retrofit", str(file), str(tmp_path / "made"), "--core", "1-2"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code, capsys.readouterr().err
    made = load_pretrained(AutoModelForCausalLM, tmp_path / "made")
    assert torch.equal(made(INPUT_IDS).logits, hf_loop.retrofit(file, core_layers="1-2")(INPUT_IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "made")("ab ").input_ids[-2:] != []
    assert has_sentence(tmp_path / "made", "Q4_1")


def test_a_recipe_trains_a_gguf_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "Q4_1")
    (tmp_path / "text.txt").write_text("abc " * 200)
    sections = {
        "model": {"pretrained": str(tmp_path / "tiny.gguf"), "config": {"num_loops": 2}},
        "data": {"files": [str(tmp_path / "text.txt")], "block_size": 16, "num_eval_rows": 0},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(sections))
    run_recipe(load_recipe(tmp_path / "recipe.yaml"))
    assert has_sentence(tmp_path / "run", "Q4_1")


def test_convert_says_what_to_do_with_a_gguf_file(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(ValueError, match=r"tiny\.gguf is a plain .*hf_loop\.retrofit"):
        hf_loop.convert(tmp_path / "tiny.gguf")


def test_a_file_that_is_missing_or_no_gguf_file_is_named(tmp_path):
    with pytest.raises(OSError, match=r"there is no file .*missing\.gguf"):
        hf_loop.retrofit(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("no GGUF file")
    with pytest.raises(ValueError, match=r"text\.gguf"):
        hf_loop.retrofit(tmp_path / "text.gguf")


def test_weights_that_stay_quantized_are_not_called_unpacked(tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    tiny_llama().save_pretrained(tmp_path / "plain")
    quantized = load_pretrained(
        AutoModelForCausalLM, tmp_path / "plain", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    quantized.save_pretrained(tmp_path / "quantized")
    model = hf_loop.retrofit(tmp_path / "quantized")
    assert not hasattr(model.config.decoder_config, "unpacked_from")


def test_weights_that_transformers_unpacks_by_itself_are_called_so(tmp_path):
    """Eight-bit floats are unpacked where there is no GPU."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "fp8")
    tensors = {}
    for name, tensor in model.state_dict().items():
        is_linear = name.endswith("proj.weight")
        tensors[name] = tensor.to(torch.float8_e4m3fn) if is_linear else tensor
        if is_linear:
            tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, tmp_path / "fp8" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "fp8" / "config.json").write_text(json.dumps(config))
    hf_loop.retrofit(tmp_path / "fp8").save_pretrained(tmp_path / "looped")
    write_card(tmp_path / "looped")
    assert "unpacked from quantized ones (fp8)" in (tmp_path / "looped" / "README.md").read_text()
