"""transformers' native `dory` and the converted model are the same function, at any number of loops."""

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
from ...models.model_tester import random_ids
from .native_tester import GREEDY, WITH_LOGITS, NewNativeTester
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
MODES = {"per_loop": "own", "last_loop": "last_loop"}


def make_config(**fields):
    return CONFIG_MAPPING["dory"](**FIELDS | fields)


def make_native(**fields):
    """A native model of random weights, large enough that two different computations differ visibly."""
    torch.manual_seed(0)
    native = transformers.DoryForCausalLM(make_config(**fields)).eval()
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


class TestDory(NewNativeTester):
    converter = dory
    class_name = "DoryForCausalLM"
    loops_field = "n_recurrent_loops"
    schedule = {"num_prelude_layers": 1, "num_coda_layers": 2}
    configurations = [
        {"n_input_layers": 0, "n_recurrent_layers": 5, "n_output_layers": 0},
        {"layer_types": ["full_attention"] * 5},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"initializer_range": 0.05, "ngpt_alpha_init": 0.2},
    ]
    cached = written = [{"recurrent_kv_cache_mode": mode} for mode in MODES]
    missing = ("lm_head.logit_scale", "lm_head.logit_scale")
    # longer than the sliding window
    input_ids = INPUT_IDS

    def make_native(self, **fields):
        return make_native(**fields)

    def make_config(self, **fields):
        return make_config(**fields)

    def caches(self, fields):
        return [lambda config: LoopCache(config, MODES[fields["recurrent_kv_cache_mode"]])]

    def num_slots(self, model, num_loops, fields):
        return super().num_slots(model, num_loops if fields["recurrent_kv_cache_mode"] == "per_loop" else 1, fields)

    def num_filled(self, cache):
        return len([layer for layer in cache.layers if layer.is_initialized])

    def check_generated(self, found, fields):
        assert found.cache.policy.name == MODES[fields["recurrent_kv_cache_mode"]]

    def check_written(self, written, folder, num_loops):
        assert "cache_policy" not in (folder / "generation_config.json").read_text()


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


def test_an_unknown_tensor_is_named_that_transformers_renames_first(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["backbone.layers.0.mixer.extra"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 unexpected \(model\.layers\.0\.self_attn\.extra\)"):
        hf_loop.convert(folder)
