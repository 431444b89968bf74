"""Recipes that somebody damaged: each makes a model, or is refused in one line that names the file or the key."""

import copy
import math

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from hf_loop.field_values import field_types
from hf_loop.models import FAMILIES
from hf_loop.trainer.data import byte_tokenizer
from hf_loop.trainer.family_model import build_model, check_model
from hf_loop.trainer.recipe import arguments_class, load_recipe
from hf_loop.trainer.sections import DataSection, ModelSection


BACKBONE = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PRESET = {key: value for key, value in BACKBONE.items() if key != "model_type"} | {"num_hidden_layers": 1}
RECIPE = {
    "model": {"backbone": BACKBONE, "config": {}},
    "data": {"files": ["a.txt"], "tokenizer": "bytes", "block_size": 16},
    "training": {"output_dir": "out", "use_cpu": True, "max_steps": 2},
}
# what reads files, starts other programs, or asks the machine for what it has not
APART = ("resume_from_checkpoint", "deepspeed", "fsdp", "torch_compile", "pretrained")
NUMBERS = [0, 1, -1, -4, 33, 10**9, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-30, math.inf, -math.inf, math.nan]
WRONG = st.sampled_from(
    [
        None,
        True,
        False,
        "abc",
        "",
        "33",
        "no",
        "${a",
        "${nowhere}",
        "???",
        [],
        [1],
        ["a"],
        [[1]],
        {},
        {"a": 1},
        *NUMBERS,
    ]
)


