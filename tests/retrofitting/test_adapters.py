"""Models that carry an adapter of PEFT: refused wherever their weights would be moved, copied or written."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from hf_loop import add_loop_lora, retrofit, unroll
from hf_loop.evaluation import accuracy_over_loops, perplexity_over_loops, scan_layer_ranges
from hf_loop.models import FAMILIES
from hf_loop.retrofitting.converters.hrm_text import to_hrm_text

from ..models.hierarchical_variants import HRM_TEXT_SCHEDULE, tiny_hierarchical
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


TEXT = random_ids(1, 40)
CAUSAL = [name for name, record in FAMILIES.items() if record.causal is not None]


def wrapped(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def inside_a_wrapper(model):
    return wrapped(model).get_base_model()


def with_its_own(model):
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    return model


def with_a_copied_module(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).get_base_model()


ADAPTED = [wrapped, inside_a_wrapper, with_its_own, with_a_copied_module]


@pytest.fixture(autouse=True)
def native(monkeypatch):
    """transformers 5.24 asks for a release of PEFT that came after it, for adapters of its own."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")


TAKING_A_DECODER = {
    **{f"retrofit {family}": lambda model, family=family: retrofit(model, family) for family in CAUSAL},
    "fold": lambda model: retrofit(model, num_loops=2, fold="average"),
    "scan": lambda model: scan_layer_ranges(model, TEXT, [(1, 2)]),
}


@pytest.mark.parametrize("adapt", ADAPTED)
@pytest.mark.parametrize("name", TAKING_A_DECODER)
def test_a_decoder_with_an_adapter_is_refused(name, adapt):
    model = adapt(tiny_decoder("llama"))
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"carries a PEFT adapter \(.*\): merge it before it is"):
        TAKING_A_DECODER[name](model)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("adapt", ADAPTED)
def test_a_looped_model_with_an_adapter_is_not_unrolled(adapt):
    with pytest.raises(ValueError, match="merge it before it is unrolled"):
        unroll(adapt(tiny_looped()))


@pytest.mark.parametrize("adapt", ADAPTED)
def test_a_hierarchical_model_with_an_adapter_is_not_exported(adapt):
    with pytest.raises(ValueError, match="merge it before it is exported"):
        to_hrm_text(adapt(tiny_hierarchical("hrm_text", **HRM_TEXT_SCHEDULE)))


def test_the_folder_of_an_adapter_is_refused(tmp_path):
    base = tiny_decoder("llama")
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    wrapped(base).save_pretrained(tmp_path / "adapter")
    for family in CAUSAL:
        with pytest.raises(ValueError, match="for the folder of an adapter"):
            retrofit(tmp_path / "adapter", family)


@torch.no_grad()
def test_a_merged_model_is_what_the_adapter_made_it():
    adapted = wrapped(tiny_decoder("llama"))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = adapted(TEXT).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(unroll(retrofit(merged, num_loops=1))(TEXT).logits, expected, atol=1e-4, rtol=1e-4)


def test_what_only_runs_a_model_runs_it_with_its_adapter():
    adapted = wrapped(tiny_looped())
    plain = perplexity_over_loops(adapted, TEXT, loops=[1, 3], window=20).values
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    values = perplexity_over_loops(adapted, TEXT, loops=[1, 3], window=20).values
    assert all(value != pytest.approx(before, rel=1e-3) for value, before in zip(values, plain))
    rows = Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in random_ids(4, 6)])
    assert len(accuracy_over_loops(adapted, rows, loops=[1, 3]).values) == 2
    add_loop_lora(adapted, rank=2)
    torch.testing.assert_close(perplexity_over_loops(adapted, TEXT, loops=[1, 3], window=20).values, values)
