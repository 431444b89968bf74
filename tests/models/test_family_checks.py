"""What a family asks of a decoder that the tests do not cover: tried on a twin, refused by name."""

import dataclasses

import pytest
import torch

from hf_loop import FeedbackConfig, HierarchicalPuzzleConfig, SleepConfig, register_backbone
from hf_loop.models import FeedbackModel, HierarchicalPuzzleModel, SleepModel, family_checks
from hf_loop.models.backbone import REGISTERED_BACKBONES, SUPPORTED_BACKBONES

from .tiny_backbones import tiny_backbone


FAMILIES = {
    "feedback": (FeedbackConfig, FeedbackModel),
    "sleep": (SleepConfig, SleepModel),
    "puzzle": (HierarchicalPuzzleConfig, HierarchicalPuzzleModel),
}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(family_checks, "_RESULTS", {})
    yield
    REGISTERED_BACKBONES.clear()


def make(family: str, model_type: str):
    config_class, model_class = FAMILIES[family]
    with torch.device("meta"):
        return model_class(config_class(backbone_config=tiny_backbone(model_type)))


def register_again(model_type: str, **changes) -> None:
    """An entry of the user's own, which the tests of hf_loop do not cover."""
    spec = dataclasses.replace(SUPPORTED_BACKBONES[model_type], **changes)
    register_backbone(model_type, spec, exist_ok=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_that_fits_is_tried_once(family, monkeypatch):
    register_again("qwen3")
    tried = []
    on_a_twin = family_checks._on_a_twin
    monkeypatch.setattr(family_checks, "_on_a_twin", lambda *args: tried.append(args[0]) or on_a_twin(*args))
    state = torch.get_rng_state()
    make(family, "qwen3")
    assert torch.equal(torch.get_rng_state(), state)
    make(family, "qwen3")
    assert len(tried) == 1
    # the twin is its own configuration here: what was found stays
    assert list(family_checks._RESULTS.values()) == [None]


@pytest.mark.parametrize(
    ("family", "model_type", "changes", "message"),
    [
        ("feedback", "bloom", {}, "'bloom' cannot have blocks: its layers depend on the columns of their cache"),
        ("feedback", "gpt_neo", {"counts_columns": False}, "'gpt_neo' cannot have blocks: "),
        ("sleep", "opt", {}, "'opt' cannot sleep: it adds positions to the embeddings"),
        ("sleep", "opt", {"adds_positions": False}, "'opt' cannot sleep: over several windows, a cache changes its"),
        ("puzzle", "gpt_neo", {}, "'gpt_neo' cannot run in both directions: position 10 has no effect on position 0"),
        ("puzzle", "falcon", {}, "'falcon' cannot run in both directions: position 10 has no effect on position 0"),
    ],
)
def test_what_does_not_fit_is_named(family, model_type, changes, message):
    register_again(model_type, **changes)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            make(family, model_type)


def test_layers_without_the_entry_are_named():
    register_again("qwen3", layer_entry="ln_1")
    with pytest.raises(
        ValueError, match="`zero_first_residual` must be False for a qwen3 backbone: its layers have no"
    ):
        make("feedback", "qwen3")
