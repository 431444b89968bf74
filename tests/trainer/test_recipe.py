"""Reading recipes: numbers, overrides, and errors that name the key."""

import pytest

from hf_loop.trainer.recipe import load_recipe


RECIPE = """\
model:
  backbone: {model_type: llama, hidden_size: 32, num_hidden_layers: 2}
  config: {num_loops: 3}
data:
  files: [a.txt]
  tokenizer: bytes
training:
  output_dir: runs/test
  learning_rate: 5e-4
  eval_strategy: no
  use_cpu: true
debug:
  training.max_steps: 2
  model.backbone.hidden_size: 16
  data.block_size: 8
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text=RECIPE):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_sections(recipe):
    loaded = load_recipe(recipe())
    assert loaded.model.backbone == {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2}
    assert (loaded.model.family, loaded.model.config) == ("looped", {"num_loops": 3})
    assert (loaded.data.files, loaded.data.tokenizer, loaded.data.block_size) == (["a.txt"], "bytes", 1024)
    assert loaded.training.learning_rate == 5e-4
    assert loaded.training.eval_strategy.value == "no"
    assert loaded.training.max_steps == -1


def test_debug_and_overrides(recipe):
    overrides = ["training.max_steps=7", "model.backbone.num_hidden_layers=4", "data.files=[b.txt, c.txt]"]
    loaded = load_recipe(recipe(), overrides, debug=True)
    assert loaded.model.backbone == {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 4}
    assert (loaded.training.max_steps, loaded.data.block_size) == (7, 8)
    assert loaded.data.files == ["b.txt", "c.txt"]
    assert loaded.source["training"]["max_steps"] == 7
    assert "debug" not in loaded.source


@pytest.mark.parametrize("text", ["1e-3", "5e-4", "1.5", "-2.5E+3", "0.1", ".5", "3."])
def test_numbers_are_numbers(recipe, text):
    loaded = load_recipe(recipe(), [f"training.learning_rate={text.replace('-2', '2')}"])
    assert loaded.training.learning_rate == float(text.replace("-2", "2"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_loops: 3", "num_lops: 3", "unknown key 'num_lops' in model.config; did you mean 'num_loops'?"),
        ("  files:", "  file:", "unknown key 'file' in section 'data'; did you mean 'files'?"),
        ("learning_rate", "learning_rat", "unknown key 'learning_rat' in section 'training'; did you mean"),
        ("\ndata:", "\ndatas:", "unknown key 'datas' in the recipe; did you mean 'data'?"),
        ("num_loops: 3", "num_loops: three", "model.config.num_loops must be int, got 'three'"),
        ("num_loops: 3", "num_loops: 2.5", "model.config.num_loops must be int, got 2.5"),
        ("num_loops: 3", "num_loops: true", "model.config.num_loops must be int, got True"),
        ("5e-4", "fast", "training.learning_rate must be float, got 'fast'"),
        ("[a.txt]", "a.txt", "data.files must be list[str] | None, got 'a.txt'"),
        ("[a.txt]", "[a.txt, 3]", "data.files must be list[str] | None, got ['a.txt', 3]"),
        ("use_cpu: true", "use_cpu: 'yes'", "training.use_cpu must be bool, got 'yes'"),
        ("use_cpu: true", "loop_sampling: often", "training.loop_sampling must be 'fixed' | "),
        (
            "use_cpu: true",
            "num_backprop_loops: 0",
            "training.num_backprop_loops=0: num_backprop_loops must be a positive",
        ),
        ("eval_strategy: no", "eval_strategy: sometimes", "training.eval_strategy='sometimes': "),
        ("use_cpu: true", "optim: adamwx", "training.optim='adamwx': "),
        ("use_cpu: true", "lr_scheduler_type: zigzag", "training.lr_scheduler_type='zigzag': "),
        ("use_cpu: true", "accelerator_config: {a: 1}", "training.accelerator_config={'a': 1}: "),
        # deepspeed is not installed, or there is no such file
        ("use_cpu: true", "deepspeed: nowhere.json", "training.deepspeed='nowhere.json': "),
        ("use_cpu: true", "dataloader_num_workers: 100000", "training.dataloader_num_workers must be at least 0 and"),
        ("  tokenizer: bytes", "  block_size: 1", "data.block_size must be at least 2, got 1"),
        ("  tokenizer: bytes", "  dataset: x", "data: give exactly one of data.task, data.files, data.dataset"),
        ("  backbone: {model_type: llama, hidden_size: 32, num_hidden_layers: 2}\n", "", "got none"),
        ("model_type: llama, ", "", "model.backbone must name its model_type"),
        ("use_cpu: true", "distillation_weight: 0.5", "training.distillation_weight needs model.pretrained"),
        ("  tokenizer", "  streaming: true\n  tokenizer", "data.streaming=true needs training.max_steps"),
        ("files: [a.txt]\n  tokenizer: bytes", "task: shell_game\n  streaming: true", "data.streaming is for text"),
        (
            "num_loops: 3",
            "core_layers: 0-1",
            "model.config.core_layers says what becomes of the layers of model.pretrained",
        ),
        ("num_loops: 3", "loop_update: slow", "model.config.loop_update must be 'replace' | 'damped', got 'slow'"),
        (
            "  config: {num_loops: 3}",
            "  num_loops: 3",
            "model.num_loops is a field of the configuration: give it as model.config.",
        ),
        ("  config: {", "  sleep: {", "model.sleep is called model.config for every family"),
        (
            "  config: {",
            "  lora_rank: 2\n  config: {",
            "model.lora_rank is for model.family=feedback, got 2 and looped",
        ),
        (
            "  config: {",
            "  preset: trm\n  config: {",
            "model: give exactly one of model.backbone, model.preset, model.pretrained",
        ),
        ("num_loops: 3}", "num_loops: [}", "not valid YAML"),
        ("num_loops: 3}", "num_loops: 3, num_loops: 4}", "not valid YAML: found duplicate key num_loops in line 3"),
        (RECIPE, "- a list", "a recipe is a mapping"),
        (RECIPE, "", "a recipe is a mapping"),
        ("model:\n", "model:\n" + "other: 3\n", "section 'model' must be a mapping, got None"),
    ],
)
def test_bad_recipes_name_the_key_in_one_line(recipe, old, new, message):
    text = RECIPE.replace(old, new, 1)
    if new.startswith("model:\nother"):
        text = "model:\n" + RECIPE[RECIPE.index("data:") :]
    assert text != RECIPE
    path = recipe(text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", "an override must read section.key=value, got 'training.max_steps'"),
        ("max_steps=3", "an override must name section.key, got 'max_steps'"),
        ("training.max_step=3", "unknown key 'max_step' in section 'training'; did you mean 'max_steps'?"),
        ("model.config.num_loops.x=3", "model.config.num_loops must be int, got {'x': 3}"),
        ("data.files=[", "the value of the override 'data.files=[' is not valid YAML"),
        ("debug.x=3", "unknown key 'debug'"),
        ("data.files[3]=x", "list index out of range"),
        ("data.tokenizer=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("training.eval_strategy=yes", "training.eval_strategy must be IntervalStrategy | str, got True"),
    ],
)
def test_bad_overrides(recipe, override, message):
    with pytest.raises(ValueError) as error:
        load_recipe(recipe(), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_recipe_and_missing_debug_section(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="the recipe has no section 'debug'"):
        load_recipe(recipe(RECIPE[: RECIPE.index("debug:")]), debug=True)
