"""One function for all families: what it is given goes to the family that was named, and to no other."""

import inspect

import pytest

import hf_loop
from hf_loop.retrofitting.families import FAMILIES, check_options

from .tiny_models import tiny_decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_is_of_the_family(family):
    model = hf_loop.retrofit(tiny_decoder("llama"), family)
    assert model.config.model_type == f"{family}_lm"
    with pytest.raises(ValueError, match=f"`model_or_path` is a {family} model already"):
        hf_loop.retrofit(model, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_docstring_names_every_option(family):
    options = list(inspect.signature(FAMILIES[family]).parameters)[1:]
    assert all(f"`{option}`" in str(hf_loop.retrofit.__doc__) for option in options)


def test_an_option_of_another_family_is_named():
    base = tiny_decoder("llama")
    with pytest.raises(ValueError, match="`num_loops` is no option of the family 'feedback': it belongs to 'looped'"):
        hf_loop.retrofit(base, "feedback", num_loops=2)
    with pytest.raises(ValueError, match="`block_size` is no option of the family 'looped': it belongs to 'feedback'"):
        hf_loop.retrofit(base, block_size=2)
    with pytest.raises(ValueError, match="`blocksize` is no option of the family 'feedback': its options are block_s"):
        hf_loop.retrofit(base, "feedback", blocksize=2)


def test_nothing_is_loaded_for_an_option_that_is_refused():
    with pytest.raises(ValueError, match="`num_loops` is no option"):
        hf_loop.retrofit("/no/such/folder", "feedback", num_loops=2)
    with pytest.raises(ValueError, match="`family` must be .*, got 'spiral'"):
        check_options("spiral", [])


def test_the_function_is_not_hidden_by_a_module():
    assert callable(hf_loop.retrofit) and hf_loop.retrofit is hf_loop.retrofitting.retrofit
