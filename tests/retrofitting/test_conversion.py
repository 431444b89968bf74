"""What holds for every published checkpoint that is converted, whatever its family."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig

import hf_loop
from hf_loop import convert
from hf_loop.retrofitting.converters import CONVERTERS

from ..models.model_tester import random_ids
from ..models.tiny_backbones import tiny_backbone
from .converters import test_huginn as huginn
from .converters import test_nanbeige as nanbeige
from .converters import test_ouro as ouro
from .converters import test_parcae as parcae
from .converters import test_retrofitted_recurrence as retrofitted
from .converters.recurrent_reference import write_checkpoint


INPUT_IDS = random_ids(2, 12)
FAMILIES = {
    "huginn": (huginn.CONFIG, huginn.make_tensors(huginn.CONFIG)),
    "retrofitted Llama": (retrofitted.CONFIG, retrofitted.make_tensors("TinyLlama", retrofitted.CONFIG)),
    "retrofitted OLMo": (retrofitted.CONFIG, retrofitted.make_tensors("OLMo-2", retrofitted.CONFIG)),
    "parcae": (parcae.CONFIG, parcae.make_tensors(parcae.CONFIG)),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    return write_checkpoint(tmp_path / "source", *FAMILIES[family])


@torch.no_grad()
@pytest.mark.parametrize("num_loops", [1, 3, 9])
def test_cached_equals_uncached(folder, num_loops):
    model = convert(folder)
    expected = model(INPUT_IDS, num_loops=num_loops, use_cache=False).logits
    cache = DynamicCache(config=model.config.with_num_loops(num_loops))
    pieces = [
        model(piece, num_loops=num_loops, past_key_values=cache).logits
        for piece in INPUT_IDS.split([5, 3, 1, 3], dim=1)
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=2e-5)


def test_generation_with_a_cache_equals_generation_without(folder):
    model = convert(folder)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = model.generate(INPUT_IDS, **options)
    assert torch.equal(model.generate(INPUT_IDS, use_cache=False, **options), cached)
    # a left-padded row generates what it generates alone
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), INPUT_IDS[:1]], dim=1)
    generated = model.generate(padded, attention_mask=(padded != 0).long(), **options)
    assert torch.equal(generated[0, -8:], cached[0, -8:])


@torch.no_grad()
def test_saved_and_loaded_gives_the_same_logits(folder, tmp_path):
    model = convert(folder, num_loops=2)
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    # to rounding: where a weight lies in memory decides how some kernels group their sums
    torch.testing.assert_close(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)
    assert loaded.config.num_loops == 2
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    with pytest.raises(ValueError, match="is a model of hf_loop already: load it with AutoModelForCausalLM"):
        convert(tmp_path / "converted")


def test_every_tensor_must_be_known_and_there(family, tmp_path):
    config, tensors = FAMILIES[family]
    missing = dict(tensors)
    gone = ["transformer.adapter.B" if family == "parcae" else "transformer.adapter.weight", "transformer.ln_f.weight"]
    for name in gone:
        del missing[name]
    with pytest.raises(ValueError, match=f"lacks 2 tensors: .*{gone[1]}.*{gone[0]}|.*{gone[0]}.*{gone[1]}"):
        convert(write_checkpoint(tmp_path / "missing", config, missing))
    more = tensors | {"transformer.extra.weight": torch.zeros(2), "another": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"2 tensors that are not known: another, transformer\.extra\.weight"):
        convert(write_checkpoint(tmp_path / "more", config, more))


def test_a_wrong_shape_is_named(family, tmp_path):
    config, tensors = FAMILIES[family]
    short = tensors | {"transformer.prelude.0.mlp.proj.weight": torch.zeros(48, 79)}
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.\w+\.weight \(48, 79\) instead of \(48, 80\)"):
        convert(write_checkpoint(tmp_path / "short", config, short))


# transformers' own classes are held to this in `native_tester.py`
@pytest.mark.parametrize("module", [nanbeige, ouro], ids=lambda module: module.__name__.rpartition("_")[2])
def test_a_tied_head_that_differs_is_refused(module, tmp_path):
    config, tensors = module.CONFIG | {"tie_word_embeddings": True}, module.make_tensors(module.CONFIG)
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    assert convert(write_checkpoint(tmp_path / "copied", config, copied)).config.tie_word_embeddings
    with pytest.raises(ValueError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, but they differ"):
        convert(write_checkpoint(tmp_path / "differs", config, tensors))


def test_a_fused_tensor_that_cannot_be_split_is_named(tmp_path):
    config, tensors = FAMILIES["huginn"]
    short = tensors | {"transformer.coda.0.attn.Wqkv.weight": torch.zeros(100, 48)}
    with pytest.raises(ValueError, match=r"transformer\.coda\.0\.attn\.Wqkv\.weight of shape \(100, 48\)"):
        convert(write_checkpoint(tmp_path, config, short))


def test_the_generation_configuration_is_the_checkpoints_with_our_special_tokens(folder, tmp_path):
    plain = convert(folder).generation_config
    ends = plain.eos_token_id if isinstance(plain.eos_token_id, list) else [plain.eos_token_id]
    # transformers does not save a temperature beside greedy decoding, unless it was read
    settings = {"temperature": 0.6, "max_new_tokens": 7, "bos_token_id": 55, "eos_token_id": [*ends[:1], 77]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = convert(folder)
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    for found in (model.generation_config, loaded.generation_config):
        assert (found.temperature, found.max_new_tokens) == (0.6, 7)
        # of a token that the model has not, the checkpoint's counts
        assert found.bos_token_id == (55 if plain.bos_token_id is None else plain.bos_token_id)
        assert found.pad_token_id == plain.pad_token_id
        assert found.eos_token_id == [*ends, 77]


@pytest.mark.parametrize("text", ["{", '{"max_new_tokens": -1}', "[1]"])
def test_a_generation_configuration_that_cannot_be_read_is_named(text, tmp_path):
    folder = write_checkpoint(tmp_path / "source", *FAMILIES["huginn"])
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json") as refused:
        convert(folder)
    assert "\n" not in str(refused.value)


def test_overrides(folder):
    model = convert(folder, state_init="zeros", num_loops=7)
    assert (model.config.state_init, model.config.num_loops) == ("zeros", 7)
    with pytest.raises(ValueError, match="`depth` is not a field of LoopedConfig, so it cannot be set to 3"):
        convert(folder, depth=3)
    with pytest.raises(ValueError, match="`num_loops` must be an integer of at least 1, got 0"):
        convert(folder, num_loops=0)
    with pytest.raises(ValueError, match="leave no core layer"):
        convert(folder, num_prelude_layers=99)


def test_the_dtype_is_that_of_the_weights_or_the_one_asked_for(family, tmp_path):
    config, tensors = FAMILIES[family]
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    for stored, asked, expected in (
        (tensors, None, torch.float32),
        (halves, None, torch.bfloat16),
        (halves, torch.float32, torch.float32),
        # no weight loses precision
        (halves | {"transformer.ln_f.weight": tensors["transformer.ln_f.weight"]}, None, torch.float32),
    ):
        model = convert(write_checkpoint(tmp_path, config, stored), dtype=asked)
        assert {parameter.dtype for parameter in model.parameters()} == {expected}
        assert model.config.dtype == expected


@torch.no_grad()
@pytest.mark.parametrize("file_name", ["pytorch_model.bin", "model.pt", "sharded"])
def test_weights_in_other_files(file_name, tmp_path):
    config, tensors = FAMILIES["huginn"]
    expected = convert(write_checkpoint(tmp_path / "whole", config, tensors))(INPUT_IDS).logits
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if file_name == "sharded":
        write_shards(folder, tensors)
    else:
        torch.save(tensors, folder / file_name)
    torch.testing.assert_close(convert(folder)(INPUT_IDS).logits, expected)


def write_shards(folder, tensors):
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name].contiguous() for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_files_that_are_missing_or_damaged(tmp_path):
    config, tensors = FAMILIES["huginn"]
    with pytest.raises(OSError, match="there is no folder ./no/such/folder"):
        convert("./no/such/folder")
    with pytest.raises(OSError, match="has no config.json"):
        convert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match="holds no weights"):
        convert(tmp_path)
    write_shards(tmp_path, tensors)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is truncated or damaged"):
        convert(tmp_path)
    shard.unlink()
    with pytest.raises(OSError, match="lacks model-00002-of-00002.safetensors"):
        convert(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        convert(tmp_path)


def test_what_is_no_looped_checkpoint_is_told_where_to_go(tmp_path):
    config, tensors = FAMILIES["huginn"]
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="is a plain 'llama' model: make it looped with hf_loop.retrofit"):
        convert(tmp_path / "llama")
    with pytest.raises(ValueError, match="model type 'spiral', which no converter knows; there are huginn, "):
        convert(write_checkpoint(tmp_path / "spiral", config | {"model_type": "spiral"}, tensors))
    without = {name: value for name, value in config.items() if name != "n_heads"}
    with pytest.raises(ValueError, match=r"config\.json: it lacks 'n_heads'"):
        convert(write_checkpoint(tmp_path / "without", without, tensors))


def test_every_family_is_recognised_by_one_converter(family):
    config, _ = FAMILIES[family]
    assert sum(converter.recognizes(config) for converter in CONVERTERS) == 1


@pytest.mark.parametrize("model_type", ["huginn_backbone", "ifm_moe_backbone", "parcae_backbone"])
def test_the_backbones_are_models_like_others(model_type, tmp_path):
    config = tiny_backbone(model_type)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(INPUT_IDS, use_cache=False, **options)
    assert torch.equal(loaded.generate(INPUT_IDS, **options), expected)
    outputs = model(INPUT_IDS, labels=INPUT_IDS, output_hidden_states=True)
    assert (len(outputs.hidden_states), outputs.loss.ndim) == (config.num_hidden_layers + 1, 0)
    looped = hf_loop.LoopedForCausalLM(hf_loop.LoopedConfig(backbone_config=config)).eval()
    assert looped.model.backbone.config.model_type == model_type
