"""Do more passes help? Rule 110 and k-hop successors at N = 1, 2 and 4, with the controls that the paper lacks.

    python training/recipes/sleep/passes.py rule_110 outputs/sleep_rule_110          # all runs, in order
    python training/recipes/sleep/passes.py successor outputs/sleep_successor
    python training/recipes/sleep/passes.py successor outputs/sleep_successor --variants "N = 4" --seeds 0
    python training/recipes/sleep/passes.py successor outputs/sleep_successor --plot    # table and figure

All variants are Llamas of width 64 with a fast-weight layer after each of two layers, trained on the same rows (the
one with more steps on rows of its own) with hard eviction; windows with labels are read once and the others slept
over, as in the paper. The controls of N = 4:

- `N = 1, compute of N = 4`: as many more steps as four passes cost;
- `N = 1, 8 layers`: four times the layers, each called once;
- `looped, 4 loops`: the looped family, four loops at every token and no sleep. It loops while it is awake, and it
  evicts nothing: its attention sees the whole text. It has no fast-weight layers, and no need of them.

A finished run is one line in `results.jsonl`; a run that has its line is skipped, so the command can be given again
after an interruption. The cost of a variant is how often a layer runs over a token in training, over that of `N = 1`.
"""

import argparse
from pathlib import Path
from typing import Any

from runs import answers, finish_runs, read_results, small_llama, spread, train
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from hf_loop import LoopedConfig, LoopedForCausalLM, SleepConfig, SleepForCausalLM
from hf_loop.evaluation.figures import (
    REFERENCE_COLOR,
    clear_axes,
    legend_beside,
    new_figure,
    save_figure,
    share_axis,
    style_of,
)
from hf_loop.tasks import rule_110, rule_110_accuracy, successor, successor_accuracy


BATCH_SIZE, NUM_LAYERS = 128, 2
# passes, factor of layers, and whether it trains for the compute of four passes; the order is that of the runs
VARIANTS: dict[str, tuple[int, int, bool]] = {
    "N = 1": (1, 1, False),
    "N = 2": (2, 1, False),
    "N = 4": (4, 1, False),
    "N = 1, compute of N = 4": (1, 1, True),
    "N = 1, 8 layers": (1, 4, False),
    "looped, 4 loops": (0, 1, False),
}
TASKS: dict[str, dict[str, Any]] = {
    "rule_110": {"num_steps": 2, "num_states": 2, "state_size": 8},
    "successor": {
        "max_hops": 2,
        "min_nodes": 3,
        "max_nodes": 4,
        "num_edge_blocks": 2,
        "block_size": 4,
        "num_queries": 1,
        "num_names": 12,
    },
}


def main() -> None:
    """Run what has not been run, or draw what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("folder", type=Path, help="where results.jsonl is, or will be")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--test-rows", type=int, default=1024)
    parser.add_argument("--plot", action="store_true", help="write table.md and accuracy.png from results.jsonl")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    if args.plot:
        (args.folder / "table.md").write_text(table(read_results(path)))
        draw(read_results(path), args.folder / "accuracy.png")
        return
    options = {name: getattr(args, name) for name in ("task", "steps", "learning_rate", "test_rows")}
    runs = [{**options, "variant": variant, "seed": seed} for seed in args.seeds for variant in args.variants]
    finish_runs(path, runs, lambda run: train_and_evaluate(run, args.folder))


def train_and_evaluate(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make one run; return its cost, its training and the share of right answers by difficulty."""
    set_seed(run["seed"])
    task, options = run["task"], TASKS[run["task"]]
    num_passes, _, has_more_steps = VARIANTS[run["variant"]]
    steps = round(run["steps"] * cost(task, 4)) if has_more_steps else run["steps"]
    make_rows = rule_110 if task == "rule_110" else successor
    splits, tokenizer = make_rows(steps * BATCH_SIZE, run["test_rows"], seed=run["seed"], **options)
    model = build(task, run["variant"], tokenizer)
    training = train(model, splits["train"], folder, run["seed"], steps, BATCH_SIZE, run["learning_rate"])
    predictions = answers(model, splits["test"])
    if task == "rule_110":
        accuracy = rule_110_accuracy(predictions, splits["test"])
    else:
        accuracy = {f"{entry['hops']}": entry["accuracy"] for entry in successor_accuracy(predictions, splits["test"])}
    relative = {"cost": round(total_cost(task, run["variant"]), 2), "parameters": model.num_parameters()}
    return {**relative, "steps_made": steps, **training, "accuracy": accuracy}


