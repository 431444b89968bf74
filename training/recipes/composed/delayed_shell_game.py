"""Measures what the recipe's model, a feedback memory over loops, can do and neither half of it can.

    python training/recipes/composed/delayed_shell_game.py outputs/delayed              # all runs, in order
    python training/recipes/composed/delayed_shell_game.py outputs/delayed --variants composed --seeds 0
    python training/recipes/composed/delayed_shell_game.py outputs/delayed --table      # the finished runs

Every variant is the recipe with the overrides below: the same data, steps and schedule. A finished run is one line in
`results.jsonl`; a run that has its line is skipped, so the command can be given again after an interruption.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_loop import FeedbackForCausalLM
from hf_loop.evaluation import accuracy_over_loops
from hf_loop.loading import load_pretrained
from hf_loop.tasks import delayed_shell_game
from hf_loop.tasks.tokenizer import IGNORE_INDEX
from hf_loop.trainer.recipe import load_recipe
from hf_loop.trainer.run import run_recipe


RECIPE = Path(__file__).with_suffix(".yaml")
# overrides of the recipe; the order is that of the runs
VARIANTS: dict[str, list[str]] = {
    "composed": [],
    "memory alone": ["model.backbone.num_loops=1"],
    "depth alone": ["model.config.feedback_length=0"],
    "six layers": ["model.backbone.num_loops=1", "model.backbone.backbone_config.num_hidden_layers=6"],
}
LOOPS = (1, 2, 4, 6, 8, 12)
# the first two are trained on
BLOCKS = (2, 3, 4, 8, 16, 32)


def main() -> None:
    """Run what has not been run, or print what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results.jsonl is, or will be, beside the models")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    parser.add_argument("--table", action="store_true", help="print the finished runs in Markdown")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    if args.table:
        print(table(read(path)))
        return
    for seed in args.seeds:
        for variant in args.variants:
            run = {"variant": variant, "seed": seed, "overrides": args.set}
            if any(run.items() <= result.items() for result in read(path)):
                continue
            output_dir = args.folder / f"{variant.replace(' ', '_')}_{seed}"
            result = run | train_and_evaluate([*VARIANTS[variant], *args.set], seed, output_dir)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def train_and_evaluate(overrides: list[str], seed: int, output_dir: Path) -> dict[str, Any]:
    """Make one run; return its processor time, and the share of right answers by blocks, by loops and by swaps."""
    # a run takes two minutes: one that is interrupted begins again, and its time is that of all its steps
    own = [f"training.seed={seed}", f"training.output_dir={output_dir}", "training.save_strategy=no"]
    recipe = load_recipe(RECIPE, [*overrides, *own, "training.disable_tqdm=true"])
    start = time.process_time()
    num_parameters = run_recipe(recipe).num_parameters
    seconds = round(time.process_time() - start, 1)
    model: Any = load_pretrained(FeedbackForCausalLM, output_dir)
    options: dict[str, Any] = {**recipe.data.task_options, "test_blocks": BLOCKS}
    tests, _ = delayed_shell_game(1, recipe.data.num_eval_rows, seed=seed, **options)
    trained = model.config.num_loops
    blocks = {
        count: accuracy_over_loops(model, tests[f"test_{count}"], [trained], batch_size=256).values[0]
        for count in BLOCKS
    }
    curve = accuracy_over_loops(model, tests["test"], LOOPS if trained > 1 else [1], batch_size=256)
    loops = dict(zip(curve.num_loops, curve.values, strict=True))
    swaps = right_by_swaps(model, tests["test"])
    return {"parameters": num_parameters, "seconds": seconds, "blocks": blocks, "loops": loops, "swaps": swaps}


@torch.no_grad()
def right_by_swaps(model: FeedbackForCausalLM, rows: Dataset) -> list[float]:
    """Compute the share of right answers before the first swap and after each one, on rows of one length."""
    input_ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])[:, 1:]
    is_right = model.eval()(input_ids=input_ids, use_cache=False).logits[:, :-1].argmax(-1) == labels
    return is_right[:, labels[0] != IGNORE_INDEX].float().mean(0).tolist()


def read(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(results: list[dict[str, Any]]) -> str:
    """Format accuracy in Markdown, a line for each run."""
    columns = [*(f"{count} blocks" for count in BLOCKS), *(f"loops: {count}" for count in LOOPS)]
    lines = ["| variant | seed | parameters | " + " | ".join(columns) + " | seconds |"]
    lines.append("|---|---:|---:|" + "---:|" * (len(columns) + 1))
    for run in sorted(results, key=lambda run: list(VARIANTS).index(run["variant"])):
        shares = [run["blocks"][str(count)] for count in BLOCKS]
        # a model without loops has no other number of them
        shares += [run["loops"].get(str(count)) if len(run["loops"]) > 1 else None for count in LOOPS]
        cells = " | ".join("" if share is None else f"{share:.3f}" for share in shares)
        lines.append(f"| {run['variant']} | {run['seed']} | {run['parameters']:,} | {cells} | {run['seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
