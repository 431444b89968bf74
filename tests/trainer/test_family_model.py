"""The models of recipes: a family over another one, new or pretrained."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hf_loop import retrofit
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from ..retrofitting.tiny_models import tiny_decoder


LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LOOPED = {"model_type": "looped_lm", "num_loops": 3, "backbone_config": {"model_type": "llama", **LLAMA}}


@pytest.fixture
def make_recipe(tmp_path):
    (tmp_path / "text.txt").write_text("the ball is under the second cup. " * 20)
    sections = {
        "model": {"family": "feedback", "config": {"block_size": 8, "feedback_length": 2}},
        "data": {"files": [str(tmp_path / "text.txt")], "tokenizer": "bytes", "block_size": 16},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "disable_tqdm": True},
    }

    def make(*overrides, **model):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(sections | {"model": sections["model"] | model}))
        return load_recipe(path, overrides)

    return make


def test_a_new_model_over_another_family(make_recipe, tmp_path):
    run_recipe(make_recipe(backbone=LOOPED))
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run").config
    assert (config.model_type, config.backbone_config.model_type) == ("feedback_lm", "looped_lm")
    assert (config.num_loops, config.vocab_size, config.hidden_size) == (3, 257, 16)
    with pytest.raises(ValueError, match="`model.backbone`: LoopedConfig has no field `num_lops`; did you mean"):
        run_recipe(make_recipe(f"training.output_dir={tmp_path / 'new'}", backbone={**LOOPED, "num_lops": 3}))


@pytest.mark.parametrize("inner", ["looped", "hierarchical"])
def test_a_pretrained_model_of_another_family_is_given_a_memory(make_recipe, tmp_path, inner):
    retrofit(tiny_decoder("llama", vocab_size=257), inner, num_loops=2).save_pretrained(tmp_path / "inner")
    run_recipe(make_recipe(pretrained=str(tmp_path / "inner")))
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run").config
    assert (config.model_type, config.backbone_config.model_type, config.num_loops) == (
        "feedback_lm",
        f"{inner}_lm",
        2,
    )
    # it goes on as what it is now
    overrides = [f"training.output_dir={tmp_path / 'again'}", "model.config={block_size: 4}"]
    run_recipe(make_recipe(*overrides, pretrained=str(tmp_path / "run")))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.block_size == 4


def test_a_trained_model_is_given_an_exit_gate(make_recipe, tmp_path):
    retrofit(tiny_decoder("llama", vocab_size=257), "looped", num_loops=2).save_pretrained(tmp_path / "looped")
    gate = {"family": "looped", "pretrained": str(tmp_path / "looped"), "config": {"exit_gate": True}}
    overrides = ["training.exit_objective=gain", "training.learning_rate=0.1"]
    run_recipe(make_recipe(*overrides, **gate))
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("looped", "run"))
    weights = after.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in before.state_dict().items())
    assert weights.keys() - before.state_dict().keys() == {"model.exit_gate.weight", "model.exit_gate.bias"}
    # one that should have a gate and lacks it is broken
    config = json.loads((tmp_path / "looped" / "config.json").read_text())
    (tmp_path / "looped" / "config.json").write_text(json.dumps(config | {"exit_gate": True}))
    with pytest.raises(ValueError, match=r"2 missing \(model.exit_gate.bias, model.exit_gate.weight\)"):
        run_recipe(make_recipe(f"training.output_dir={tmp_path / 'other'}", *overrides, **gate))


def test_a_plain_model_is_given_loops_and_an_exit_gate(make_recipe, tmp_path):
    tiny_decoder("llama", vocab_size=257).save_pretrained(tmp_path / "plain")
    gate = {"family": "looped", "pretrained": str(tmp_path / "plain"), "config": {"exit_gate": True, "num_loops": 2}}
    run_recipe(make_recipe("training.exit_objective=expected", **gate))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.exit_gate


def test_layers_of_a_family_model_are_not_chosen_again(make_recipe, tmp_path):
    retrofit(tiny_decoder("llama", vocab_size=257), num_loops=2).save_pretrained(tmp_path / "looped")
    model = {"family": "looped", "pretrained": str(tmp_path / "looped")}
    with pytest.raises(
        ValueError, match="model.config.fold cannot be chosen, got 'first': .* is a looped model alrea"
    ):
        run_recipe(make_recipe(**model, config={"fold": "first"}))
    with pytest.raises(ValueError, match="the tensors of .* are not those of LoopedForCausalLM"):
        run_recipe(make_recipe(**model, config={"injection": "concat", "state_init": "zeros"}))
    run_recipe(make_recipe(**model, config={"num_loops": 5}))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.num_loops == 5


def test_rows_longer_than_a_new_model_has_positions_are_refused(make_recipe, tmp_path):
    backbone = {"model_type": "llama", **LLAMA, "max_position_embeddings": 8}
    with pytest.raises(
        ValueError, match="data.block_size=16 is more than the model's 8 positions: lower it, or raise"
    ):
        run_recipe(make_recipe(family="looped", config={}, backbone=backbone))
    assert not (tmp_path / "run").exists()
    # blocks of a memory have no limit
    run_recipe(make_recipe(backbone=backbone))
