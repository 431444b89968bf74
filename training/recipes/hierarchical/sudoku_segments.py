"""Compares what segments, gradients and two stacks are worth: Sudoku by the number of segments, for several models.

    python training/recipes/hierarchical/sudoku_segments.py outputs/segments                    # all runs, in order
    python training/recipes/hierarchical/sudoku_segments.py outputs/segments --variants trm --seeds 0
    python training/recipes/hierarchical/sudoku_segments.py outputs/segments --plot             # tables, figures

All variants see the same puzzles in the same order for the same number of steps; a result says how many parameters and
layer calls a model has and how long it took, since no comparison is equal in all three. A finished run is one line in
`results.jsonl`, and a model in the folder that the line names. A run that has its line is skipped, so the command can
be given again after an interruption. Several processes may share a folder if they have different variants or seeds.
"""

import argparse
import json
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_loop import DeepSupervisionArguments, DeepSupervisionTrainer, HierarchicalForPuzzle, HierarchicalPuzzleConfig
from hf_loop.evaluation import measure_puzzles
from hf_loop.evaluation.figures import REFERENCE_COLOR, clear_axes, legend_beside, new_figure, save_figure, style_of
from hf_loop.evaluation.seed_plots import plot_seeds
from hf_loop.tasks import sudoku


# a preset and the fields that differ. TRM runs 24 layer calls in a segment, three cycles of four calls of two layers
SCHEDULE: dict[str, Any] = {"num_loops": 3, "low_cycles": 3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trm": ("trm", {**SCHEDULE, "num_hidden_layers": 2}),
    # the same, with gradient through the last call for each state alone
    "trm, one step": ("trm", {**SCHEDULE, "num_hidden_layers": 2, "gradient": "one_step"}),
    # two stacks: TRM's layer calls at twice its parameters, or its parameters at half its layer calls
    "hrm, equal compute": ("hrm", {**SCHEDULE, "num_hidden_layers": 4}),
    "hrm, equal compute, last cycle": ("hrm", {**SCHEDULE, "num_hidden_layers": 4, "gradient": "last_cycle"}),
    "hrm, equal parameters": ("hrm", {**SCHEDULE, "num_hidden_layers": 2}),
    # and with TRM's halting, to separate the effect of two stacks from that of Q-learning
    "hrm, equal parameters, binary": ("hrm", {**SCHEDULE, "num_hidden_layers": 2, "halting": "binary"}),
    # layers run once: as many weights as TRM, or as many layer calls as one of its segments. 24 layers with the norm
    # after them, where TRM has it, solve no puzzle here; before them, they learn
    "plain, equal parameters": ("plain", {"num_hidden_layers": 2}),
    "plain, equal compute": ("plain", {"num_hidden_layers": 24, "norm_placement": "pre"}),
    # the same two layers once a segment, under deep supervision: segments without inner cycles
    "plain, equal parameters, segments": ("plain", {"num_hidden_layers": 2, "halting": "binary"}),
}
# the figure merges puzzles with this many dead ends or more
MOST_DEAD_ENDS = 4
SEGMENTS = (1, 2, 4, 8, 16, 32)


