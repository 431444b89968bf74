"""Measures how far a feedback memory reaches: PassKey with symbols, trained on at most 8 blocks and read up to 256.

    python training/recipes/feedback/passkey_lengths.py outputs/passkey                        # all runs, in order
    python training/recipes/feedback/passkey_lengths.py outputs/passkey --variants f8 --seeds 0
    python training/recipes/feedback/passkey_lengths.py outputs/passkey --plot                 # table and figure

The setting is the same for all variants. A finished run is one line in `results.jsonl`; a run that has its line is
skipped, so the command can be given again after an interruption. On one CPU core a run takes two to three minutes.
Those that go on from another run's model find it in `models/`, or train it first.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, Trainer, TrainingArguments, set_seed

from hf_loop import FeedbackConfig, FeedbackForCausalLM
from hf_loop.evaluation.seed_plots import plot_seeds
from hf_loop.loading import load_pretrained
from hf_loop.tasks import passkey
from hf_loop.tasks.tokenizer import IGNORE_INDEX
from hf_loop.trainer import RandomStatePassing


# fields of FeedbackConfig; the order is that of the runs
VARIANTS: dict[str, dict[str, Any]] = {
    "f8": {},
    "window": {"feedback_length": 0, "num_memory_segments": 1},
    "f8, longer": {},
    "f8, longer, passing": {"random_state_passing": 0.8},
    "recurrent tokens": {"feedback_source": "top"},
    "f8, stop gradient": {"stop_gradient": True},
    "f1": {"feedback_length": 1},
    "f16": {"feedback_length": 16},
    "f4": {"feedback_length": 4},
    "f2": {"feedback_length": 2},
    "f8, passing": {"random_state_passing": 0.8},
}
# continue "f8" for half as many steps at half the rate, to tell what state passing adds beyond more training
LONGER = ("f8, longer", "f8, longer, passing")
DEFAULTS: dict[str, Any] = {"block_size": 32, "num_memory_segments": 0, "feedback_length": 8}
BACKBONE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BATCH_SIZE, MIN_BLOCKS, MAX_BLOCKS = 32, 2, 8
BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256)
# four symbols, each of 64
GUESSING = 64.0**-4
# tokens of a batch in evaluation
EVAL_TOKENS = 2**19


def main() -> None:
    """Run what has not been run, or draw what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results.jsonl is, or will be")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--test-rows", type=int, default=256)
    parser.add_argument("--plot", action="store_true", help="write table.md and accuracy.png from results.jsonl")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if args.plot:
        (args.folder / "table.md").write_text(table(results))
        draw(results, args.folder / "accuracy.png")
        return
    options = {name: getattr(args, name) for name in ("steps", "learning_rate", "weight_decay", "test_rows")}
    for variant in args.variants:
        for seed in args.seeds:
            run = {"variant": variant, "seed": seed, **options}
            if any(run.items() <= result.items() for result in results):
                continue
            result = {**run, **train_and_evaluate(variant, seed, args)}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def train_and_evaluate(variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Make one run; return the seconds of training, the mean loss of its last steps and exact accuracy by blocks."""
    start = time.perf_counter()
    model, losses = trained(variant, seed, args)
    seconds = time.perf_counter() - start
    tests, _ = passkey(1, args.test_rows, block_size=DEFAULTS["block_size"], test_blocks=BLOCKS, seed=seed)
    accuracy = {count: exact_accuracy(model, tests[f"test_{count}"]) for count in BLOCKS}
    return {"seconds": round(seconds, 1), "losses": [round(loss, 4) for loss in losses], "accuracy": accuracy}


def trained(variant: str, seed: int, args: argparse.Namespace) -> tuple[FeedbackForCausalLM, list[float]]:
    """Train a model or load it from `models/`; return it and its loss every 50 steps."""
    is_longer = variant in LONGER
    first = args.folder / "models" / f"f8-{seed}"
    if is_longer and not first.exists():
        trained("f8", seed, args)
    set_seed(seed)
    steps, rate, curriculum = args.steps, args.learning_rate, 0.5
    if is_longer:
        steps, rate, curriculum = steps // 2, rate / 2, 0.0
    splits, tokenizer = passkey(
        steps * BATCH_SIZE, 1, MIN_BLOCKS, MAX_BLOCKS, block_size=DEFAULTS["block_size"],
        group_size=BATCH_SIZE, curriculum=curriculum, seed=seed + 1000 * is_longer,
    )  # fmt: skip
    fields = {**DEFAULTS, **VARIANTS[variant]}
    if is_longer:
        model = load_pretrained(FeedbackForCausalLM, first, **fields)
    else:
        backbone = LlamaConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=False, **BACKBONE,
        )  # fmt: skip
        model = FeedbackForCausalLM(FeedbackConfig(backbone_config=backbone, **fields))
    training = TrainingArguments(
        output_dir=str(args.folder / "unused"), seed=seed, max_steps=steps, learning_rate=rate,
        weight_decay=args.weight_decay, warmup_steps=100, lr_scheduler_type="linear", max_grad_norm=1.0,
        per_device_train_batch_size=BATCH_SIZE, train_sampling_strategy="sequential", use_cpu=True,
        save_strategy="no", logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=training, train_dataset=splits["train"], processing_class=tokenizer,
        callbacks=[RandomStatePassing()] if model.config.random_state_passing else None,
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(args.folder / "models" / f"{variant}-{seed}")
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def exact_accuracy(model: FeedbackForCausalLM, rows: Dataset) -> float:
    """Compute the share of rows of one length whose whole key is predicted, symbol by symbol."""
    model.eval()
    input_ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    answers = int((labels[0] != IGNORE_INDEX).sum())
    num_right = 0
    for ids in input_ids.split(max(1, EVAL_TOKENS // input_ids.shape[1])):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=answers + 1).logits
        num_right += int((logits[:, :-1].argmax(-1) == ids[:, -answers:]).all(-1).sum())
    return num_right / len(input_ids)


def table(results: list[dict[str, Any]]) -> str:
    """Format accuracy by blocks in Markdown: the mean over seeds, and the lowest where they differ."""
    lines = ["| variant | seeds | " + " | ".join(map(str, BLOCKS)) + " |", "|---|---|" + "---|" * len(BLOCKS)]
    for variant in dict.fromkeys(result["variant"] for result in results):
        runs = [result["accuracy"] for result in results if result["variant"] == variant]
        cells = []
        for count in map(str, BLOCKS):
            values = [run[count] for run in runs]
            lowest = f" ({min(values):.3f})" if min(values) < max(values) else ""
            cells.append(f"{sum(values) / len(values):.3f}{lowest}")
        lines.append(f"| {variant} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw mean accuracy over blocks, a line for each variant, between the lowest and the highest seed."""
    runs: dict[str, list[list[float]]] = {}
    for result in results:
        runs.setdefault(result["variant"], []).append(list(result["accuracy"].values()))
    labels = {"x_label": "blocks of 32 tokens", "y_label": "whole key right"}
    plot_seeds(runs, BLOCKS, path, trained=MAX_BLOCKS, guessing=GUESSING, **labels)


if __name__ == "__main__":
    main()