@st.composite
def damaged(draw):
    """A recipe with one or two changes."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    recipe = copy.deepcopy(RECIPE)
    model, data, training = recipe.values()
    model["family"] = family
    if FAMILIES[family].causal is None:
        model |= {"backbone": None, "preset": "trm", "config": dict(PRESET)}
        recipe["data"] = data = {"task": "sudoku", "task_options": {"size": 4}}
    places = {
        "recipe": (recipe, ["model", "data", "training", "debug"]),
        "model": (model, [*field_types(ModelSection)]),
        "data": (data, [*field_types(DataSection)]),
        "training": (training, [*field_types(arguments_class(family))]),
        "config": (model["config"], [*FAMILIES[family].own_fields]),
        "backbone": (model["backbone"] or model["config"], [*field_types(LlamaConfig)]),
    }
    for _ in range(draw(st.integers(1, 2))):
        place, names = places[draw(st.sampled_from(sorted(places)))]
        name = draw(st.sampled_from([name for name in names if name not in APART]))
        change = draw(st.sampled_from(["value"] * 6 + ["remove", "misspell", "nest"]))
        if change == "remove":
            place.pop(name, None)
        elif change == "misspell":
            place[f"{name}s"] = draw(WRONG)
        else:
            place[name] = {"inner": place.get(name)} if change == "nest" else draw(WRONG)
    return recipe


@settings(max_examples=300, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(recipe=damaged())
def test_a_damaged_recipe_is_refused_or_makes_a_model(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    try:
        loaded = load_recipe(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        return
    try:
        check_model(loaded.model)
        build_model(loaded.model, byte_tokenizer(), num_cells=16)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


@settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=40), at=st.integers(0, 400), cut=st.booleans())
def test_bytes_in_the_middle_of_a_recipe_are_no_traceback(tmp_path_factory, data, at, cut):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    text = yaml.safe_dump(RECIPE).encode()
    path.write_bytes(text[:at] + data + (b"" if cut else text[at:]))
    try:
        load_recipe(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@settings(max_examples=150, deadline=20_000, suppress_health_check=list(HealthCheck))
@given(
    key=st.one_of(
        st.text(max_size=12), st.sampled_from(["model", "data.files[0]", "training.max_steps.x", "model.config"])
    ),
    value=st.one_of(
        st.text(max_size=12), st.sampled_from(["[", "{a: 1", "${x}", "!!python/none x", "&a *a", "1e400"])
    ),
)
def test_any_override_is_no_traceback(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    try:
        load_recipe(path, [f"{key}={value}"])
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.gradient_accumulation_steps", 0, "training.gradient_accumulation_steps must be at least 1, got 0"),
        ("training.per_device_train_batch_size", -4, "per_device_train_batch_size must be at least 1, got -4"),
        ("training.learning_rate", 1e400, "training.learning_rate must be .*got inf"),
        ("training.learning_rate", math.nan, "training.learning_rate must be .*got nan"),
        ("training.save_steps", 0, "training.save_steps must be above 0, got 0.0"),
        ("training.seed", 2**32, "training.seed must be at least 0 and at most 4294967295, got 4294967296"),
        ("training.adam_beta1", 1.5, "training.adam_beta1 must be at least 0 and at most 1, got 1.5"),
        ("training.max_steps", -2, "training.max_steps must be at least -1, got -2"),
        ("training.save_total_limit", 0, "training.save_total_limit must be at least 1, got 0"),
        ("data.files", [], r"data.files must name at least one file, got \[\]"),
        ("data.block_size", "abc", "data.block_size must be int, got 'abc'"),
        ("data.repeated_segment_weight", math.nan, "data.repeated_segment_weight must be .*got nan"),
        ("model.lora_alpha", math.inf, "model.lora_alpha must be .*got inf"),
        ("model.backbone.hidden_size", 33, "hidden size .*33"),
        ("model.backbone.hidden_size", 0, "`model.backbone.hidden_size` must be from 1 to 16777216, got 0"),
        ("model.backbone.hidden_size", -4, "`model.backbone.hidden_size` must be from 1 to 16777216, got -4"),
        ("model.backbone.hidden_size", "abc", "`model.backbone`.*hidden_size.*'abc'"),
        ("model.backbone.num_hidden_layers", 10**9, "`model.backbone.num_hidden_layers` must be from 1 to 4096"),
        ("model.backbone.dtype", "no", "model.backbone.*'no'"),
        ("model.config.num_loops", 10**9, "model.config: `num_loops` must be at most"),
    ],
)
def test_sizes_and_numbers_are_named(tmp_path, key, value, message):
    recipe = copy.deepcopy(RECIPE)
    section, *inner, name = key.split(".")
    place = recipe[section]
    for part in inner:
        place = place[part]
    place[name] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=message):
        check_model(load_recipe(path).model)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # the line of the key, not of the mapping around it
        ("  config: {}", "  config: {}\n  other: 3\n  config: {}", "found duplicate key config in line 10"),
        ("  use_cpu: true", "  use_cpu: true\n  <<: 3", "expected a mapping or list of mappings for merging.*line 17"),
        ("use_cpu: true", "use_cpu: !!python/object/apply:os.system ['x']", "could not determine a constructor"),
        ("use_cpu: true", "run_name: !!set {a, b}", "'set' is not a supported primitive type.*training.run_name"),
        ("use_cpu: true", "run_name: !!binary aGVsbG8=", "training.run_name must be str"),
    ],
)
def test_what_yaml_has_besides_values_is_named(tmp_path, old, new, message):
    text = yaml.safe_dump(RECIPE, sort_keys=False)
    assert old in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(path)
    assert "\n" not in str(error.value)


def test_merged_keys_count_and_own_ones_come_first(tmp_path):
    text = yaml.safe_dump(RECIPE, sort_keys=False).replace(
        "  block_size: 16", "  <<: {block_size: 8, num_eval_rows: 3}\n  block_size: 16"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    loaded = load_recipe(path).data
    assert (loaded.block_size, loaded.num_eval_rows) == (16, 3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_recipes_of_other_editors_are_read(tmp_path, encoding):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding=encoding)
    assert load_recipe(path).data.block_size == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("- a", "a recipe is a mapping"),
        ("debug: [x]\n" + yaml.safe_dump(RECIPE), "has no section 'debug' of overrides, got .'x'."),
        ("debug: {3: 4}\n" + yaml.safe_dump(RECIPE), "an override must name section.key, got 3"),
        ("debug: {.a.: 4}\n" + yaml.safe_dump(RECIPE), "an override must name section.key, got '.a.'"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path, debug=True)
    with pytest.raises(ValueError, match="no such recipe"):
        load_recipe(tmp_path)
