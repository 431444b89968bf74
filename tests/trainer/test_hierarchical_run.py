"""Recipes of puzzle models: what they refuse, what the data tell the model, and going on from a trained one."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForMaskedLM, LlamaConfig

from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe


RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "hierarchical" / "sudoku_4x4.yaml"


def run(folder, *overrides):
    options = [f"training.output_dir={folder}", "training.disable_tqdm=true", *overrides]
    return run_recipe(load_recipe(RECIPE, options, debug=True))


def test_a_mixer_is_made_for_the_length_of_the_puzzles(tmp_path):
    result = run(tmp_path / "first", "model.config.num_puzzles=1", "model.config.num_puzzle_tokens=2")
    config = AutoModelForMaskedLM.from_pretrained(tmp_path / "first").config
    assert (config.vocab_size, config.max_position_embeddings, config.num_puzzle_tokens) == (6, 18, 2)
    assert set(result.eval_metrics) >= {"eval_exact_accuracy", "eval_cell_accuracy", "eval_mean_segments"}
    assert result.eval_loss == result.eval_metrics["eval_loss"]

    further = [f"model.pretrained={tmp_path / 'first'}", "model.preset=null", "model.config={max_segments: 3}"]
    again = run(tmp_path / "second", *further, "training.learning_rate=0", "training.weight_decay=0")
    first, second = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert (second.config.max_segments, again.num_parameters) == (3, result.num_parameters)
    for weight, expected in zip(second.parameters(), first.parameters(), strict=True):
        assert weight.allclose(expected, atol=1e-6)
    saved = yaml.safe_load((tmp_path / "second" / "recipe.yaml").read_text())
    assert saved["model"]["pretrained"] == str(tmp_path / "first")


def test_the_presets_own_puzzle_tokens_count(tmp_path):
    recipe = yaml.safe_load(RECIPE.read_text())
    for name in ("num_puzzles", "num_puzzle_tokens"):
        del recipe["model"]["config"][name]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(path, [f"training.output_dir={tmp_path / 'run'}"], debug=True))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["backbone_config"]["max_position_embeddings"] == 16 + config["num_puzzle_tokens"] == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.preset=trn", "model.preset of model.family=puzzle must be .*trm.*, got 'trn'"),
        (
            "model.config.low_cicles=2",
            "has no field `low_cicles`; did you mean `low_cycles`",
        ),
        ("model.config.low_cycles=0", "`low_cycles` must be from 1 to 4096, got 0"),
        ("model.pretrained=somewhere", "give exactly one of model.backbone, model.preset, model.pretrained"),
        ("model.config.vocab_size=3", "must hold the tokenizer's 6 tokens, got vocab_size=3"),
        ("data.task=shell_game", "model.family=puzzle and the tasks sudoku, maze, puzzle_csv go together"),
        ("data.task_options.size=5", "size must be one of 4, 6, 9, got 5"),
        ("model.family=hierarchical", "model.preset=trm solves puzzles, which is model.family=puzzle"),
        ("training.loop_sampling=fixed", "unknown key 'loop_sampling' in section 'training'"),
    ],
)
def test_mistakes_are_named(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", override)


def test_a_looped_model_takes_no_puzzles(tmp_path):
    looped = RECIPE.parents[1] / "looped" / "shell_game.yaml"
    with pytest.raises(ValueError, match="go together, got looped and data.task=sudoku"):
        load_recipe(looped, ["data.task=sudoku"])
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="model.pretrained must be one of model.family=puzzle, got .*, a llama model"):
        options = [f"model.pretrained={tmp_path / 'llama'}", "model.preset=null", "model.config={}"]
        run(tmp_path / "run", *options)
