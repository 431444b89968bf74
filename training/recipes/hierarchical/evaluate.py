"""Measures the model of a puzzle recipe on its test puzzles, and writes its card.

    python training/recipes/hierarchical/evaluate.py outputs/sudoku_4x4
    python training/recipes/hierarchical/evaluate.py outputs/sudoku_4x4 --test-rows 2000 --segments 1 4 16 64

It reads the copy of the recipe that the run left in the folder, makes its test puzzles again, and leaves
`puzzle_results.json` and `README.md` beside the weights.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModelForMaskedLM

from hf_loop.evaluation import measure_puzzles, write_puzzle_card
from hf_loop.evaluation.puzzle_card import SEGMENTS
from hf_loop.loading import load_pretrained
from hf_loop.trainer.data import load_training_data
from hf_loop.trainer.recipe import load_recipe


# the token of a blank in the task `sudoku`
BLANK = 1


def main() -> None:
    """Measure, write the card, and print the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of a run")
    parser.add_argument("--test-rows", type=int, help="test puzzles, as many as the recipe evaluates by default")
    parser.add_argument("--segments", type=int, nargs="+", default=list(SEGMENTS))
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    recipe = load_recipe(args.folder / "recipe.yaml")
    data = recipe.data
    data.num_train_rows = 1
    data.num_eval_rows = args.test_rows or data.num_eval_rows
    test = load_training_data(data, default_tokenizer=None, seed=recipe.training.seed).eval_dataset
    if test is None:
        raise ValueError("data.num_eval_rows of the recipe is 0: say how many with --test-rows")
    model = load_pretrained(AutoModelForMaskedLM, args.folder)
    is_maze = data.task == "maze" or data.task_options.get("kind") == "maze"
    blank = None if is_maze else BLANK
    results = measure_puzzles(model, test, blank=blank, segments=args.segments, batch_size=args.batch_size)
    options = ", ".join(f"{name} {value}" for name, value in data.task_options.items())
    command = "hf-loop train recipe.yaml --set training.output_dir=FOLDER"
    write_puzzle_card(
        args.folder, results, data=f"task {data.task} ({options})", command=command, seed=recipe.training.seed
    )
    print(json.dumps(results["accuracy"]))


if __name__ == "__main__":
    main()