def main() -> None:
    """Run what has not been run, or draw what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results.jsonl is, or will be")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=6, help="side of the board")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--max-segments", type=int, default=8, help="segments in training")
    parser.add_argument("--num-puzzles", type=int, default=1000, help="training puzzles, before symmetries")
    parser.add_argument("--test-rows", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--ema-decay", type=float, default=0.99)
    parser.add_argument("--plot", action="store_true", help="write tables.md and figures of the runs of these options")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    excluded = ("folder", "variants", "seeds", "plot")
    options = {name: value for name, value in vars(args).items() if name not in excluded}
    if args.plot:
        plot([result for result in results if options.items() <= result.items()], args.folder)
        return
    for seed in args.seeds:
        for variant in args.variants:
            run = {"variant": variant, "seed": seed, **options}
            if any(run.items() <= result.items() for result in results):
                continue
            result = {**run, **train_and_evaluate(run, args)}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def plot(results: list[dict[str, Any]], folder: Path) -> None:
    """Write the tables and the figures of runs of the same options."""
    # several processes write their lines in any order
    results = sorted(results, key=lambda result: (list(VARIANTS).index(result["variant"]), result["seed"]))
    if not results:
        raise SystemExit(f"{folder}/results.jsonl has no run of these options yet")
    (folder / "tables.md").write_text(tables(results))
    draw(results, folder / "segments.png")
    if any(result["halting"] for result in results):
        draw_halting(results, folder / "halting.png")


def train_and_evaluate(run: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Make one run; return its size, time and all measurements on the test puzzles."""
    seed = run["seed"]
    splits, _ = sudoku(
        args.steps * args.batch_size, args.test_rows, args.size, num_puzzles=args.num_puzzles, seed=seed
    )
    set_seed(seed)
    model = HierarchicalForPuzzle(config_of(run["variant"], args))
    training = DeepSupervisionArguments(
        output_dir=str(args.folder / "unused"), seed=seed, max_steps=args.steps, learning_rate=args.learning_rate,
        weight_decay=args.weight_decay, adam_beta2=0.95, warmup_steps=min(100, args.steps // 4),
        ema_decay=args.ema_decay,
        lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": max(1, args.steps // 5)},
        max_grad_norm=1.0, per_device_train_batch_size=args.batch_size, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_steps=max(1, args.steps // 10),
    )  # fmt: skip
    trainer = DeepSupervisionTrainer(model, training, train_dataset=splits["train"])
    start, work = time.perf_counter(), time.process_time()
    trainer.train()
    facts: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "layer_calls": model.config.num_hidden_layers,
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - work, 1),
        "losses": [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry],
    }
    # one folder for every set of options
    facts["model"] = f"models/{zlib.crc32(json.dumps(run, sort_keys=True).encode()):08x}"
    model.save_pretrained(args.folder / facts["model"])
    return {**facts, **measure_puzzles(model, splits["test"], blank=1, segments=SEGMENTS)}


def config_of(variant: str, args: argparse.Namespace) -> HierarchicalPuzzleConfig:
    """Make the configuration of a variant. All mix positions by an MLP, which TRM found best on Sudoku."""
    preset, fields = VARIANTS[variant]
    cells = args.size**2
    sizes = {
        "vocab_size": args.size + 2,
        "hidden_size": args.hidden_size,
        "intermediate_size": 3 * args.hidden_size,
        "num_attention_heads": 4,
        "token_mixer": "mlp",
        "mixer_intermediate_size": 3 * cells,
        "max_position_embeddings": cells,
        "num_puzzles": 0,
        "num_puzzle_tokens": 0,
    }
    config = HierarchicalPuzzleConfig.from_preset(preset, **{**sizes, **fields})
    if config.halting != "none":
        config.max_segments = args.max_segments
    return config


