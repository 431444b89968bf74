import json
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_loop.cli import quickstart as module
from hf_loop.cli.quickstart import quickstart
from hf_loop.evaluation import Results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "new" / "folder"
    num_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NUM_TEST_GAMES", 8)
        quickstart(folder, seed=1, steps=3)
    torch.set_num_threads(num_threads)
    return folder


def test_writes_a_model_folder_with_card_and_figure(folder):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "README.md",
        "config.json",
        "figures/accuracy_over_loops.png",
        "generation_config.json",
        "model.safetensors",
        "results.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= files
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name]
    assert (folder / "figures/accuracy_over_loops.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert "hf-loop quickstart --seed 1 --steps 3" in card
    assert "accuracy_over_loops.png" in card
    # the folder is put together elsewhere, and named after where it goes
    assert "# folder\n" in card and 'from_pretrained("folder")' in card
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_results_hold_both_curves(folder):
    looped, fixed = Results.load(folder).curves
    assert looped.trained_loops == module.NUM_LOOPS and fixed.trained_loops == 1
    assert looped.num_loops == fixed.num_loops == module.LOOPS
    assert {1, module.NUM_LOOPS, 2 * module.NUM_LOOPS, 4 * module.NUM_LOOPS} <= set(module.LOOPS)
    assert json.loads((folder / "results.json").read_text())["seed"] == 1


def test_the_table_and_the_figure_agree_on_guessing(folder, capsys):
    looped, fixed = Results.load(folder).curves
    assert looped.guessing is not None and looped.guessing == fixed.guessing
    module.print_accuracy(Console(width=100), folder)
    assert f"(guessing: {looped.guessing:.1%})" in capsys.readouterr().out


def test_the_folder_loads_through_the_auto_classes_and_answers_one_word(folder):
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert model.config.num_loops == module.NUM_LOOPS
    assert model.config.use_cache
    answers = tokenizer.convert_tokens_to_ids(["ball:1", "ball:2", "ball:3"])
    assert GenerationConfig.from_pretrained(folder).eos_token_id == answers
    prompts = tokenizer(["ball:1 1<->2", "ball:3 1<->2 2<->3 1<->3"], padding=True, return_tensors="pt")
    for num_loops in (1, 6, 12):
        assert model.generate(**prompts, num_loops=num_loops).shape[1] == prompts["input_ids"].shape[1] + 1


def test_the_models_differ_in_their_loops_only():
    from hf_loop.tasks import shell_game

    _, tokenizer = shell_game(1, 1, 4)
    looped, fixed = (module.build_model(tokenizer, num_loops, seed=2) for num_loops in (6, 1))
    state, other = looped.state_dict(), fixed.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("make", ["file in it", "is a file"])
def test_an_output_folder_that_is_not_empty_is_refused_and_kept(tmp_path, monkeypatch, make):
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: pytest.fail("trained before the check"))
    folder = tmp_path / "out"
    if make == "is a file":
        kept = folder
    else:
        folder.mkdir()
        kept = folder / "thesis.txt"
    kept.write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        quickstart(folder, steps=1)
    assert kept.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == sorted({folder, kept})


@pytest.mark.slow
def test_more_loops_answer_better(tmp_path):
    """The whole quickstart, as a newcomer runs it: a minute and a half on an idle CPU core, at most three."""
    quickstart(tmp_path / "out")
    looped, fixed = Results.load(tmp_path / "out").curves
    assert looped.value_at(6) >= 0.95
    assert looped.value_at(1) <= 0.60
    assert looped.value_at(12) >= 0.90
    assert looped.value_at(24) >= 0.90
    assert fixed.value_at(1) <= 0.60
    assert max(fixed.values) <= looped.value_at(6) - 0.3
