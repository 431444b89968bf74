"""transformers' native `hrm_text` and the converted model are the same function, at any number of cycles."""

import pytest
import torch
from transformers import AutoModelForCausalLM, HrmTextConfig, HrmTextForCausalLM

import hf_loop
from hf_loop.retrofitting.converters import hrm_text
from hf_loop.retrofitting.converters.hrm_text import to_hrm_text

from ...models.hierarchical_variants import tiny_hierarchical, tiny_hrm_text_config
from ...models.model_tester import random_ids
from .native_tester import NativeTester


INPUT_IDS = random_ids(2, 9)
TYPES = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0]]).expand(2, -1)


def make_native(**fields) -> HrmTextForCausalLM:
    torch.manual_seed(0)
    native = HrmTextForCausalLM(tiny_hrm_text_config(**{"H_cycles": 2, "L_cycles": 3, **fields})).eval()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.mul_(2.0) if parameter.ndim > 1 else parameter.normal_()
    return native


def with_cycles(native: HrmTextForCausalLM, num_cycles: int) -> HrmTextForCausalLM:
    """The native model made anew for another number of cycles, with the same weights."""
    fields = native.config.to_dict()
    # the native configuration derives its number of layer calls only where this is absent
    fields["num_hidden_layers"] = fields.pop("num_layers_per_stack")
    other = HrmTextForCausalLM(HrmTextConfig.from_dict(fields | {"H_cycles": num_cycles})).eval()
    other.load_state_dict(native.state_dict())
    return other


class TestHrmText(NativeTester):
    converter = hrm_text
    class_name = "HrmTextForCausalLM"
    loops_field = "H_cycles"
    own_loops = 2
    schedule = {"low_cycles": 3}
    configurations = [{"tie_word_embeddings": True}, {"L_cycles": 1}]
    trained = [
        {"H_cycles": 1, "L_bp_cycles": [2]},
        {"L_bp_cycles": [2]},
        {"H_cycles": 4, "L_bp_cycles": [2]},
        {"L_bp_cycles": [0, 3]},
        {"L_bp_cycles": [1, 2]},
    ]
    written = [{"L_bp_cycles": [1, 3], "tie_word_embeddings": tied} for tied in (False, True)]
    calls = [{}, {"token_type_ids": TYPES}]
    generation_options = [{"cache_implementation": "static"}, {"use_cache": False}]
    gradients_close = {"atol": 0, "rtol": 0}
    missing = ("model.z_L_init", "model.z_L_init")
    input_ids = INPUT_IDS

    def make_native(self, **fields):
        return make_native(**fields)

    def make_config(self, **fields):
        return tiny_hrm_text_config(**fields)

    def with_loops(self, native, num_loops):
        return with_cycles(native, num_loops)

    def with_mask(self, attention_mask):
        return {"attention_mask": attention_mask, "token_type_ids": attention_mask}

    def prompt(self):
        return {"input_ids": INPUT_IDS, "token_type_ids": TYPES}

    def check_written(self, written, folder, num_loops):
        # two layers in each stack
        assert written.config.num_hidden_layers == num_loops * (3 + 1) * 2


def test_a_converted_model_is_saved_and_loaded_at_any_number_of_cycles(native, folder, tmp_path):
    model = hf_loop.convert(folder, num_loops=4)
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", num_loops=8)
    generated = loaded.generate(INPUT_IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = with_cycles(native, 8).generate(INPUT_IDS, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, expected)


def test_only_the_native_schedule_is_written_back():
    with pytest.raises(ValueError, match="must run hrm_text layers, got 'llama'"):
        to_hrm_text(tiny_hierarchical())
    with pytest.raises(ValueError, match="`stack_norm` of hrm_text is always 'final', got 'none'"):
        to_hrm_text(tiny_hierarchical(model_type="hrm_text", stack_norm="none"))