def tables(results: list[dict[str, Any]]) -> str:
    """Format exact accuracy by segments, failures and halting in Markdown: the mean over seeds, and the lowest."""
    variants = list(dict.fromkeys(result["variant"] for result in results))
    lines = ["Exact accuracy (every cell right) after so many segments: mean over seeds (lowest)", ""]
    lines.append(
        "| variant | parameters | layer calls | processor seconds | seeds | " + " | ".join(map(str, SEGMENTS)) + " |"
    )
    lines.append("|---|---:|---:|---:|---:|" + "---:|" * len(SEGMENTS))
    for variant in variants:
        runs = [result for result in results if result["variant"] == variant]
        cells = [spread([run["accuracy"][str(count)][0] for run in runs]) for count in SEGMENTS]
        seconds = sum(run["processor_seconds"] for run in runs) / len(runs)
        facts = f"{runs[0]['parameters']} | {runs[0]['layer_calls']} | {seconds:.0f} | {len(runs)}"
        lines.append(f"| {variant} | {facts} | " + " | ".join(cells) + " |")
    names = ("cell accuracy", "stays solved", "wrong fixed points", "one blank")
    names += ("halts after", "lost by it", "calibration error")
    lines += ["", "| variant | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for variant in variants:
        runs = [result for result in results if result["variant"] == variant]
        columns = [[run["accuracy"][str(max(SEGMENTS))][1] for run in runs]]
        columns += [[run["failures"][name] for run in runs] for name in ("stays_solved", "wrong_fixed_points")]
        columns.append([run["one_blank_accuracy"] for run in runs])
        cells = [spread(values) for values in columns]
        halting = [run["halting"]["blanks"] for run in runs if run["halting"]]
        for name in ("mean_segments", "accuracy_lost", "calibration_error"):
            cells.append(spread([values[name] for values in halting]) if halting else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: list[float | None]) -> str:
    """Format the mean, and the lowest where values differ; nothing where nothing could be measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    lowest = f" ({min(known):.3f})" if min(known) < max(known) else ""
    return f"{sum(known) / len(known):.3f}{lowest}"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw mean exact accuracy over segments, a line for each variant, between the lowest and the highest seed."""
    runs: dict[str, list[list[float]]] = {}
    for result in results:
        accuracy = [result["accuracy"][str(count)][0] for count in SEGMENTS]
        runs.setdefault(result["variant"], []).append(accuracy)
    trained = max(result["max_segments"] for result in results)
    plot_seeds(runs, SEGMENTS, path, x_label="segments", y_label="puzzles with every cell right", trained=trained)


def draw_halting(results: list[dict[str, Any]], path: Path) -> None:
    """Draw segments until halting by dead ends, and reliability diagrams, of the variants that halt, over seeds."""
    figure = new_figure(10.5, 4.0)
    by_difficulty, calibration = figure.subplots(1, 2)
    halting = [result for result in results if result["halting"]]
    for index, variant in enumerate(dict.fromkeys(result["variant"] for result in halting)):
        runs = [result["halting"]["dead_ends"] for result in halting if result["variant"] == variant]
        segments = pooled(
            (min(int(name.split("-")[0]), MOST_DEAD_ENDS), (segments,), rows)
            for run in runs
            for name, (segments, _, rows) in run["segments_by_difficulty"].items()
        )
        shares = pooled(
            (int(min(said, 0.99) * 10), (said, share), count)
            for run in runs
            for said, share, count in run["calibration"]
        )
        style = {"markersize": 3, "label": variant, **style_of(index)}
        by_difficulty.plot(list(segments), [mean for (mean,) in segments.values()], **style)
        calibration.plot(*zip(*shares.values()), **style)
    ticks = range(MOST_DEAD_ENDS + 1)
    by_difficulty.set_xticks(ticks, labels=[*map(str, ticks[:-1]), f"{MOST_DEAD_ENDS} or more"])
    by_difficulty.set_ylim(bottom=0)
    by_difficulty.set_xlabel("dead ends that a search meets in the puzzle")
    by_difficulty.set_ylabel("segments until it halts")
    calibration.plot([0, 1], [0, 1], color=REFERENCE_COLOR, linestyle=":", linewidth=1, label="as often as predicted")
    calibration.set_xlabel("mean predicted probability of being solved")
    calibration.set_ylabel("fraction solved")
    legend_beside(calibration)
    for axes in (by_difficulty, calibration):
        clear_axes(axes, "both")
    save_figure(figure, path)


def pooled(parts: Iterable[tuple[int, tuple[float, ...], int]]) -> dict[int, list[float]]:
    """Merge means of the same key, each weighted by its count."""
    sums: dict[int, list[float]] = {}
    for key, means, count in parts:
        counted = [count, *(mean * count for mean in means)]
        sums[key] = [before + more for before, more in zip(sums.get(key, [0.0] * len(counted)), counted)]
    return {key: [value / total for value in values] for key, (total, *values) in sorted(sums.items())}


if __name__ == "__main__":
    main()
