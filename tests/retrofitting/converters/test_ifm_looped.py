"""LoopedLM converted equals the published forward passes, written out in `ifm_reference.py`, for every recipe."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_loop import convert
from hf_loop.retrofitting.converters import CONVERTERS

from ...models.model_tester import left_pad, random_ids
from .ifm_reference import BASE, EXPERTS, HUGINN, PART_2, RECIPES, TWO_STATES, Reference, make_tensors
from .recurrent_reference import write_checkpoint


INPUT_IDS = random_ids(2, 10)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
# one of every kind of model
KINDS = ["dense_ouro_raw_injection", "moe_huginn", "dense_split_hl_x2", "s_orthoinj"]


def write(folder, model, tensors=None, **sections):
    sections = {"model": model, "tokenizer": {"type": "huggingface", "path": "tokenizer"}, **sections}
    return write_checkpoint(folder, sections, make_tensors(model) if tensors is None else tensors)


def own_loops(model):
    is_two = model.get("huginn_hierarchical_state", "none") != "none"
    return model["huginn_hierarchical_h_cycles"] if is_two else model.get("loop_times", 1)


@torch.no_grad()
@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_equal_the_published_forward_at_any_loop_count(recipe, tmp_path):
    settings = RECIPES[recipe]
    model = convert(write(tmp_path, settings))
    reference = Reference(settings, make_tensors(settings))
    own = own_loops(settings)
    assert model.config.num_loops == own
    found = {}
    for num_loops in (own, own + 1, 1 if own > 1 else 3):
        expected = torch.cat([reference.logits(row, num_loops) for row in INPUT_IDS])
        found[num_loops] = model(INPUT_IDS, num_loops=num_loops).logits
        torch.testing.assert_close(found[num_loops], expected, **CLOSE)
    # the number of loops matters
    assert (found[own] - found[own + 1]).abs().max() > 1e-3 * found[own].abs().max()


@torch.no_grad()
@pytest.mark.parametrize("recipe", KINDS)
def test_caches_padding_saving_and_half_precision(recipe, tmp_path):
    model = convert(write(tmp_path / "source", RECIPES[recipe]))
    own = model.config.num_loops
    for num_loops in (own, own + 2):
        expected = model(INPUT_IDS, num_loops=num_loops, use_cache=False).logits
        outputs = model(INPUT_IDS[:, :6], num_loops=num_loops, use_cache=True)
        pieces = [outputs.logits]
        for piece in INPUT_IDS[:, 6:].split([3, 1], dim=1):
            pieces.append(model(piece, num_loops=num_loops, cache=outputs.cache).logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **CLOSE)
    input_ids, mask = left_pad([INPUT_IDS[0], INPUT_IDS[1, :4]])
    padded = model(input_ids, attention_mask=mask).logits[1, -4:]
    torch.testing.assert_close(padded, model(INPUT_IDS[1:, :4]).logits[0], **CLOSE)

    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)
    assert getattr(loaded.generation_config, "cache_policy", None) == ("last_loop" if recipe == "s_orthoinj" else None)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in make_tensors(RECIPES[recipe]).items()}
    half = convert(write(tmp_path / "half", RECIPES[recipe], halves))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(INPUT_IDS).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["s_fixed_r5", "s_huginn_linear", "s_parcae"])
def test_part_2_is_generated_with_terminal_keys_and_values(recipe, tmp_path):
    settings = RECIPES[recipe]
    model = convert(write(tmp_path, settings))
    assert model.generation_config.cache_policy == "last_loop"
    options = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    outputs = model.generate(INPUT_IDS, max_new_tokens=4, **options)
    assert [len(outputs.cache.layers), outputs.cache.num_loops] == [4, 5]
    for row in range(2):
        reference = Reference(settings, make_tensors(settings))
        tokens, start = INPUT_IDS[row], 0
        for logits in outputs.logits:
            expected = reference.terminal_logits(tokens, start, 5)[0, -1]
            torch.testing.assert_close(logits[row], expected, **CLOSE)
            tokens, start = expected.argmax()[None], start + len(tokens)
    exact = model.generate(INPUT_IDS, max_new_tokens=4, cache_policy="own", **options)
    assert not torch.allclose(exact.logits[-1], outputs.logits[-1], atol=1e-3)


@torch.no_grad()
def test_examples_of_part_2_have_the_published_noise(tmp_path):
    model = convert(write(tmp_path, PART_2))
    positions = torch.arange(10)[None]
    encoded = torch.zeros(3, 10, 48)
    states = model.model.make_initial_state(encoded, positions, torch.tensor([[0], [7], [10**9 + 3]]))
    reference = Reference(PART_2, make_tensors(PART_2))
    for state, example in zip(states, (0, 7, 10**9 + 3), strict=True):
        assert torch.equal(state[None], reference.first_state(encoded[:1], example)[1])


def test_a_slice_of_the_layers_may_loop(tmp_path):
    settings = BASE | {"loop_times": 3, "loop_start_layer": 2, "loop_end_layers": 5}
    model = convert(write(tmp_path, settings))
    expected = Reference(settings, make_tensors(settings)).logits(INPUT_IDS[0], 3)
    torch.testing.assert_close(model(INPUT_IDS[:1]).logits, expected, **CLOSE)


@pytest.mark.parametrize("recipe", KINDS)
def test_every_tensor_must_be_known_and_there(recipe, tmp_path):
    settings, tensors = RECIPES[recipe], make_tensors(RECIPES[recipe])
    gone = "loop_input_injection_module" if recipe == "dense_ouro_raw_injection" else "input_injection"
    names = {f"{gone}.A_log", "layers.2.attention.wk.weight"}
    missing = {name: tensor for name, tensor in tensors.items() if name not in names}
    with pytest.raises(ValueError, match=f"lacks 2 tensors: {gone}.A_log, layers.2.attention.wk.weight"):
        convert(write(tmp_path / "missing", settings, missing))
    more = tensors | {"layers.9.attention.wq.weight": torch.zeros(48, 48), "input_injection.norm": torch.zeros(2)}
    with pytest.raises(ValueError, match="2 tensors that are not known: input_injection.norm, layers.9.attention.wq"):
        convert(write(tmp_path / "more", settings, more))
    name = "layers.1.attention.wo.weight"
    with pytest.raises(ValueError, match=r"self_attn\.o_proj\.weight \(48, 47\) instead of \(48, 48\)"):
        convert(write(tmp_path / "short", settings, tensors | {name: torch.zeros(48, 47)}))


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        # the recipe `moe_ff112_prelude_injection`
        (BASE | EXPERTS, "dense_prelude_input_injection", "diagonal"),
        # settings that the public code has not
        (BASE, "window", 64),
        (PART_2, "window", 64),
        (BASE | HUGINN, "huginn_recurrent_layers", 3),
        (BASE | TWO_STATES | {"huginn_hierarchical_state": "split_hl"}, "loop_times", 6),
        (BASE, "swiglu", False),
        (BASE, "qknorm", True),
        (BASE, "rope_head_dim", 8),
        (BASE, "output_size", 50),
        (BASE | EXPERTS, "moe_router_score_func", "softmax"),
        (BASE | EXPERTS, "num_shared_experts", 1),
        (BASE | {"loop_input_injection": "diagonal"}, "loop_start_layer", 1),
        (BASE | TWO_STATES | {"huginn_hierarchical_state": "shared_hl"}, "huginn_state_init", "input"),
        (PART_2 | {"huginn_prelude_norm": "rms"}, "huginn_state_init", "input"),
        (PART_2 | {"huginn_prelude_norm": "rms"}, "huginn_input_injection", "linear"),
        (BASE | HUGINN, "layernorm_num_groups", 4),
    ],
)
def test_settings_without_a_counterpart_are_refused(settings, field, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{field}` of the checkpoint is {value!r}"):
        convert(write(tmp_path, settings | {field: value}, make_tensors(BASE)))


def test_a_setting_that_is_left_out_has_its_default(tmp_path):
    settings = {name: value for name, value in BASE.items() if name != "swiglu"}
    with pytest.raises(ValueError, match="`swiglu` of the checkpoint is False"):
        convert(write(tmp_path, settings))


def test_a_distilled_student_is_refused(tmp_path):
    student = {"teacher": "huginn-s-learned-entropy0p01"}
    with pytest.raises(ValueError, match="a distilled student predicts a state of its teacher"):
        convert(write(tmp_path, PART_2, {"in_proj.weight": torch.zeros(48, 48)}, student=student))


def test_one_converter_recognises_them():
    for settings in RECIPES.values():
        assert sum(converter.recognizes({"model": settings}) for converter in CONVERTERS) == 1
    assert not any(converter.recognizes({"model": "transformer"}) for converter in CONVERTERS)
