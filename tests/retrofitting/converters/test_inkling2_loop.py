"""transformers' native `inkling2_loop` and the converted model are the same function, at any number of loops."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import hf_loop
from hf_loop.models.call_hooks import hook_calls
from hf_loop.models.loop_cache import LoopCache
from hf_loop.retrofitting.converters import inkling2_loop

from ...models.looped_variants import tiny_looped
from ...models.model_tester import random_ids
from ...models.tiny_backbones import tiny_backbone
from .native_tester import GREEDY, NewNativeTester


needs_inkling = pytest.mark.skipif(
    "inkling2_loop_text" not in CONFIG_MAPPING, reason="transformers has no inkling2_loop before 5.24"
)
pytestmark = needs_inkling
NUM_TOKENS = 90
# longer than the sliding window, and without tokens that the head leaves out
INPUT_IDS = random_ids(2, 12).clamp(max=NUM_TOKENS - 1)
VISION = {
    "model_type": "inkling2_vision",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "posemb_grid_size": 4,
    "projection_hidden_dim": 16,
    "text_hidden_size": 64,
}


@torch.no_grad()
def draw_weights(native):
    """Give a native model random weights, large enough that two different computations differ visibly."""
    torch.manual_seed(0)
    for name, parameter in native.named_parameters():
        if name.endswith("query"):
            parameter.normal_(std=0.3)
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    for name, buffer in native.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    return native.eval()


def make_native(**fields):
    """A native language model."""
    fields = {"unpadded_vocab_size": NUM_TOKENS, **fields}
    return draw_weights(transformers.Inkling2LoopForCausalLM(tiny_backbone("inkling2_loop_text", **fields)))


def make_native_with_images():
    """A native model that reads images, too."""
    text = tiny_backbone("inkling2_loop_text", unpadded_vocab_size=NUM_TOKENS).to_dict()
    config = CONFIG_MAPPING["inkling2_loop"](text_config=text, vision_config=VISION, image_token_id=96)
    return draw_weights(transformers.Inkling2LoopForConditionalGeneration(config))


class TestInkling2Loop(NewNativeTester):
    converter = inkling2_loop
    class_name = "Inkling2LoopForCausalLM"
    loops_field = "loop_num_passes"
    schedule = {"num_prelude_layers": 2, "num_coda_layers": 2}
    configurations = [
        {"loop_layer_index_end": 8},
        # loops of a single block leave no block states, but only hidden states, for messages
        {"loop_layer_index_end": 4},
        {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1},
        {"layer_types": ["hybrid"] * 8},
        {"layer_types": ["hybrid_sliding"] * 8},
        {"unpadded_vocab_size": 97},
        {"loop_num_passes": 1},
    ]
    # transformers' own class makes masks for it that do not fit sliding windows
    generation_options = [{"cache_implementation": "static"}]
    half_dtypes = {torch.float32, torch.bfloat16}
    missing = misshapen = ("model.llm.norm.weight", "model.norm.weight")
    input_ids = INPUT_IDS
    num_tokens = NUM_TOKENS

    def make_native(self, **fields):
        return make_native(**fields)

    def make_config(self, **fields):
        return tiny_backbone("inkling2_loop_text", **fields)

    def caches(self, fields):
        return [*super().caches(fields), LoopCache]

    def rewritten_config(self, original):
        return original | {"tie_word_embeddings": False}

    def check_written(self, written, folder, num_loops):
        tensors = load_file(folder / "model.safetensors")
        # the names of published files, and a head with rows for padding
        assert "model.llm.layers.2.controllers.attn.down_weight" in tensors
        assert tensors["model.llm.unembed.weight"].shape == (97, 64)


@torch.no_grad()
def test_resized_embeddings_give_every_token_a_logit(native, folder, tmp_path):
    model = hf_loop.convert(folder)
    expected = native(INPUT_IDS).logits
    for size in (100, 88):
        for resized in (native, model):
            torch.manual_seed(0)
            resized.resize_token_embeddings(size)
        assert (model.lm_head.out_features, model.config.vocab_size) == (size, size)
        logits = model(INPUT_IDS.clamp(max=87)).logits
        assert torch.equal(logits, native(INPUT_IDS.clamp(max=87)).logits)
        if size == 100:
            assert torch.equal(model(INPUT_IDS).logits[..., :NUM_TOKENS], expected)
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(INPUT_IDS.clamp(max=87)).logits, logits)
    inkling2_loop.to_inkling2_loop(model).save_pretrained(tmp_path / "written")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert torch.equal(written(INPUT_IDS.clamp(max=87)).logits, logits)


@torch.no_grad()
def test_of_a_checkpoint_with_images_the_language_model_is_taken(tmp_path):
    native = make_native_with_images()
    native.save_pretrained(tmp_path / "native")
    model = hf_loop.convert(tmp_path / "native")
    assert torch.equal(model(INPUT_IDS).logits, native(INPUT_IDS).logits)
    assert not [name for name, _ in model.named_parameters() if "vision" in name]
    with pytest.raises(TypeError, match="`pixel_values` is no keyword"):
        model(INPUT_IDS, pixel_values=torch.zeros(1))
    tensors = load_file(tmp_path / "native" / "model.safetensors")
    for change, message in (
        (lambda: tensors.update({"model.visual.extra": torch.ones(2)}), "vision_tower.extra"),
        (lambda: tensors.pop("model.visual.proj_in.weight"), r"1 missing \(model.vision_tower.merger.linear_1.weight"),
    ):
        change()
        save_file(tensors, tmp_path / "native" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            hf_loop.convert(tmp_path / "native")


def test_only_the_native_schedule_is_written_back(folder):
    with pytest.raises(ValueError, match="must run inkling2_loop_text layers, got 'llama'"):
        inkling2_loop.to_inkling2_loop(tiny_looped())
    model = hf_loop.convert(folder)
    hf_loop.add_loop_lora(model, rank=2)
    with pytest.raises(ValueError, match="`loop_lora_rank` of inkling2_loop is always 0, got 2"):
        inkling2_loop.to_inkling2_loop(model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"injection": "add"}, "`injection` must be 'messages' over inkling2_loop_text layers, got 'add'"),
        ({"num_prelude_layers": 1}, "`num_prelude_layers` over inkling2_loop_text layers must be 2, got 1"),
        ({"num_coda_layers": 0}, "`num_coda_layers` over inkling2_loop_text layers must be 2, got 0"),
        ({"loop_norm": "final"}, "`loop_norm` over inkling2_loop_text layers must be 'none', got 'final'"),
        ({"loop_update": "damped"}, "`loop_update` over inkling2_loop_text layers must be 'replace', got 'damped'"),
        ({"state_init": "zeros"}, "`state_init` over inkling2_loop_text layers must be 'input', got 'zeros'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_schedule_is_refused(fields, message, folder):
    with pytest.raises(ValueError, match=message):
        hf_loop.convert(folder, **fields)


@torch.no_grad()
def test_what_is_recorded(native, folder):
    model = hf_loop.convert(folder)
    states = [run(INPUT_IDS, output_hidden_states=True).hidden_states for run in (model, native)]
    assert all(torch.equal(found, expected) for found, expected in zip(*states, strict=True))
    outputs = model(INPUT_IDS, output_loop_logits=True, output_loop_states=True)
    for num_loops, logits in enumerate(outputs.loop_logits, start=1):
        assert torch.equal(logits, model(INPUT_IDS, num_loops=num_loops).logits)
    # hidden states, and the block states of embeddings, prelude and core
    assert [state.shape for state in outputs.loop_states] == [(2, 12, 4 * 64)] * 3
    hooked = hook_calls(model, lambda call, layer, hidden_states, run_layer: hidden_states)
    with pytest.raises(ValueError, match="a inkling2_loop_text decoder cannot be hooked: what its"), hooked:
        pass


def test_exits_are_refused(folder):
    model = hf_loop.convert(folder)
    for call in (model, model.generate):
        with pytest.raises(
            ValueError, match="`exit_criterion` needs a dynamic cache of attention layers on one device"
        ):
            call(INPUT_IDS, exit_criterion="kl")
    with pytest.raises(ValueError, match="`draft_loops` needs a dynamic cache of attention layers on one device"):
        model.generate(INPUT_IDS, draft_loops=1, **GREEDY)


def test_other_layers_take_no_messages():
    with pytest.raises(
        ValueError, match="`injection` 'messages' needs layers that take them, and those of llama do not"
    ):
        tiny_looped(injection="messages")


@pytest.mark.parametrize("make", [make_native, make_native_with_images])
@pytest.mark.parametrize("family", ["looped", "feedback", "hierarchical"])
def test_a_retrofit_is_refused_and_told_of_convert(family, make, tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"runs its layers in loops itself: `hf_loop\.convert` makes it a looped"
    ) as refused:
        hf_loop.retrofit(tmp_path, family)
    assert "\n" not in str(refused.value)
