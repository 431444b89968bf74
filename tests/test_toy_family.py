"""A family that is registered from outside, without a line in hf_loop: made of a pretrained model and trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_loop
from hf_loop.models import FAMILIES, register_family

from .models.model_tester import random_ids
from .retrofitting.tiny_models import tiny_decoder
from .toy_family import FAMILY, ToyForCausalLM


@pytest.fixture(autouse=True)
def registered():
    register_family(FAMILY)
    yield
    del FAMILIES[FAMILY.name]


@torch.no_grad()
def test_it_is_made_of_a_pretrained_model(tmp_path):
    base, input_ids = tiny_decoder("llama"), random_ids(2, 7)
    hidden_states = base.model(input_ids).last_hidden_state
    toy = hf_loop.retrofit(base, "toy", gain=2)
    assert isinstance(toy, ToyForCausalLM) and toy.config.gain == 2
    # the gate starts as a linear map of a new model does
    assert 0.01 < toy.model.gate.weight.std() < 0.03 and not toy.model.gate.bias.any()
    expected = toy.lm_head(hidden_states + 2 * toy.model.gate(hidden_states))
    torch.testing.assert_close(toy(input_ids).logits, expected)
    toy.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids).logits, expected)
    with pytest.raises(ValueError, match="unknown field 'gian' in the family 'toy'; did you mean 'gain'?"):
        hf_loop.retrofit(base, "toy", gian=2)
    with pytest.raises(ValueError, match="`gain` must be float, got 'much'"):
        hf_loop.retrofit(base, "toy", gain="much")
