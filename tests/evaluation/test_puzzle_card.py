"""The card of a puzzle model states what was measured."""

import json
import re

import pytest
from datasets import concatenate_datasets
from huggingface_hub import ModelCard
from transformers import LlamaConfig

from hf_loop import HierarchicalForPuzzle, HierarchicalPuzzleConfig
from hf_loop.evaluation import measure_puzzles, write_puzzle_card
from hf_loop.evaluation.hub_card import write_card, write_card_before_push
from hf_loop.tasks import sudoku

from ..models.puzzle_variants import tiny_puzzle_model


@pytest.mark.parametrize("preset", ["trm", "plain"])
def test_measurements_and_card(preset, tmp_path):
    model = tiny_puzzle_model(preset, max_segments=2)
    rows = sudoku(1, 6, 4)[0]["test"]
    results = measure_puzzles(model, rows, blank=1, segments=(1, 3), batch_size=4)
    assert list(results["accuracy"]) == ["1", "3"] and results["num_rows"] == 6
    assert set(results["halting"]) == (set() if preset == "plain" else {"blanks", "dead_ends"})
    assert 0 <= results["one_blank_accuracy"] <= 1
    assert measure_puzzles(model, rows, segments=(1,))["one_blank_accuracy"] is None
    model.save_pretrained(tmp_path)
    path = write_puzzle_card(tmp_path, results, data="six boards", command="train it", seed=3, notes=["A note."])
    text = ModelCard.load(path).text
    assert "six boards" in text and "train it" in text and "Seed 3." in text and "- A note." in text
    assert f"| 3 | {results['accuracy']['3'][0]:.3f} | {results['accuracy']['3'][1]:.3f} |" in text
    assert ("## Halting" in text) == (preset == "trm")
    assert "trust_remote_code=True" in text
    (shown,) = re.findall(r"!\[.*\]\((.+)\)", text)
    assert (tmp_path / shown).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "puzzle_results.json").read_text())["results"] == results


def test_puzzles_of_several_sizes_are_measured():
    model = tiny_puzzle_model("trm", max_segments=2, vocab_size=8)
    parts = [sudoku(1, 3, size)[0]["test"] for size in (4, 6)]
    rows = concatenate_datasets(parts)
    results = measure_puzzles(model, rows, blank=1, segments=(1, 2), batch_size=4)
    assert results["num_rows"] == 6
    alone = [measure_puzzles(model, part, blank=1, segments=(1, 2)) for part in parts]
    for count in ("1", "2"):
        expected = sum(part["accuracy"][count][1] for part in alone) / 2
        assert results["accuracy"][count][1] == pytest.approx(expected, abs=0.02)


def test_a_push_takes_the_measurements_of_unchanged_weights_along(tmp_path):
    rows = sudoku(1, 6, 4)[0]["test"]
    model = tiny_puzzle_model("trm", max_segments=2)
    model.save_pretrained(tmp_path / "model")
    write_puzzle_card(tmp_path / "model", measure_puzzles(model, rows, segments=(1,)), data="six boards", seed=3)
    model = HierarchicalForPuzzle.from_pretrained(tmp_path / "model")

    model.save_pretrained(tmp_path / "upload")
    (tmp_path / "upload" / "README.md").write_text("# Mine\n")
    write_card_before_push(model, tmp_path / "upload", "me/puzzles")
    assert (tmp_path / "upload" / "README.md").read_text() == "# Mine\n"
    (tmp_path / "upload" / "README.md").unlink()
    write_card_before_push(model, tmp_path / "upload", "me/puzzles")
    text = (tmp_path / "upload" / "README.md").read_text()
    assert "# puzzles\n" in text and 'from_pretrained("me/puzzles"' in text and "Seed 3." in text

    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path / "changed")
    write_card_before_push(model, tmp_path / "changed", "me/puzzles")
    assert "Nothing was measured on this model yet" in (tmp_path / "changed" / "README.md").read_text()
    assert not (tmp_path / "changed" / "puzzle_results.json").exists()


def test_a_card_without_measurements(tmp_path):
    model = tiny_puzzle_model("trm", max_segments=2)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(write_card(tmp_path, "me/puzzles", license="mit", tags=["mine"]))
    assert card.data.license == "mit"
    assert card.data.tags == ["hf_loop", *model.family_tags, "puzzles", "mine"]
    assert "| `max_segments` | `2` |" in card.text and "Nothing was measured on this model yet" in card.text
    assert "The command was not recorded" in card.text and "No licence" not in card.text
    assert not (tmp_path / "figures").exists()


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(OSError, match=r"has no config\.json"):
        write_puzzle_card(tmp_path, {}, data="none")
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type 'llama', which is of no family"):
        write_puzzle_card(tmp_path, {}, data="none")
    HierarchicalPuzzleConfig(architectures=["HierarchicalPuzzleModel"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds \['HierarchicalPuzzleModel'\], and no puzzle model"):
        write_puzzle_card(tmp_path, {}, data="none")
    assert not (tmp_path / "puzzle_results.json").exists()
