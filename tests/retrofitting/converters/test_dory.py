"""transformers' native `dory` and the converted model are the same function, at any number of loops."""

import copy
import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import hf_loop
from hf_loop.models.loop_cache import LoopCache
from hf_loop.models.scaled_head import ScaledHead
from hf_loop.retrofitting.converters import dory

from ...models.looped_variants import tiny_looped
from ...models.model_tester import left_pad, random_ids
from .recurrent_reference import write_checkpoint


needs_dory = pytest.mark.skipif("dory" not in CONFIG_MAPPING, reason="transformers has no dory before 5.24")
pytestmark = needs_dory
# longer than the sliding window
INPUT_IDS = random_ids(2, 12)
FIELDS = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": 5,
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "n_input_layers": 1,
    "n_recurrent_layers": 2,
    "n_output_layers": 2,
    "n_recurrent_loops": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
WITH_LOGITS = {"output_logits": True, "return_dict_in_generate": True}
MODES = {"per_loop": "own", "last_loop": "last_loop"}


def make_native(**fields):
    """A native model of random weights, large enough that two different computations differ visibly."""
    torch.manual_seed(0)
    native = transformers.DoryForCausalLM(CONFIG_MAPPING["dory"](**FIELDS | fields)).eval()
    with torch.no_grad():
        for name, parameter in native.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif name.endswith(("lambda_1", "lambda_2")):
                # residuals take half of the update, not a twentieth
                parameter.mul_(10 * (1 + 0.3 * torch.randn_like(parameter)))
            else:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return native


def with_loops(native, num_loops):
    """The native model made anew for another number of loops, with the same weights."""
    config = copy.deepcopy(native.config)
    config.n_recurrent_loops = num_loops
    other = transformers.DoryForCausalLM(config).eval()
    other.load_state_dict(native.state_dict())
    return other


@pytest.fixture
def native():
    return make_native()


@pytest.fixture
def folder(native, tmp_path):
    native.save_pretrained(tmp_path / "native")
    return tmp_path / "native"


@torch.no_grad()
def test_logits_equal_the_native_model_bit_for_bit(native, folder):
    model = hf_loop.convert(folder)
    assert (model.config.num_prelude_layers, model.config.num_coda_layers, model.config.num_loops) == (1, 2, 3)
    assert torch.equal(model(INPUT_IDS).logits, native(INPUT_IDS).logits)
    found = [model(INPUT_IDS, num_loops=num_loops).logits for num_loops in (1, 2, 5)]
    for num_loops, logits in zip((1, 2, 5), found, strict=True):
        assert torch.equal(logits, with_loops(native, num_loops)(INPUT_IDS).logits)
    # the number of loops matters
    assert (found[0] - found[1]).abs().max() > 0.01 * found[0].abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"n_input_layers": 0, "n_recurrent_layers": 5, "n_output_layers": 0},
        {"layer_types": ["full_attention"] * 5},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"initializer_range": 0.05, "ngpt_alpha_init": 0.2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_configurations(fields, tmp_path):
    native = make_native(**fields)
    native.save_pretrained(tmp_path)
    assert torch.equal(hf_loop.convert(tmp_path)(INPUT_IDS).logits, native(INPUT_IDS).logits)


@torch.no_grad()
def test_half_precision(folder):
    logits = hf_loop.convert(folder, dtype=torch.bfloat16)(INPUT_IDS).logits
    # the head scales in float32
    assert logits.dtype == torch.float32
    native = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(logits, native(INPUT_IDS).logits)


PUBLISHED = {
    r"^model\.embed_tokens": lambda match: "backbone.embeddings",
    r"^model\.layers\.(\d+)\.self_attn\.gate_proj": lambda match: f"backbone.layers.{2 * int(match[1])}.mixer.g_proj",
    r"^model\.layers\.(\d+)\.self_attn": lambda match: f"backbone.layers.{2 * int(match[1])}.mixer",
    r"^model\.layers\.(\d+)\.lambda_1": lambda match: f"backbone.layers.{2 * int(match[1])}.attn_alpha",
    r"^model\.layers\.(\d+)\.mlp": lambda match: f"backbone.layers.{2 * int(match[1]) + 1}.mixer",
    r"^model\.layers\.(\d+)\.lambda_2": lambda match: f"backbone.layers.{2 * int(match[1]) + 1}.mlp_alpha",
}


def published_tensors(native):
    """The weights as they are published: attention and MLP of a layer are two layers."""
    tensors = {}
    for name, tensor in native.state_dict().items():
        for pattern, change in PUBLISHED.items():
            name = re.sub(pattern, change, name)
        tensors[name] = tensor
    return tensors


