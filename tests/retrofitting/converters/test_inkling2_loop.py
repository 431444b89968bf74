"""transformers' native `inkling2_loop` and the converted model are the same function, at any number of loops."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

import hf_loop
from hf_loop.models.call_hooks import hook_calls
from hf_loop.models.loop_cache import LoopCache
from hf_loop.retrofitting.converters import inkling2_loop

from ...models.looped_variants import tiny_looped
from ...models.model_tester import left_pad, random_ids
from ...models.tiny_backbones import tiny_backbone


needs_inkling = pytest.mark.skipif(
    "inkling2_loop_text" not in CONFIG_MAPPING, reason="transformers has no inkling2_loop before 5.24"
)
pytestmark = needs_inkling
NUM_TOKENS = 90
# longer than the sliding window, and without tokens that the head leaves out
INPUT_IDS = random_ids(2, 12).clamp(max=NUM_TOKENS - 1)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
WITH_LOGITS = {"output_logits": True, "return_dict_in_generate": True}
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


def with_loops(native, num_loops):
    """The native model made anew for another number of loops, with the same weights."""
    config = copy.deepcopy(native.config)
    config.loop_num_passes = num_loops
    other = transformers.Inkling2LoopForCausalLM(config).eval()
    other.load_state_dict(native.state_dict())
    return other


def padded_rows(*lengths):
    return left_pad([random_ids(1, length, length)[0].clamp(max=NUM_TOKENS - 1) for length in lengths])


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
    assert (model.config.num_prelude_layers, model.config.num_coda_layers, model.config.num_loops) == (2, 2, 3)
    assert torch.equal(model(INPUT_IDS).logits, native(INPUT_IDS).logits)
    found = [model(INPUT_IDS, num_loops=num_loops).logits for num_loops in (1, 2, 5)]
    for num_loops, logits in zip((1, 2, 5), found, strict=True):
        assert torch.equal(logits, with_loops(native, num_loops)(INPUT_IDS).logits)
        assert torch.equal(logits, hf_loop.convert(folder, num_loops=num_loops)(INPUT_IDS).logits)
    # the number of loops matters
    assert (found[0] - found[1]).abs().max() > 0.01 * found[0].abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"loop_layer_index_end": 8},
        # loops of a single block leave no block states, but only hidden states, for messages
        {"loop_layer_index_end": 4},
        {"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1},
        {"layer_types": ["hybrid"] * 8},
        {"layer_types": ["hybrid_sliding"] * 8},
        {"unpadded_vocab_size": 97},
        {"loop_num_passes": 1},
    ],
    ids=str,
)
def test_other_configurations(fields, tmp_path):
    native = make_native(**fields)
    native.save_pretrained(tmp_path)
    model = hf_loop.convert(tmp_path)
    assert torch.equal(model(INPUT_IDS).logits, native(INPUT_IDS).logits)
    assert torch.equal(model(INPUT_IDS, num_loops=4).logits, with_loops(native, 4)(INPUT_IDS).logits)


@torch.no_grad()
def test_half_precision(folder, tmp_path):
    native = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = hf_loop.convert(folder, dtype=torch.bfloat16)
    dtypes = {name.replace("backbone.", ""): parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes == {name: parameter.dtype for name, parameter in native.named_parameters()}
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
    expected = native(INPUT_IDS).logits
    assert torch.equal(model(INPUT_IDS).logits, expected)
    # as it is stored: what is always float32 does not make the rest so
    native.save_pretrained(tmp_path / "half")
    stored = hf_loop.convert(tmp_path / "half")
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored(INPUT_IDS).logits, expected)
    assert torch.equal(inkling2_loop.to_inkling2_loop(stored)(INPUT_IDS).logits, expected)


@torch.no_grad()
def test_a_left_padded_batch_equals_the_native_model(native, folder):
    model = hf_loop.convert(folder)
    input_ids, attention_mask = padded_rows(3, 9)
    # queries are scaled by their positions, which are counted without the padding, as `generate` does
    inputs = {"attention_mask": attention_mask, "position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)}
    logits = model(input_ids, **inputs).logits
    assert torch.equal(logits, native(input_ids, **inputs).logits)
    torch.testing.assert_close(logits[0, -3:], model(input_ids[:1, -3:]).logits[0], atol=1e-5, rtol=1e-5)
    counted = model(input_ids, attention_mask=attention_mask).logits
    assert torch.equal(counted, native(input_ids, attention_mask=attention_mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("make_cache", [lambda config: DynamicCache(config=config), LoopCache])
@pytest.mark.parametrize("num_loops", [1, 3, 4])
def test_a_cache_equals_the_native_model(num_loops, make_cache, native, folder):
    model, other = hf_loop.convert(folder), with_loops(native, num_loops)
    input_ids, attention_mask = padded_rows(7, 14)
    theirs, ours = None, make_cache(model.config.with_num_loops(num_loops))
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
    assert len(theirs.layers) == len(ours.layers) == 4 + 4 * num_loops


@pytest.mark.parametrize("num_loops", [1, 3, 4])
def test_generation_equals_the_native_model(num_loops, native, folder, tmp_path):
    model = hf_loop.convert(folder)
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    input_ids, attention_mask = padded_rows(3, 9)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    expected = with_loops(native, num_loops).generate(**inputs, **GREEDY, **WITH_LOGITS)
    for ours in (model, loaded):
        found = ours.generate(**inputs, **GREEDY, num_loops=num_loops, **WITH_LOGITS)
        assert torch.equal(found.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-5)
    # transformers' own class makes masks for it that do not fit sliding windows
    static = model.generate(**inputs, **GREEDY, num_loops=num_loops, cache_implementation="static")
    assert torch.equal(static, expected.sequences)
    loaded.generation_config.num_loops = num_loops
    assert torch.equal(loaded.generate(**inputs, **GREEDY), expected.sequences)


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
@pytest.mark.parametrize("num_loops", [None, 5])
def test_written_back_it_is_the_native_model(num_loops, folder, tmp_path):
    model = hf_loop.convert(folder)
    written = inkling2_loop.to_inkling2_loop(model, num_loops)
    assert not {p.data_ptr() for p in written.parameters()} & {p.data_ptr() for p in model.parameters()}
    written.save_pretrained(tmp_path / "written")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert isinstance(loaded, transformers.Inkling2LoopForCausalLM)
    expected = model(INPUT_IDS, num_loops=num_loops).logits
    for back in (written, loaded):
        assert back.config.loop_num_passes == (num_loops or 3)
        assert torch.equal(back(INPUT_IDS).logits, expected)
    if num_loops is None:
        saved, original = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("written", "native"))
        assert saved == original | {"tie_word_embeddings": False}
        saved, original = (load_file(tmp_path / name / "model.safetensors") for name in ("written", "native"))
        # the names of published files, and a head with rows for padding
        assert saved.keys() == original.keys() and "model.llm.layers.2.controllers.attn.down_weight" in saved
        assert saved["model.llm.unembed.weight"].shape == (97, 64)
        assert all(torch.equal(saved[name], original[name]) for name in saved)


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


def test_an_older_transformers_is_named(folder, monkeypatch):
    monkeypatch.setattr(inkling2_loop, "CONFIG_MAPPING", {})
    with pytest.raises(ValueError, match=r"an inkling2_loop checkpoint needs transformers 5\.24 or later, got "):
        hf_loop.convert(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.llm.norm.weight"), r"1 missing \(model.norm.weight\)"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "not known: extra"),
        (lambda tensors: tensors.update({"model.llm.norm.weight": torch.ones(5)}), "1 misshapen .*model.norm.weight"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        hf_loop.convert(folder)
