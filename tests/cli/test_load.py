import pytest
import torch
from transformers import LlamaForCausalLM

from hf_loop.cli.load import LayerRange, load_model, load_tokenizer
from hf_loop.models import LoopedForCausalLM


IDS = torch.tensor([[1, 4, 7, 5]])


def test_a_looped_model_is_loaded_as_it_is(looped_folder):
    model = load_model(str(looped_folder))
    assert (model.config.num_loops, model.config.num_prelude_layers) == (2, 1)
    assert not model.training
    expected = LoopedForCausalLM.from_pretrained(looped_folder)(IDS, num_loops=3).logits
    torch.testing.assert_close(model(IDS, num_loops=3).logits, expected, rtol=0, atol=0)


def test_a_plain_checkpoint_is_looped_and_one_loop_is_the_original(plain_folder):
    model = load_model(str(plain_folder), LayerRange(core="1-1"))
    config = model.config
    assert (config.num_prelude_layers, config.num_core_layers, config.num_coda_layers) == (1, 1, 1)
    assert config.num_loops == 1
    expected = LlamaForCausalLM.from_pretrained(plain_folder)(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    assert not torch.equal(model(IDS, num_loops=2).logits, expected)


def test_without_a_range_all_layers_are_looped(plain_folder):
    assert load_model(str(plain_folder)).config.num_core_layers == 3


def test_a_looped_model_keeps_its_range(looped_folder):
    with pytest.raises(ValueError, match="is a looped model already"):
        load_model(str(looped_folder), LayerRange(prelude=0))


def test_a_truncated_weight_file_is_named(looped_folder):
    weights = looped_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged") as error:
        load_model(str(looped_folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "a/b/c"])
def test_a_missing_folder_is_named(name):
    for load in (load_model, load_tokenizer):
        with pytest.raises(OSError, match=f"there is no folder {name}"):
            load(name)


def test_a_missing_gguf_file_is_named(tmp_path):
    for load in (load_model, load_tokenizer):
        with pytest.raises(OSError, match=r"there is no file .*model\.gguf"):
            load(str(tmp_path / "model.gguf"))


def test_a_gguf_file_needs_its_reader(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("hf_loop.gguf_files.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="without the package gguf"):
        load_model(str(tmp_path / "model.gguf"))


def test_a_folder_without_a_model_or_a_tokenizer_is_named(tmp_path, looped_folder):
    with pytest.raises(OSError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    for path in looped_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(str(looped_folder))
