"""transformers' native `hrm_text` and the converted model are the same function, at any number of cycles."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, HrmTextForCausalLM

import hf_loop
from hf_loop import HierarchicalForCausalLM
from hf_loop.retrofitting.converters.hrm_text import to_hrm_text

from ...models.hierarchical_variants import tiny_hierarchical, tiny_hrm_text_config
from ...models.model_tester import left_pad, random_ids


INPUT_IDS = random_ids(2, 9)
TYPES = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0]]).expand(2, -1)


def make_native(num_cycles: int = 2, **overrides) -> HrmTextForCausalLM:
    torch.manual_seed(0)
    native = HrmTextForCausalLM(tiny_hrm_text_config(H_cycles=num_cycles, L_cycles=3, **overrides)).eval()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.normal_()
    return native


def with_cycles(native: HrmTextForCausalLM, num_cycles: int, **overrides) -> HrmTextForCausalLM:
    """The native model made anew for another number of cycles, with the same weights."""
    other = HrmTextForCausalLM(tiny_hrm_text_config(H_cycles=num_cycles, L_cycles=3, **overrides)).eval()
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
    assert isinstance(model, HierarchicalForCausalLM)
    assert (model.config.num_loops, model.config.low_cycles) == (2, 3)
    assert torch.equal(model(INPUT_IDS).logits, native(INPUT_IDS).logits)
    for num_loops in (1, 2, 5):
        other = with_cycles(native, num_loops)
        for types in (None, TYPES):
            expected = other(INPUT_IDS, token_type_ids=types).logits
            assert torch.equal(model(INPUT_IDS, token_type_ids=types, num_loops=num_loops).logits, expected)


@torch.no_grad()
def test_a_left_padded_batch_equals_the_native_model(native, folder):
    model = hf_loop.convert(folder)
    input_ids, attention_mask = left_pad([random_ids(1, length, length)[0] for length in (3, 9)])
    arguments = {"attention_mask": attention_mask, "token_type_ids": attention_mask}
    assert torch.equal(model(input_ids, **arguments).logits, native(input_ids, **arguments).logits)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("num_loops", [1, 2, 4])
def test_generation_equals_the_native_model_of_that_many_cycles(native, folder, num_loops, options):
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "token_type_ids": TYPES}
    expected = with_cycles(native, num_loops).generate(INPUT_IDS, **greedy)
    assert torch.equal(hf_loop.convert(folder).generate(INPUT_IDS, num_loops=num_loops, **greedy, **options), expected)


@pytest.mark.parametrize(("num_cycles", "backprop"), [(1, [2]), (2, [2]), (4, [2]), (2, [0, 3]), (2, [1, 2])])
def test_gradients_equal_the_native_model(num_cycles, backprop, tmp_path):
    native = make_native(num_cycles, L_bp_cycles=backprop)
    native.save_pretrained(tmp_path)
    model = hf_loop.convert(tmp_path)
    gradients = []
    for trained in (native, model):
        trained.train()
        trained(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss.backward()
        named = trained.named_parameters()
        gradients.append({name.replace("backbone.", ""): p.grad for name, p in named if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_a_converted_model_is_saved_and_loaded_at_any_number_of_cycles(native, folder, tmp_path):
    model = hf_loop.convert(folder, num_loops=4)
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", num_loops=8)
    generated = loaded.generate(INPUT_IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = with_cycles(native, 8).generate(INPUT_IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("num_loops", [None, 5])
@torch.no_grad()
def test_written_back_it_is_the_native_model(num_loops, tie_word_embeddings, tmp_path):
    native = make_native(L_bp_cycles=[1, 3], tie_word_embeddings=tie_word_embeddings)
    native.save_pretrained(tmp_path / "native")
    model = hf_loop.convert(tmp_path / "native")
    written = to_hrm_text(model, num_loops)
    assert not {p.data_ptr() for p in written.parameters()} & {p.data_ptr() for p in model.parameters()}
    written.save_pretrained(tmp_path / "written")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert isinstance(loaded, HrmTextForCausalLM)
    for back in (written, loaded):
        assert back.config.num_hidden_layers == len(model.config.calls(num_loops=num_loops or 2))
        expected = model(INPUT_IDS, token_type_ids=TYPES, num_loops=num_loops).logits
        assert torch.equal(back(INPUT_IDS, token_type_ids=TYPES).logits, expected)
    if num_loops is None:
        saved, original = ((tmp_path / name / "config.json").read_text() for name in ("written", "native"))
        assert json.loads(saved) == json.loads(original)
        # the fused projections of published files
        saved, original = (load_file(tmp_path / name / "model.safetensors") for name in ("written", "native"))
        assert saved.keys() == original.keys()
        assert all(torch.equal(saved[name], original[name]) for name in saved)


def test_only_the_native_schedule_is_written_back():
    with pytest.raises(ValueError, match="must run hrm_text layers, got 'llama'"):
        to_hrm_text(tiny_hierarchical())
    with pytest.raises(ValueError, match="`stack_norm` of hrm_text is always 'final', got 'none'"):
        to_hrm_text(tiny_hierarchical(model_type="hrm_text", stack_norm="none"))


def test_special_tokens_come_from_the_tokenizer_only_where_the_configuration_has_none():
    from hf_loop.retrofitting.converters import hrm_text

    source = tiny_hrm_text_config(eos_token_id=None).to_dict()
    source["tokenizer_token_ids"] = {"eos_token_id": 7, "bos_token_id": 8}
    config = hrm_text.convert_config(source)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.z_L_init"), r"not those of hrm_text: 1 missing \(model.z_L_init\)"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "not known: extra"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.ones(5, 64)}), "1 misshapen .*lm_head.weight"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        hf_loop.convert(folder)