def build(task: str, variant: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build the model of a variant, with fresh weights."""
    num_passes, times, _ = VARIANTS[variant]
    num_layers = NUM_LAYERS * times
    backbone = small_llama(tokenizer, num_hidden_layers=num_layers)
    if num_passes == 0:
        return LoopedForCausalLM(LoopedConfig(backbone_config=backbone, num_loops=4))
    config = SleepConfig(
        backbone_config=backbone, sleep_window=window_of(task), num_sleep_passes=num_passes,
        fast_weight_layers=list(range(num_layers)), fast_weight_num_heads=2, fast_weight_head_dim=32,
        sleep_over_labels=False,
    )  # fmt: skip
    return SleepForCausalLM(config)


def window_of(task: str) -> int:
    """Return the tokens of a window: a state, or a block of edges."""
    return TASKS[task]["state_size" if task == "rule_110" else "block_size"]


def cost(task: str, num_passes: int) -> float:
    """Compute the layer calls of a row over those at one pass; the last window, which asks, is read once."""
    options = TASKS[task]
    if task == "rule_110":
        slept, asking = options["num_states"] * options["state_size"], 2 * options["num_states"]
    else:
        slept, asking = options["num_edge_blocks"] * options["block_size"], 3 * options["num_queries"]
    return (num_passes * slept + asking) / (slept + asking)


def total_cost(task: str, variant: str) -> float:
    """Compute the layer calls of a variant's training over those of `N = 1`."""
    num_passes, times, has_more_steps = VARIANTS[variant]
    return (cost(task, num_passes) if num_passes else 4) * times * (cost(task, 4) if has_more_steps else 1)


def table(results: list[dict[str, Any]]) -> str:
    """Format cost and accuracy by difficulty in Markdown."""
    columns = list(results[0]["accuracy"])
    lines = ["| variant | cost | seeds | " + " | ".join(columns) + " |", "|---|---|---|" + "---|" * len(columns)]
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result for result in results if result["variant"] == variant]
        cells = [spread([run["accuracy"][column] for run in runs]) for column in columns]
        lines.append(f"| {variant} | {runs[0]['cost']} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy by difficulty: a group of points for each, one point a seed, one colour a variant."""
    figure = new_figure(7.2, 3.8)
    axes = figure.add_subplot()
    columns = [column for column in results[0]["accuracy"] if "guessing" not in column]
    variants = list(dict.fromkeys(result["variant"] for result in results))
    for index, variant in enumerate(variants):
        runs = [result["accuracy"] for result in results if result["variant"] == variant]
        places = [place + 0.12 * (index - (len(variants) - 1) / 2) for place in range(len(columns)) for _ in runs]
        values = [run[column] for column in columns for run in runs]
        (points,) = axes.plot(places, values, markersize=4, label=variant, **style_of(index))
        points.set_linestyle("none")
    shares = [guessing(results, column) for column in columns]
    starts = [place - 0.4 for place in range(len(columns))]
    axes.hlines(shares, starts, [start + 0.8 for start in starts], color=REFERENCE_COLOR, ls=":", label="guessing")
    axes.set_xticks(range(len(columns)), labels=columns)
    axes.set_xlabel("answers counted" if results[0]["task"] == "rule_110" else "hops")
    share_axis(axes, "right")
    clear_axes(axes)
    legend_beside(axes)
    save_figure(figure, path)


def guessing(results: list[dict[str, Any]], column: str) -> float:
    """Return the share of right answers that guessing gives: the most frequent bit, or any node of the ring."""
    if results[0]["task"] == "rule_110":
        return sum(result["accuracy"][f"{column}_by_guessing"] for result in results) / len(results)
    sizes = range(TASKS["successor"]["min_nodes"], TASKS["successor"]["max_nodes"] + 1)
    return sum(1 / size for size in sizes) / len(sizes)


if __name__ == "__main__":
    main()