@torch.no_grad()
def test_the_published_layout(native, tmp_path):
    config, tensors = native.config.to_dict(), published_tensors(native)
    assert (config["num_hidden_layers"], config["n_recurrent_layers"]) == (10, 4)
    names = {"backbone.layers.9.mixer.up_proj.weight", "backbone.layers.8.attn_alpha", "lm_head.logit_scale"}
    assert names < tensors.keys()
    folder = write_checkpoint(tmp_path, config, tensors)
    assert torch.equal(hf_loop.convert(folder)(INPUT_IDS).logits, native(INPUT_IDS).logits)


@torch.no_grad()
def test_a_left_padded_batch_equals_the_native_model(native, folder):
    model = hf_loop.convert(folder)
    input_ids, attention_mask = left_pad([random_ids(1, length, length)[0] for length in (3, 9)])
    # Dory scales queries channel by channel after the rotation, so that distances alone do not count: positions are
    # counted without the padding, as `generate` does
    inputs = {"attention_mask": attention_mask, "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)}
    logits = model(input_ids, **inputs).logits
    assert torch.equal(logits, native(input_ids, **inputs).logits)
    torch.testing.assert_close(logits[0, -3:], model(input_ids[:1, -3:]).logits[0], atol=1e-5, rtol=1e-5)
    counted = model(input_ids, attention_mask=attention_mask).logits
    assert torch.equal(counted, native(input_ids, attention_mask=attention_mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_cache_in_either_mode_equals_the_native_model(mode, tmp_path):
    native = make_native(recurrent_kv_cache_mode=mode)
    native.save_pretrained(tmp_path)
    model = hf_loop.convert(tmp_path)
    input_ids, attention_mask = left_pad([random_ids(1, length, length)[0] for length in (7, 14)])
    for num_loops in (1, 3, 4):
        other = with_loops(native, num_loops)
        theirs, ours = None, LoopCache(model.config.with_num_loops(num_loops), MODES[mode])
        seen = 0
        for piece in input_ids.split([6, 3, 1, 1, 3], dim=1):
            seen += piece.shape[1]
            mask = attention_mask[:, :seen]
            positions = torch.arange(seen - piece.shape[1], seen)[None]
            inputs = {"input_ids": piece, "attention_mask": mask, "position_ids": positions}
            expected = other(**inputs, cache=theirs, use_cache=True)
            outputs = model(**inputs, cache=ours, num_loops=num_loops)
            theirs = expected.cache
            visible = mask[:, -piece.shape[1] :].bool()
            torch.testing.assert_close(outputs.logits[visible], expected.logits[visible], atol=1e-6, rtol=1e-6)
        num_layers = 3 + 2 * (num_loops if mode == "per_loop" else 1)
        assert len(theirs.layers) == (num_layers if mode == "per_loop" else 5)
        assert len([layer for layer in ours.layers if layer.is_initialized]) == num_layers


@pytest.mark.parametrize("num_loops", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_generation_in_either_mode_equals_the_native_model(mode, num_loops, tmp_path):
    native = make_native(recurrent_kv_cache_mode=mode)
    native.save_pretrained(tmp_path / "native")
    model = hf_loop.convert(tmp_path / "native")
    model.save_pretrained(tmp_path / "ours")
    input_ids, attention_mask = left_pad([random_ids(1, length, length)[0] for length in (3, 9)])
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    expected = with_loops(native, num_loops).generate(**inputs, **GREEDY, **WITH_LOGITS)
    for ours in (model, AutoModelForCausalLM.from_pretrained(tmp_path / "ours")):
        found = ours.generate(**inputs, **GREEDY, num_loops=num_loops, **WITH_LOGITS)
        assert torch.equal(found.sequences, expected.sequences)
        assert found.cache.policy.name == MODES[mode]
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-5)


def test_the_modes_differ():
    """What `last_loop` reads is not what a model without a cache reads, so that the tests above can tell."""
    native = make_native(recurrent_kv_cache_mode="last_loop")
    logits = [
        torch.stack(native.generate(INPUT_IDS, **GREEDY, **options).logits)
        for options in (
            WITH_LOGITS,
            WITH_LOGITS | {"use_cache": False},
        )
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_gradients_equal_the_native_model(native, folder):
    model = hf_loop.convert(folder)
    gradients = []
    for trained in (native, model):
        trained.train()
        trained(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss.backward()
        gradients.append({name.replace("backbone.", ""): p.grad for name, p in trained.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_resized_embeddings_keep_the_scale_of_every_token(tie_word_embeddings, tmp_path):
    make_native(tie_word_embeddings=tie_word_embeddings).save_pretrained(tmp_path / "native")
    model = hf_loop.convert(tmp_path / "native")
    before, scale = model(INPUT_IDS).logits, model.lm_head.logit_scale.clone()
    for size in (100, 97, 96):
        model.resize_token_embeddings(size, mean_resizing=False)
        assert isinstance(model.lm_head, ScaledHead)
        assert (model.lm_head.out_features, model.config.vocab_size, len(model.lm_head.weight)) == (size, size, size)
        kept = min(size, 97)
        assert torch.equal(model.lm_head.logit_scale[:kept], scale[:kept])
        assert (model.lm_head.logit_scale[97:] == model.config.initializer_range).all()
        logits = model(INPUT_IDS.clamp(max=95)).logits
        assert logits.shape[-1] == size
        if size >= 97:
            torch.testing.assert_close(model(INPUT_IDS).logits[..., :97], before)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie_word_embeddings
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(INPUT_IDS.clamp(max=95)).logits, logits)
    assert torch.equal(dory.to_dory(model)(INPUT_IDS.clamp(max=95)).logits, logits)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_loops", [None, 5])
def test_written_back_it_is_the_native_model(num_loops, mode, tmp_path):
    native = make_native(recurrent_kv_cache_mode=mode)
    native.save_pretrained(tmp_path / "native")
    model = hf_loop.convert(tmp_path / "native")
    written = dory.to_dory(model, num_loops)
    assert not {p.data_ptr() for p in written.parameters()} & {p.data_ptr() for p in model.parameters()}
    written.save_pretrained(tmp_path / "written")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert isinstance(loaded, transformers.DoryForCausalLM)
    expected = model(INPUT_IDS, num_loops=num_loops).logits
    for back in (written, loaded):
        assert back.config.n_recurrent_loops == (num_loops or 3)
        assert torch.equal(back(INPUT_IDS).logits, expected)
    if num_loops is None:
        saved, original = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("written", "native"))
        assert saved == original
        assert "cache_policy" not in (tmp_path / "written" / "generation_config.json").read_text()
        saved, original = (load_file(tmp_path / name / "model.safetensors") for name in ("written", "native"))
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], original[name]) for name in saved)


def test_only_the_native_schedule_and_caches_are_written_back(folder):
    with pytest.raises(ValueError, match="must run dory layers, got 'llama'"):
        dory.to_dory(tiny_looped())
    with pytest.raises(ValueError, match="`loop_norm` of dory is always 'none', got 'final'"):
        dory.to_dory(hf_loop.convert(folder, loop_norm="final"))
    model = hf_loop.convert(folder)
    model.generation_config.cache_policy = "cyclic:2"
    with pytest.raises(ValueError, match="`cache_policy` of dory is 'own' or 'last_loop', got 'cyclic:2'"):
        dory.to_dory(model)


def test_a_plain_decoder_cannot_be_made_of_it(folder):
    with pytest.raises(ValueError, match="`injection` 'unit_add' at num_loops=1 brings the prelude's output"):
        hf_loop.unroll(hf_loop.convert(folder), num_loops=1)
    with pytest.raises(ValueError, match=r"runs its layers in loops itself: `hf_loop\.convert` makes it a looped"):
        hf_loop.retrofit(folder)


def test_special_tokens_come_from_the_tokenizer_only_where_the_configuration_has_none():
    source = CONFIG_MAPPING["dory"](**FIELDS | {"eos_token_id": None}).to_dict()
    source["tokenizer_token_ids"] = {"eos_token_id": 7, "bos_token_id": 8}
    config = dory.convert_config(source)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 7)


def test_an_older_transformers_is_named(folder, monkeypatch):
    monkeypatch.setattr(dory, "CONFIG_MAPPING", {})
    with pytest.raises(ValueError, match=r"a dory checkpoint needs transformers 5\.24 or later, got "):
        hf_loop.convert(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("lm_head.logit_scale"), r"not those of dory: 1 missing \(lm_head.logit_scale\)"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "not known: extra"),
        (
            # transformers renames it before it finds that it has no such weight
            lambda tensors: tensors.update({"backbone.layers.0.mixer.extra": torch.ones(2)}),
            r"1 unexpected \(model\.layers\.0\.self_attn\.extra\)",
        ),
        (lambda tensors: tensors.update({"lm_head.weight": torch.ones(5, 64)}), "1 misshapen .*lm_head.weight"),
    ],
    ids=["missing", "unknown", "unknown and renamed", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        hf_loop.convert(folder)
