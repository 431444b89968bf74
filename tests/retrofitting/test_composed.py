"""A looped or hierarchical model that is given a memory, or made to sleep."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_loop import retrofit

from ..models.composed_variants import INNER, OUTER, PAIRS
from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


# what computes as the model inside does
PLAIN = {
    "feedback": {"block_size": 16, "num_memory_segments": None, "feedback_length": 0},
    "sleep": {"sleep_window": 16, "num_sleep_passes": 1},
}


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
@torch.no_grad()
def test_it_is_the_model_inside_until_its_border(outer, inner, tmp_path):
    base, input_ids = retrofit(tiny_decoder("llama"), inner, **INNER[inner]), random_ids(2, 9)
    base.save_pretrained(tmp_path / "base")
    expected = base(input_ids, num_loops=3).logits
    composed = retrofit(tmp_path / "base", outer, **PLAIN[outer])
    torch.testing.assert_close(composed(input_ids, num_loops=3).logits, expected, atol=2e-5, rtol=2e-5)
    composed = retrofit(base, outer, **OUTER[outer])
    torch.testing.assert_close(composed(input_ids, num_loops=3).logits[:, :4], expected[:, :4], atol=2e-5, rtol=2e-5)
    composed.save_pretrained(tmp_path / "composed")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "composed")
    torch.testing.assert_close(loaded(input_ids).logits, composed(input_ids).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["looped", "hierarchical", "feedback"])
def test_what_has_a_schedule_of_the_kind_is_refused(family):
    sleeper = retrofit(tiny_decoder("llama"), "sleep", fast_weight_layers=[1])
    with pytest.raises(ValueError, match="`model_or_path` is a sleep model already"):
        retrofit(sleeper, family)
