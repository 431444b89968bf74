"""One function for all families: its fields are those of the family that was named, and of no other."""

import pytest
import torch

import hf_loop
from hf_loop.models import FAMILIES
from hf_loop.retrofitting.families import check_fields, retrofit_fields

from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


CAUSAL = [name for name, record in FAMILIES.items() if record.causal is not None]


@pytest.mark.parametrize("family", CAUSAL)
def test_the_result_is_of_the_family_and_whole(family):
    base = tiny_decoder("llama").to(torch.bfloat16)
    weights = {id(parameter) for parameter in base.parameters()}
    model = hf_loop.retrofit(base, family)
    assert model.config.model_type == f"{family}_lm"
    assert weights <= {id(parameter) for parameter in model.parameters()}
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.bfloat16, "cpu")}
    assert model(random_ids(1, 5)).logits.isfinite().all()
    with pytest.raises(ValueError, match=f"`model_or_path` is a {family} model already"):
        hf_loop.retrofit(model, family)


@pytest.mark.parametrize("family", CAUSAL)
def test_defaults_are_those_of_the_configuration(family):
    model, default = hf_loop.retrofit(tiny_decoder("llama"), family), FAMILIES[family].config()
    for name in FAMILIES[family].own_fields:
        # what the model fills in, or the layers of the original decide
        if name != "fast_weight_layers":
            assert getattr(model.config, name) == getattr(default, name), name


@pytest.mark.parametrize("family", CAUSAL)
def test_every_field_of_the_configuration_is_taken(family):
    fields = retrofit_fields(FAMILIES[family])
    assert fields.keys() >= set(FAMILIES[family].own_fields)
    check_fields(family, {name: default for name, (_, default) in fields.items()})


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("feedback", {"num_loops": 2}, "`num_loops` is no field of the family 'feedback': it belongs to 'hierarch"),
        ("looped", {"block_size": 2}, "`block_size` is no field of the family 'looped': it belongs to 'feedback'"),
        (
            "feedback",
            {"blocksize": 2},
            "unknown field 'blocksize' in .* 'feedback'; did you mean 'block_size'",
        ),
        ("sleep", {"sleep_window": "4"}, "`sleep_window` must be int, got '4'"),
        ("looped", {"injection": "ad"}, r"`injection` must be 'none' \| 'add' \| .*, got 'ad'"),
        ("looped", {"coda_norm": 1}, "`coda_norm` must be bool, got 1"),
        ("spiral", {}, "`family` must be one of 'feedback', .*, got 'spiral'"),
        ("puzzle", {}, "`family` must be one of .*, got 'puzzle'"),
    ],
)
def test_nothing_is_loaded_for_a_field_that_is_refused(family, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        hf_loop.retrofit("/no/such/folder", family, **fields)
    assert "\n" not in str(error.value)


def test_fields_are_held_to_the_original_by_its_configuration_alone():
    config = tiny_decoder("llama").config
    with pytest.raises(ValueError, match="`core_layers` 1-4 passes the end"):
        check_fields("looped", {"core_layers": "1-4"}, config)
    with pytest.raises(ValueError, match="cannot share the 3 core layers evenly between num_loops=2"):
        check_fields("looped", {"core_layers": "0-2", "fold": "first", "num_loops": 2}, config)
    with pytest.raises(ValueError, match="`sleep_layers` must be .* 4, the layers of the backbone"):
        check_fields("sleep", {"sleep_layers": [0, 5]}, config)
    check_fields("looped", {"num_prelude_layers": 1, "core_layers": "2-2", "num_coda_layers": 1}, config)
    assert config.num_hidden_layers == 4


def test_the_function_is_not_hidden_by_a_module():
    assert callable(hf_loop.retrofit) and hf_loop.retrofit is hf_loop.retrofitting.retrofit
