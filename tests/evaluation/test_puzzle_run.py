"""A run of a puzzle recipe is measured on the puzzles that it was tested on."""

from types import SimpleNamespace

import yaml

from hf_loop.evaluation import puzzle_run
from hf_loop.tasks import puzzle_csv

from ..tasks.test_puzzles import write_csv


def test_puzzles_of_a_file_that_were_trained_on_are_left_out(tmp_path, monkeypatch):
    train = write_csv(tmp_path / "train.csv", [("a??", "abc", 0), ("?b?", "cba", 0), ("??b", "bab", 0)])
    test = write_csv(tmp_path / "test.csv", [("b??", "bab", 0), ("??c", "cba", 0), ("???", "ccc", 0)])
    options = {"train_file": train, "test_file": test, "kind": "grid"}
    recipe = {
        "model": {"family": "puzzle", "preset": "trm"},
        "data": {"task": "puzzle_csv", "task_options": options, "num_train_rows": 3, "num_eval_rows": 3},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    measured = {}
    monkeypatch.setattr(puzzle_run, "load_pretrained", lambda *args: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(puzzle_run, "write_puzzle_card", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        puzzle_run, "measure_puzzles", lambda model, rows, **kwargs: measured.update(rows=rows, **kwargs)
    )
    puzzle_run.measure_puzzle_run(tmp_path / "run")
    assert measured["rows"]["answer"] == puzzle_csv(3, 3, **options)[0]["test"]["answer"] == ["ccc"]
    assert measured["blank"] is None
