"""Nanbeige4.2 converted equals its published forward, written out here over its own tensor names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_loop
from hf_loop import FeedbackConfig, FeedbackForCausalLM, LoopedForCausalLM, SleepConfig, SleepForCausalLM
from hf_loop.retrofitting.converters import nanbeige

from ...models.hierarchical_variants import tiny_hierarchical
from ...models.looped_variants import tiny_looped
from ...models.model_tester import random_ids
from ...models.tiny_backbones import tiny_backbone
from .llama_reference import attention, converted_model, linear, llama_shapes, random_tensors, rms_norm, swiglu


# heads are wider than the hidden size divided by their number, as in the published 3B
CONFIG = {
    "model_type": "nanbeige",
    "architectures": ["NanbeigeForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "kv_channels": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 70000000,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "num_loops": 2,
    "loop_loss_weights": [],
    "skip_loop_final_norm": False,
    "qk_layernorm": False,
    "emb_neighbor_num": None,
    "insert_ngram_layer_idx": [],
    "bos_token_id": 95,
    "eos_token_id": 96,
    "pad_token_id": 0,
}
INPUT_IDS = random_ids(2, 40)


def make_tensors(config: dict) -> dict[str, Tensor]:
    shapes = llama_shapes(config)
    biased = {"attention_bias": "self_attn", "mlp_bias": "mlp"}
    for field, part in biased.items():
        if config.get(field):
            names = [name for name in shapes if f".{part}." in name]
            shapes |= {name.replace(".weight", ".bias"): shapes[name][:1] for name in names}
    return random_tensors(shapes)


def reference_logits(config: dict, tensors: dict[str, Tensor], input_ids: Tensor, num_loops: int) -> Tensor:
    """Llama's layers `num_loops` times, with the final norm after every loop or after the last alone."""

    def norm(x, name):
        return rms_norm(x, tensors[f"{name}.weight"], config["rms_norm_eps"])

    hidden_states = tensors["model.embed_tokens.weight"][input_ids]
    for loop in range(num_loops):
        for index in range(config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            normed = norm(hidden_states, f"{layer}.input_layernorm")
            hidden_states = hidden_states + attention(normed, tensors, f"{layer}.self_attn", config)
            normed = norm(hidden_states, f"{layer}.post_attention_layernorm")
            hidden_states = hidden_states + swiglu(normed, tensors, f"{layer}.mlp")
        if not config["skip_loop_final_norm"] or loop == num_loops - 1:
            hidden_states = norm(hidden_states, "model.norm")
    return linear(hidden_states, tensors, "lm_head")


@pytest.mark.parametrize(
    "changes",
    [{}, {"skip_loop_final_norm": True}, {"attention_bias": True, "mlp_bias": True}],
    ids=["published", "norm after the last loop", "biases"],
)
@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(changes):
    config = CONFIG | changes
    tensors = make_tensors(config)
    model = converted_model(nanbeige, config, tensors)
    for num_loops in (1, 2, 5):
        expected = reference_logits(config, tensors, INPUT_IDS, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(INPUT_IDS).logits, model(INPUT_IDS, num_loops=2).logits)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@torch.no_grad()
def test_cached_equals_uncached(num_loops):
    model = converted_model(nanbeige, CONFIG, make_tensors(CONFIG))
    expected = model(INPUT_IDS, num_loops=num_loops, use_cache=False).logits
    cache = DynamicCache(config=model.config.with_num_loops(num_loops))
    pieces = INPUT_IDS.split([30, 1, 9], dim=1)
    logits = [model(piece, num_loops=num_loops, past_key_values=cache).logits for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_checkpoint_on_disk_is_converted_saved_and_loaded(tmp_path):
    tensors = make_tensors(CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    model = hf_loop.convert(tmp_path)
    expected = reference_logits(CONFIG, tensors, INPUT_IDS, 2)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert loaded.generation_config.eos_token_id == model.config.eos_token_id
    assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)


def test_tied_embeddings_need_no_head():
    config = CONFIG | {"tie_word_embeddings": True}
    tensors = make_tensors(config)
    del tensors["lm_head.weight"]
    names = nanbeige.convert_state_dict(config, dict(tensors))
    assert "lm_head.weight" not in names
    assert nanbeige.convert_config(config).tie_word_embeddings


def test_the_loss_weights_of_earlier_loops_set_the_loop_count():
    assert nanbeige.convert_config(CONFIG).num_loops == 2
    assert nanbeige.convert_config(CONFIG | {"loop_loss_weights": [0.2, 0.3]}).num_loops == 3


def test_rotary_scaling_of_either_spelling_reaches_the_backbone():
    config = nanbeige.convert_config(CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    rotary = config.backbone_config.rope_parameters
    assert (rotary["rope_type"], rotary["factor"], rotary["rope_theta"]) == ("linear", 2.0, 70000000)
    rope_parameters = {"rope_type": "default", "rope_theta": 5000.0}
    config = nanbeige.convert_config({**CONFIG, "rope_theta": None, "rope_parameters": rope_parameters})
    assert config.backbone_config.rope_parameters["rope_theta"] == 5000.0


def test_stored_rotary_frequencies_are_superfluous():
    tensors = make_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    nanbeige.convert_state_dict(CONFIG, tensors)
    assert tensors == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qk_layernorm", True),
        ("emb_neighbor_num", 3),
        ("insert_ngram_layer_idx", [0]),
        ("enable_double_loop_split", True),
        ("loop_share_kv", True),
        ("enable_hyper_connection", True),
        ("enable_mhc", True),
        ("enable_depth_attention", True),
    ],
)
def test_options_that_change_the_computation_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        nanbeige.convert_config(CONFIG | {field: value})


def test_missing_tensors_are_named():
    tensors = make_tensors(CONFIG)
    del tensors["model.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight"):
        nanbeige.convert_state_dict(CONFIG, tensors)


def test_the_unlooped_nanbeige_is_not_recognized():
    assert nanbeige.recognizes(CONFIG)
    assert not nanbeige.recognizes({"model_type": "nanbeige"})


@pytest.mark.parametrize("loop_norm", ["final", "none"])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("num_loops", [None, 5])
@torch.no_grad()
def test_a_looped_model_is_written_in_the_published_layout(loop_norm, tie_word_embeddings, num_loops, tmp_path):
    model = tiny_looped(loop_norm=loop_norm, tie_word_embeddings=tie_word_embeddings, num_loops=3)
    hf_loop.export(model, tmp_path, "nanbeige", num_loops=num_loops)
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    assert (config["model_type"], config["architectures"]) == ("nanbeige", ["NanbeigeForCausalLM"])
    assert config["num_loops"] == (num_loops or 3) and config["loop_loss_weights"] == []
    names = llama_shapes(config).keys() - ({"lm_head.weight"} if tie_word_embeddings else set())
    assert tensors.keys() == names
    # the published forward, by what is written alone
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]} if tie_word_embeddings else {}
    expected = model(INPUT_IDS, num_loops=num_loops).logits
    reference = reference_logits(config, tensors | head, INPUT_IDS, config["num_loops"])
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=1e-5)
    back = hf_loop.convert(tmp_path)
    assert torch.equal(back(INPUT_IDS).logits, expected)
    for other in (1, 4):
        assert torch.equal(back(INPUT_IDS, num_loops=other).logits, model(INPUT_IDS, num_loops=other).logits)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(back.config, name) == getattr(model.config, name) == config[name]


