"""Layouts of published models that ours are written in."""

import pytest

import hf_loop
from hf_loop.retrofitting.converters import dory, hrm_text, inkling2_loop, nanbeige
from hf_loop.retrofitting.exporting import LAYOUTS

from ..models.looped_variants import tiny_looped


def test_every_converter_that_writes_is_a_layout():
    names = ["nanbeige", "dory", "inkling2_loop", "hrm_text"]
    assert list(LAYOUTS.items()) == list(zip(names, [nanbeige, dory, inkling2_loop, hrm_text], strict=True))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of 'nanbeige', 'dory', 'inkling2_loop', 'hrm_text', got 'ouro'"):
        hf_loop.export(tiny_looped(), tmp_path / "written", "ouro")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_setting_of_generation_that_an_engine_does_not_know_is_refused(layout, tmp_path, monkeypatch):
    model = tiny_looped()
    model.generation_config.exit_criterion = "kl"
    # of transformers' own the weights are not needed for this
    if layout != "nanbeige":
        writer = LAYOUTS[layout].write_native
        with pytest.raises(ValueError, match="`exit_criterion` of `generation_config` is 'kl'"):
            writer(type(model), model.config, model)
        return
    with pytest.raises(ValueError, match="`exit_criterion` of `generation_config` is 'kl'"):
        hf_loop.export(model, tmp_path / "written", layout)
    assert list(tmp_path.iterdir()) == []
