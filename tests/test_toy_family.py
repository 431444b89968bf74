"""A family that is registered from outside, without a line in hf_loop: made of a pretrained model and trained."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import hf_loop
from hf_loop.cli.main import main
from hf_loop.models import FAMILIES, register_family
from hf_loop.tasks import shell_game
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe

from .models.model_tester import random_ids
from .retrofitting.tiny_models import tiny_decoder
from .toy_family import FAMILY, ToyForCausalLM


@pytest.fixture(autouse=True)
def registered():
    register_family(FAMILY)
    yield
    del FAMILIES[FAMILY.name]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command as the console script does; return its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hf-loop", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@torch.no_grad()
def test_it_is_made_of_a_pretrained_model(tmp_path):
    base, input_ids = tiny_decoder("llama"), random_ids(2, 7)
    hidden_states = base.model(input_ids).last_hidden_state
    toy = hf_loop.retrofit(base, "toy", gain=2)
    assert isinstance(toy, ToyForCausalLM) and toy.config.gain == 2
    # the gate starts as a linear map of a new model does
    assert 0.01 < toy.model.gate.weight.std() < 0.03 and not toy.model.gate.bias.any()
    expected = toy.lm_head(hidden_states + 2 * toy.model.gate(hidden_states))
    torch.testing.assert_close(toy(input_ids).logits, expected)
    toy.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids).logits, expected)
    with pytest.raises(ValueError, match="unknown field 'gian' in the family 'toy'; did you mean 'gain'?"):
        hf_loop.retrofit(base, "toy", gian=2)
    with pytest.raises(ValueError, match="`gain` must be float, got 'much'"):
        hf_loop.retrofit(base, "toy", gain="much")


def test_it_is_trained_by_a_recipe(tmp_path):
    (tmp_path / "text.txt").write_text("the ball is under the second cup. " * 20)
    recipe = {
        "model": {
            "family": "toy",
            "backbone": {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "config": {"gain": 0.5},
        },
        "data": {"files": [str(tmp_path / "text.txt")], "tokenizer": "bytes", "block_size": 16, "num_eval_rows": 4},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2, "use_cpu": True, "disable_tqdm": True},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert 0 < run_recipe(load_recipe(path)).eval_loss < 10
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.gain == 0.5
    # it goes on, and a plain model becomes one
    tiny_decoder("llama", vocab_size=257).save_pretrained(tmp_path / "plain")
    for source, gain in (("run", 3), ("plain", 4)):
        overrides = [f"model.pretrained={tmp_path / source}", f"model.config.gain={gain}", "model.backbone=null"]
        folder = tmp_path / f"from_{source}"
        run_recipe(load_recipe(path, [*overrides, f"training.output_dir={folder}"]))
        assert AutoModelForCausalLM.from_pretrained(folder).config.gain == gain
    with pytest.raises(ValueError, match="unknown key 'gian' in model.config; did you mean 'gain'?"):
        load_recipe(path, ["model.config.gian=1"])
    with pytest.raises(ValueError, match="model.preset of model.family=toy must be left out, got 'trm'"):
        load_recipe(path, ["model.preset=trm", "model.backbone=null"])


def test_the_command_lists_its_fields_and_makes_it(command, tmp_path):
    assert command("retrofit", "--fields", "toy")[1] == "gain: float = 1.0\n    What its output is multiplied with.\n"
    tiny_decoder("llama").save_pretrained(tmp_path / "plain")
    shell_game(1, 1)[1].save_pretrained(tmp_path / "plain")
    arguments = ("retrofit", tmp_path / "plain", tmp_path / "toy", "--family", "toy", "--set", "gain=2")
    code, output, error = command(*arguments)
    assert code == 0, error
    assert "a gate of 2.0," in output