def test_that_there_is_no_special_token_is_written_and_read(tmp_path):
    model = tiny_looped()
    model.config.bos_token_id = model.config.pad_token_id = None
    hf_loop.export(model, tmp_path, "nanbeige")
    back = hf_loop.convert(tmp_path)
    assert (back.config.bos_token_id, back.config.pad_token_id) == (None, None)


def llama_layers(**fields) -> LoopedForCausalLM:
    return LoopedForCausalLM(hf_loop.LoopedConfig(backbone_config=tiny_backbone("llama", **fields)))


ROPE = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
REFUSED = {
    "prelude": (lambda: tiny_looped(num_prelude_layers=1), "`num_prelude_layers` of nanbeige is always 0, got 1"),
    "coda": (lambda: tiny_looped(num_coda_layers=2), "`num_coda_layers` of nanbeige is always 0, got 2"),
    "injection": (lambda: tiny_looped(injection="add"), "`injection` of nanbeige is always 'none', got 'add'"),
    "state": (
        lambda: tiny_looped(injection="add", state_init="zeros"),
        "`injection` of nanbeige is always 'none', got 'add'",
    ),
    "damped": (lambda: tiny_looped(loop_update="damped"), "`loop_update` of nanbeige is always 'replace'"),
    "gate": (lambda: tiny_looped(exit_gate=True), "`exit_gate` of nanbeige is always False, got True"),
    "norm": (lambda: tiny_looped(loop_norm="own"), "`loop_norm` of nanbeige is 'final' or 'none', got 'own'"),
    "projection": (lambda: tiny_looped(state_projection=True), "`state_projection` of nanbeige is always False"),
    "loop LoRA": (lambda: tiny_looped(loop_lora_rank=2), "`loop_lora_rank` of nanbeige is always 0, got 2"),
    "layers": (lambda: tiny_looped("qwen3"), "`model` must run llama layers, got 'qwen3'"),
    "bias": (lambda: llama_layers(attention_bias=True), "`attention_bias` of nanbeige is always False, got True"),
    "MLP bias": (lambda: llama_layers(mlp_bias=True), "`mlp_bias` of nanbeige is always False, got True"),
    "activation": (lambda: llama_layers(hidden_act="gelu"), "`hidden_act` of nanbeige is always 'silu', got 'gelu'"),
    "rotary": (lambda: llama_layers(rope_parameters=ROPE), "`rope_parameters` of nanbeige are a `rope_theta` alone"),
    "feedback": (
        lambda: FeedbackForCausalLM(FeedbackConfig(backbone_config=tiny_backbone("llama"))),
        "`model` must be a LoopedForCausalLM, got FeedbackForCausalLM",
    ),
    "sleep": (
        lambda: SleepForCausalLM(SleepConfig(backbone_config=tiny_backbone("llama"))),
        "`model` must be a LoopedForCausalLM, got SleepForCausalLM",
    ),
    "hierarchical": (tiny_hierarchical, "`model` must be a LoopedForCausalLM, got HierarchicalForCausalLM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_layout_cannot_say_is_named_and_nothing_is_written(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        hf_loop.export(make(), tmp_path / "written", "nanbeige")
    assert list(tmp_path.iterdir()) == []


def test_every_field_of_the_schedule_is_known_to_the_writer():
    """A field that is added to looped models is refused or written, not forgotten."""
    own = set(hf_loop.models.FAMILIES["looped"].own_fields)
    # these say more about a field that is refused, or are written
    described = {name for name in own if name.startswith("loop_lora_")} | {"loop_step"}
    described |= {"state_std", "state_seed", "injection_norm", "injection_bias"}
    assert own - described == nanbeige.SCHEDULE.keys() - {"loop_lora_rank"} | {"num_loops", "loop_norm"}
