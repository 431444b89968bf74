"""Associative recall across windows: pairs are written window by window, and the last window asks for their values.

    python training/recipes/sleep/recall.py outputs/sleep_recall                       # all runs, in order
    python training/recipes/sleep/recall.py outputs/sleep_recall --variants "N = 2" --seeds 0
    python training/recipes/sleep/recall.py outputs/sleep_recall --plot                # table and figure

All variants are one Llama of three layers on the same rows. `N = 2` and `N = 1` have a fast-weight layer after each of
its layers; `attention only` has none, and is the same Llama that starts anew in every window: its block attention
comes from the feedback family without a memory. Keys and values of a window are dropped at its end in all of them.

A finished run is one line in `results.jsonl`; a run that has its line is skipped, so the command can be given again
after an interruption.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from runs import answers, finish_runs, read_results, small_llama, spread, train
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from hf_loop import FeedbackConfig, FeedbackForCausalLM, SleepConfig, SleepForCausalLM
from hf_loop.evaluation.seed_plots import plot_seeds
from hf_loop.tasks import associative_recall, recall_accuracy


# passes over a full window, 0 for a model without fast weights; the order is that of the runs
VARIANTS = {"N = 2": 2, "attention only": 0, "N = 1": 1}
WINDOW, BATCH_SIZE, MIN_BLOCKS, MAX_BLOCKS = 5, 64, 2, 4
# the last two are longer than any row in training
BLOCKS = (2, 3, 4, 6, 8)
TASK: dict[str, Any] = {"block_size": WINDOW, "pairs_per_block": 2, "num_queries": 2, "num_keys": 16, "num_values": 16}


def main() -> None:
    """Run what has not been run, or draw what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results.jsonl is, or will be")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--test-rows", type=int, default=512)
    parser.add_argument("--plot", action="store_true", help="write table.md and accuracy.png from results.jsonl")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    if args.plot:
        (args.folder / "table.md").write_text(table(read_results(path)))
        draw(read_results(path), args.folder / "accuracy.png")
        return
    options = {name: getattr(args, name) for name in ("steps", "learning_rate", "test_rows")}
    runs = [{"variant": variant, "seed": seed, **options} for seed in args.seeds for variant in args.variants]
    finish_runs(path, runs, lambda run: train_and_evaluate(run, args.folder))


def train_and_evaluate(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make one run; return its training, and the share of right answers by blocks and by distance."""
    set_seed(run["seed"])
    splits, tokenizer = associative_recall(
        run["steps"] * BATCH_SIZE, run["test_rows"], MIN_BLOCKS, MAX_BLOCKS, group_size=BATCH_SIZE, curriculum=0.6,
        test_blocks=BLOCKS, seed=run["seed"], **TASK,
    )  # fmt: skip
    model = build(run["variant"], tokenizer)
    training = train(model, splits["train"], folder, run["seed"], run["steps"], BATCH_SIZE, run["learning_rate"])
    predictions = {count: answers(model, splits[f"test_{count}"]) for count in BLOCKS}
    accuracy = {count: share_right(predicted, splits[f"test_{count}"]) for count, predicted in predictions.items()}
    by_distance = recall_accuracy(predictions[MAX_BLOCKS], splits[f"test_{MAX_BLOCKS}"])
    return {"parameters": model.num_parameters(), **training, "accuracy": accuracy, "by_distance": by_distance}


def build(variant: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build the model of a variant, with fresh weights."""
    backbone, num_passes = small_llama(tokenizer, num_hidden_layers=3), VARIANTS[variant]
    if num_passes == 0:
        blocks = {"block_size": WINDOW, "num_memory_segments": 0, "feedback_length": 0}
        return FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone, **blocks))
    config = SleepConfig(
        backbone_config=backbone, sleep_window=WINDOW, num_sleep_passes=num_passes, fast_weight_layers=[0, 1, 2],
        fast_weight_num_heads=2, fast_weight_head_dim=32, sleep_over_labels=False,
    )  # fmt: skip
    return SleepForCausalLM(config)


def share_right(predicted: np.ndarray, rows: Any) -> float:
    """Compute the share of values that are right."""
    entries = recall_accuracy(predicted, rows)
    return sum(entry["accuracy"] * entry["num_questions"] for entry in entries) / predicted.size


def table(results: list[dict[str, Any]]) -> str:
    """Format accuracy by blocks in Markdown."""
    lines = ["| variant | seeds | " + " | ".join(map(str, BLOCKS)) + " |", "|---|---|" + "---|" * len(BLOCKS)]
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result["accuracy"] for result in results if result["variant"] == variant]
        cells = [spread([run[str(count)] for run in runs]) for count in BLOCKS]
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw mean accuracy over blocks, a line for each variant, between the lowest and the highest seed."""
    runs: dict[str, list[list[float]]] = {}
    for result in results:
        runs.setdefault(result["variant"], []).append(list(result["accuracy"].values()))
    labels = {"x_label": f"windows of {WINDOW} tokens", "y_label": "values right"}
    plot_seeds(runs, BLOCKS, path, trained=MAX_BLOCKS, guessing=1 / TASK["num_values"], **labels)


if __name__ == "__main__":
    main()
