"""What runs or moves a model in between leaves every module in the mode that it was in."""

import pytest

from hf_loop import retrofit
from hf_loop.models import backbone_check
from hf_loop.models.backbone import Backbone, backbone_spec
from hf_loop.models.evaluation_mode import evaluation_mode

from ..retrofitting.tiny_models import tiny_decoder
from .feedback_variants import make_feedback
from .model_tester import random_ids


def partly_frozen(model):
    """Put a model in training but for the MLP of its first layer, and return the modes of its modules."""
    model.train()
    for name, module in model.named_modules():
        if "layers.0.mlp" in name:
            module.eval()
    modes = {module: module.training for module in model.modules()}
    assert {*modes.values()} == {True, False}
    return modes


def modes_of(model, known):
    return {module: module.training for module in model.modules() if module in known}


def test_after_an_error_too():
    model = tiny_decoder("llama")
    modes = partly_frozen(model)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert modes_of(model, modes) == modes


def test_the_check_of_a_decoder():
    model = tiny_decoder("llama")
    modes = partly_frozen(model)
    assert backbone_check.check_one_loop(model, backbone_spec(model.config), Backbone) is None
    assert modes_of(model, modes) == modes


def test_reading_a_memory(tmp_path):
    model = make_feedback()
    model.save_memory(model(random_ids(1, 9), use_cache=True).past_key_values, tmp_path / "memory")
    modes = partly_frozen(model)
    model.load_memory(tmp_path / "memory")
    assert modes_of(model, modes) == modes


@pytest.mark.parametrize(
    ("family", "fields"),
    [("looped", {"injection": "diagonal", "num_prelude_layers": 1}), ("feedback", {"block_size": 4}), ("sleep", {})],
)
def test_retrofitting(family, fields):
    base = tiny_decoder("llama")
    modes = partly_frozen(base)
    model = retrofit(base, family=family, **fields)
    kept = modes_of(model, modes)
    assert kept == {module: modes[module] for module in kept} and {*kept.values()} == {True, False}
    assert all(module.training for module in model.modules() if module not in modes)
