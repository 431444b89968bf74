"""The table of decoders says what is so; the sweep that writes it is slow (`pytest -m slow`)."""

import re

import pytest
import transformers
from transformers import CONFIG_MAPPING

from hf_loop.models.backbone_specs import REFUSED_BACKBONES, SUPPORTED_BACKBONES, find_spec

from ..backbone_sweep import HOLDS, check_apart, run_sweep
from ..backbone_table import describe, kind_of, make_table, read_table
from .tiny_decoders import causal_model_types


ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \|(.*?)\| (.*) \|$", re.MULTILINE)
OF_THIS_RELEASE = f"transformers {transformers.__version__} " in read_table()
other_release = pytest.mark.skipif(not OF_THIS_RELEASE, reason="the table is of another release of transformers")


def rows() -> dict[str, str]:
    """What the table says of every decoder."""
    return {model_type: entry for model_type, _, _, entry in ROW.findall(read_table()) if entry != "entry"}


@other_release
def test_the_table_has_every_decoder_and_its_entry():
    table = rows()
    assert sorted(table) == [name for name in causal_model_types() if kind_of(name) is None]
    held = {name: entry for name, entry in table.items() if not entry.startswith("refused: ")}
    assert held == {name: describe(find_spec(CONFIG_MAPPING[name]())) for name in held}
    assert all(entry.removeprefix("refused:").strip() for entry in table.values())
    assert f"{len(held)} of {len(table)} decoder types" in read_table()
    assert len(held) >= 100
    assert not set(held) & set(REFUSED_BACKBONES)
    assert set(SUPPORTED_BACKBONES) & set(table) <= set(held)


def test_an_entry_is_told_in_words():
    assert describe(SUPPORTED_BACKBONES["llama"]) == "default"
    assert describe(SUPPORTED_BACKBONES["lfm2"]) == "norm `embedding_norm`"
    assert describe(SUPPORTED_BACKBONES["granite"]) == "scale embeddings, divide by logits scaling"


@pytest.mark.parametrize("model_type", ["nemotron_h", "jamba", "falcon_h1", "granite_swa", "axk2"])
def test_a_decoder_holds_the_invariants_in_a_process_of_its_own(model_type):
    assert check_apart(model_type) == HOLDS


def test_a_refusal_says_why():
    assert "more than one hidden state per token" in check_apart("hy_v4")


def test_a_process_that_takes_too_long_is_ended():
    assert check_apart("llama", time_limit=0.01) == "it takes longer than 0 s"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@other_release
def test_the_table_is_what_the_sweep_finds(tmp_path):
    assert make_table(run_sweep(tmp_path / "results.json")) == read_table()
