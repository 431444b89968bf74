"""Measures what looping costs beside a plain Llama that calls as many layers, in one run and as ratios.

    python training/benchmarks/looped_against_llama.py                  # about 10 minutes on one CPU core
    python training/benchmarks/looped_against_llama.py --rounds 5       # a quick look

The limit, before any overhead: both models do the same multiplications per layer call, so time cannot fall below
1.0 for arithmetic alone; a looped model reads its core's weights once per loop but they stay in cache between loops,
which is worth the most where weights outweigh activations (decoding one token), and it has fewer gradients to write.

Times are processor times on one thread. Peak memory is what a forward and backward pass adds to a process that holds
the model and its gradients; each is measured in a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_loop import LoopedConfig, LoopedForCausalLM


HIDDEN_SIZES = (256, 512)
NUM_CORE_LAYERS, NUM_LOOPS = 2, 6


def backbone_config(num_hidden_layers: int, hidden_size: int = 512) -> LlamaConfig:
    """Configure a Llama with grouped-query attention."""
    return LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def looped_model(num_loops: int = NUM_LOOPS, hidden_size: int = 512) -> LoopedForCausalLM:
    """Make a model of one prelude and one coda layer around a core of two."""
    config = LoopedConfig(
        backbone_config=backbone_config(NUM_CORE_LAYERS + 2, hidden_size),
        num_prelude_layers=1,
        num_coda_layers=1,
        num_loops=num_loops,
    )
    return LoopedForCausalLM(config)


def decode(model, num_tokens: int = 24) -> None:
    """Decode `num_tokens` greedily after a prompt of 16."""
    prompt = torch.arange(16)[None] + 10
    model.generate(prompt, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False)


def backward_pass(model, sequence_length: int = 128, **kwargs) -> None:
    """Run forward and backward on a batch of four rows."""
    input_ids = torch.randint(10, 8000, (4, sequence_length))
    model(input_ids, labels=input_ids, use_cache=False, **kwargs).loss.backward()


def training_step(model, optimizer: torch.optim.Optimizer) -> None:
    """Run forward, backward and update."""
    backward_pass(model)
    optimizer.step()
    optimizer.zero_grad()


def seconds(function) -> float:
    """Time one call in processor time, which other programs disturb less than wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def paired_ratios(first, second, rounds: int) -> list[float]:
    """Time `first` over `second` in turns, so that a drifting machine slows both."""
    first(), second()
    ratios = []
    for turn in range(rounds):
        # each goes first in half of the rounds
        if turn % 2:
            first_seconds, second_seconds = seconds(first), seconds(second)
        else:
            second_seconds, first_seconds = seconds(second), seconds(first)
        ratios.append(first_seconds / second_seconds)
    return ratios


def report(name: str, ratios: list[float]) -> None:
    """Print one line: median and quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{name:<58} {middle:6.2f}  ({low:.2f} to {high:.2f})", flush=True)


def compare_times(rounds: int, hidden_size: int) -> None:
    """Compare decoding and training with a Llama of as many layer calls."""
    looped = looped_model(hidden_size=hidden_size)
    plain = LlamaForCausalLM(backbone_config(looped.config.num_hidden_layers, hidden_size))
    num_calls = looped.config.num_hidden_layers
    print(f"{num_calls} layer calls, hidden size {hidden_size}; looped over plain Llama, median (quartiles)")
    looped.eval(), plain.eval()
    report("decode time", paired_ratios(lambda: decode(looped), lambda: decode(plain), rounds))
    looped.train(), plain.train()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in (looped, plain)]
    report(
        "training step time",
        paired_ratios(
            lambda: training_step(looped, optimizers[0]), lambda: training_step(plain, optimizers[1]), rounds
        ),
    )
    num_parameters = [sum(p.numel() for p in model.parameters()) for model in (looped, plain)]
    print(f"{'parameters':<58} {num_parameters[0] / num_parameters[1]:6.2f}")


def peak_memory(num_loops: int, num_backprop_loops: int) -> int:
    """Measure the bytes that a forward and backward pass adds to those held between passes (Linux only)."""
    model = looped_model(num_loops).train()
    backward_pass(model, 512, num_loops=1)
    held = memory_in_use("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    backward_pass(model, 512, num_loops=num_loops, num_backprop_loops=num_backprop_loops)
    return memory_in_use("VmHWM") - held


def memory_in_use(field: str) -> int:
    """Read the bytes of resident memory: `VmRSS` now, `VmHWM` at its peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def compare_memory() -> None:
    """Compare the memory of truncated and full back-propagation."""
    print("\npeak memory of a forward and backward pass: last 2 loops with gradient against all")
    for num_loops in (4, 8, 16):
        truncated, full = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--measure-memory", str(num_loops), str(k)],
                    capture_output=True,
                    check=True,
                    text=True,
                ).stdout
            )
            for k in (2, num_loops)
        )
        print(
            f"  {num_loops:>2} loops: truncated {truncated / 2**20:6.0f} MiB, full {full / 2**20:6.0f} MiB, "
            f"ratio {truncated / full:.2f}",
            flush=True,
        )


def count_cache_bytes() -> None:
    """Count the bytes of keys and values per token of a cache that was filled."""
    model = looped_model().eval()
    print("\nkeys and values, bytes per token in fp32")
    for num_loops in (1, 2, 4, 8):
        with torch.no_grad():
            cache = model(torch.arange(64)[None], num_loops=num_loops, use_cache=True).cache
        num_bytes = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        print(f"  {num_loops:>2} loops: {num_bytes // 64:>6}")


def main() -> None:
    """Run every comparison, or one memory measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41, help="timed pairs per comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--measure-memory", nargs=2, type=int, metavar=("LOOPS", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.measure_memory:
        print(json.dumps(peak_memory(*args.measure_memory)))
        return
    for hidden_size in HIDDEN_SIZES:
        compare_times(args.rounds, hidden_size)
    compare_memory()
    count_cache_bytes()


if __name__ == "__main__":
    main()
