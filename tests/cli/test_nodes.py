"""`hf-loop nodes` reads the task from the model's recipe, and says what it needs where it cannot."""

import json

import pytest
import yaml

from hf_loop.models import LoopedConfig, LoopedForCausalLM
from hf_loop.tasks import addition

from ..models.tiny_backbones import tiny_backbone


@pytest.fixture
def adder_folder(tmp_path):
    _, tokenizer = addition(1, 1)
    config = LoopedConfig(backbone_config=tiny_backbone("llama", vocab_size=len(tokenizer)), num_loops=2)
    folder = tmp_path / "adder"
    LoopedForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = {"task": "addition", "task_options": {"difficulty": 3, "num_digits": 2, "curriculum": 0.5}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


def test_the_recipe_tells_the_task(hf_loop, adder_folder, tmp_path):
    arguments = ("nodes", adder_folder, "--num-rows", 24, "--num-train-rows", 200, "--quiet")
    code, out, err = hf_loop(*arguments, "--output-dir", tmp_path / "out", "--loops", 3)
    assert code == 0, err
    assert "## Compositionality" in out and "Nodes by kind of error" in out
    assert json.loads((tmp_path / "out" / "nodes.json").read_text())["loops"] == [1, 2, 3]
    assert (tmp_path / "out" / "nodes.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "nodes.md").read_text() in out


def test_what_it_cannot_do_is_one_line(hf_loop, adder_folder, looped_folder, tmp_path):
    code, _, err = hf_loop("nodes", looped_folder, "--output-dir", tmp_path / "out")
    assert code == 2 and "has no recipe.yaml that tells the task" in err
    code, _, err = hf_loop("nodes", looped_folder, "--task", "addition", "--output-dir", tmp_path / "out")
    assert code == 2 and "the model's tokenizer is not the one of addition" in err
    code, _, err = hf_loop("nodes", looped_folder, "--task", "shell_game", "--output-dir", tmp_path / "out")
    assert code == 2 and "the rows of shell_game have no computation graphs" in err
    assert not (tmp_path / "out").exists()
