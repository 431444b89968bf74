"""The records of the families: what the Auto classes, conversion and recipes derive from them."""

import pytest
from transformers import AutoConfig

import hf_loop
from hf_loop.models import FAMILIES, family_of
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from .families import CAUSAL_FAMILIES, tiny_puzzle_model


MODELS = {name: make for name, make in CAUSAL_FAMILIES.items() if name in FAMILIES} | {"puzzle": tiny_puzzle_model}


def test_every_record_has_a_model_here():
    assert MODELS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_of_its_family_and_needs_no_conversion(name, tmp_path):
    MODELS[name]().save_pretrained(tmp_path)
    family = family_of(AutoConfig.from_pretrained(tmp_path))
    assert family is FAMILIES[name]
    assert family.describe(family.config())
    message = f"is a model of hf_loop already: load it with {family.loader}.from_pretrained"
    with pytest.raises(ValueError, match=message):
        hf_loop.convert(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_of_another_family_is_refused(name):
    own = FAMILIES[name].config.__name__
    other = next(family.config for family in FAMILIES.values() if family.name != name)
    for model_class in FAMILIES[name].classes.values():
        with pytest.raises(ValueError, match=f"must be a {own}, got a {other.__name__}"):
            model_class(other())


# a model over time may be made of one over depth
REFUSED = [
    (family, other)
    for family in ("looped", "feedback", "sleep")
    for other in FAMILIES
    if family != other and FAMILIES[other].config.kind not in FAMILIES[family].config.backbone_kinds
]


@pytest.mark.parametrize(("family", "other"), REFUSED)
def test_a_recipe_takes_no_model_of_another_family(family, other, tmp_path):
    MODELS[other]().save_pretrained(tmp_path / "other")
    (tmp_path / "text.txt").write_text("the ball is under the second cup. " * 20)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{family: {family}, pretrained: {tmp_path / 'other'}}}\n"
        f"data: {{files: [{tmp_path / 'text.txt'}], tokenizer: bytes, block_size: 16}}\n"
        f"training: {{output_dir: {tmp_path / 'run'}, max_steps: 1, use_cpu: true}}\n"
    )
    with pytest.raises(ValueError, match=f"or one of model.family={family}, got .*, a {other} model"):
        run_recipe(load_recipe(recipe))
    assert not (tmp_path / "run").exists()
