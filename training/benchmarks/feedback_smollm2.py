"""Measures SmolLM2-135M with a feedback memory on a long real text, before and after a short LoRA run.

    python training/recipes/retrofit/python_docs.py outputs/python_docs       # the texts, out of Python itself
    python training/benchmarks/feedback_smollm2.py untrained                  # 10 minutes on one CPU core
    python training/benchmarks/feedback_smollm2.py trained --seed 0           # 10 minutes
    python training/benchmarks/feedback_smollm2.py passing --seed 0           # 5 minutes
    python training/benchmarks/feedback_smollm2.py report                     # table and figure

The model is trained on docstrings of the standard library and measured on Python's language reference, of which no 13
words in a row are in the docstrings. What is compared:

- the model as it is, at its trained context (8192 tokens) and in windows of 2048 and 256 tokens;
- block sliding-window attention, which is the same model with `feedback_length=0`;
- a feedback memory by `hf_loop.retrofit`, untrained, and after LoRA (rank 64 on every linear map of the layers, and
  the memory that a sequence starts from) with the plain language-model loss, on rows of eight blocks;
- the same with random state passing (0.8): most steps start from the memory that the one before ended with;
- the control: block sliding-window attention after the same LoRA run, with the same seed, rows and settings. What it
  gains is getting used to texts on Python; only what the memory gains beyond it is the memory's.

Measured in float32; trained in bfloat16 autocast.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from hf_loop import retrofit
from hf_loop.cli.load import load_plain_model, load_tokenizer
from hf_loop.evaluation.block_perplexity import BlockCurve, perplexity_by_block
from hf_loop.evaluation.block_plots import plot_block_curves
from hf_loop.files import write_text
from hf_loop.trainer.state_passing import passes_state


# the memory is a sixteenth of a block, as in the paper
BLOCK_SIZE, FEEDBACK_LENGTH = 256, 16
# each text is as long as the model's trained context
NUM_TEXTS, TEXT_LENGTH = 2, 8192
ROW_LENGTH = 8 * BLOCK_SIZE
LORA = LoraConfig(
    r=64,
    lora_alpha=64,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
)
STATE_PASSING = 0.8
LEARNING_RATE, MEMORY_LEARNING_RATE, WARMUP_STEPS = 5e-4, 5e-3, 3


def load(args: argparse.Namespace, **schedule: Any) -> Any:
    """Load the checkpoint in float32, without change or with a schedule of blocks."""
    base = load_plain_model(args.model, "float32")
    return retrofit(base, "feedback", block_size=BLOCK_SIZE, **schedule) if schedule else base


def held_out_texts(args: argparse.Namespace) -> torch.Tensor:
    """Return the beginning of the language reference, as texts `[B, T]` that follow each other."""
    text = (args.texts / "topics.txt").read_text(encoding="utf-8")
    tokenizer: Any = load_tokenizer(args.model)
    input_ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    return input_ids[: NUM_TEXTS * TEXT_LENGTH].view(NUM_TEXTS, TEXT_LENGTH)


def training_rows(args: argparse.Namespace) -> torch.Tensor:
    """Return the docstrings, one module after the other, as rows `[N, T]`."""
    tokenizer: Any = load_tokenizer(args.model)
    token_ids = []
    for line in (args.texts / "docstrings.jsonl").read_text(encoding="utf-8").splitlines():
        token_ids += [*tokenizer(json.loads(line)["text"], verbose=False)["input_ids"], tokenizer.eos_token_id]
    num_rows = len(token_ids) // ROW_LENGTH
    return torch.tensor(token_ids[: num_rows * ROW_LENGTH]).view(num_rows, ROW_LENGTH)


def measure(args: argparse.Namespace, model: Any, label: str, window: int | None = None) -> BlockCurve:
    """Measure a model on the held-out texts and write it down at once."""
    start = time.time()
    curve = perplexity_by_block(model, held_out_texts(args), block_size=BLOCK_SIZE, window=window, label=label)
    print(f"{label:<44} {curve.perplexity:8.3f}   ({time.time() - start:.0f} s)", flush=True)
    curves = [known for known in read_curves(args) if known.label != label] + [curve]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    write_text(path, json.dumps({"curves": [asdict(known) for known in curves]}, indent=1))
    return curve


def read_curves(args: argparse.Namespace) -> list[BlockCurve]:
    """Read the curves that were measured so far."""
    path = args.output_dir / "results.json"
    if not path.is_file():
        return []
    return [BlockCurve(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))["curves"]]


def measure_untrained(args: argparse.Namespace) -> None:
    """Measure the original, block sliding-window attention, and untrained memories."""
    base = load(args)
    measure(args, base, "original, 8192 tokens")
    measure(args, base, "original, windows of 2048", window=2048)
    measure(args, base, "original, windows of 256", window=BLOCK_SIZE)
    for num_segments in (0, 1, 3):
        model = load(args, num_memory_segments=num_segments, feedback_length=0)
        measure(args, model, f"sliding window, m={num_segments}")
    for num_segments, zero in ((0, False), (1, False), (0, True)):
        set_seed(0)
        schedule = {"num_memory_segments": num_segments, "feedback_length": FEEDBACK_LENGTH}
        model = load(args, **schedule, zero_first_residual=zero)
        zero_text = ", zero first residual" if zero else ""
        measure(args, model, f"feedback, m={num_segments}, f={FEEDBACK_LENGTH}{zero_text}, untrained")


def measure_trained(args: argparse.Namespace) -> None:
    """Measure a memory and the control, both after the same training."""
    for length, name in ((FEEDBACK_LENGTH, feedback_name(args)), (0, control_name(args))):
        measure_after_training(args, length, name)


def measure_passing(args: argparse.Namespace) -> None:
    """Measure a memory that is trained with random state passing."""
    measure_after_training(args, FEEDBACK_LENGTH, f"{feedback_name(args)}, state passing", STATE_PASSING)


def measure_after_training(args: argparse.Namespace, length: int, name: str, state_passing: float = 0.0) -> None:
    """Train a model with a memory of `length` vectors, and measure it."""
    set_seed(args.seed)
    model = load(args, num_memory_segments=args.segments, feedback_length=length, zero_first_residual=False)
    set_seed(args.seed)
    model = train(model, training_rows(args), args, state_passing)
    measure(args, model, f"{name}, LoRA, seed {args.seed}")


def feedback_name(args: argparse.Namespace) -> str:
    """Name the curve of a trained memory."""
    return f"feedback, m={args.segments}, f={FEEDBACK_LENGTH}"


def control_name(args: argparse.Namespace) -> str:
    """Name the curve of the control without a memory."""
    return f"sliding window, m={args.segments}"


def train(model: Any, rows: torch.Tensor, args: argparse.Namespace, state_passing: float) -> Any:
    """Train LoRA and the first memory on rows drawn with the seed, then merge the adapter."""
    has_memory = model.model.feedback_embedding is not None
    adapted: Any = get_peft_model(model, replace(LORA, modules_to_save=["feedback_embedding"] if has_memory else None))
    trained = [(name, parameter) for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    memory = [parameter for name, parameter in trained if "feedback_embedding" in name]
    lora = [parameter for name, parameter in trained if "feedback_embedding" not in name]
    groups = [{"params": lora, "lr": LEARNING_RATE}, {"params": memory, "lr": MEMORY_LEARNING_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (args.steps - step) / (args.steps - WARMUP_STEPS))
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
    adapted.train()
    losses, start, passed = [], time.process_time(), None
    for step in range(args.steps):
        row = rows[order[step % len(rows)]][None]
        initial = passed if passes_state(args.seed, step, state_passing) else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = adapted(input_ids=row, labels=row, use_cache=False, initial_feedback=initial)
        loss = outputs.loss
        passed = outputs.feedback[0].detach() if state_passing else None
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*lora, *memory], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 4 == 3:
            seconds = (time.process_time() - start) / (step + 1)
            print(f"  step {step + 1}: loss {statistics.fmean(losses[-4:]):.3f}, {seconds:.1f} s a step", flush=True)
    return adapted.merge_and_unload().eval()


def report(args: argparse.Namespace) -> None:
    """Print the table, and draw the perplexity along the text."""
    curves = read_curves(args)
    for curve in curves:
        print(f"| {curve.label} | {curve.perplexity:.3f} |")
    by_label = {curve.label: curve for curve in curves}
    for curve in curves:
        name = curve.label.replace(feedback_name(args), control_name(args)).replace(", state passing", "")
        control = by_label.get(name)
        if "LoRA" in curve.label and control is not None and control is not curve:
            difference, error = curve.difference_from(control)
            print(f"{curve.label} - {control.label}: {difference:+.4f} +- {error:.4f} nats a token over blocks")
    figures = args.output_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    plot_block_curves(curves, figures / "perplexity_by_block.png")


def main() -> None:
    """Make one part of the measurement; the parts add to the same results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["untrained", "trained", "passing", "report"])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder, repository, .gguf")
    parser.add_argument("--texts", type=Path, default=Path("outputs/python_docs"), help="what python_docs.py wrote")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/smollm2_feedback"))
    parser.add_argument("--seed", type=int, default=0, help="of the new memory, LoRA and the order of rows")
    parser.add_argument("--segments", type=int, default=0, help="whole blocks kept beside the memory, when trained")
    parser.add_argument("--steps", type=int, default=16, help="training steps of one row of 2048 tokens")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = {"untrained": measure_untrained, "trained": measure_trained, "passing": measure_passing, "report": report}
    parts[args.part](args)


if __name__ == "__main__":
    main()
