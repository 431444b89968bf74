"""Measures decoding with a static cache, compiled and not, beside a plain Llama that calls as many layers.

    python training/benchmarks/decoding.py                   # about ten minutes on one CPU core
    python training/benchmarks/decoding.py --rounds 5        # a quick look
    python training/benchmarks/decoding.py --processes 10    # how often a process meets the limits

A looped model compiles one pass of its core and calls it once per loop; transformers compiles the whole of a plain
model, and `torch.compile` the whole of a looped one, unrolled.

The limit: both models do the same arithmetic. A looped model reads 4 layers of weights per token where the plain one
reads 18, if its core stays in the processor's cache between loops. At width 256 with a feed-forward width of 1024 a
core of two layers has 7.9 MB in single precision.

Times are processor times on one thread, medians of paired rounds within one process, with quartiles. Compile times are
those of the first call of `generate`, with an empty cache of inductor, less those of a later call.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from hf_loop import LoopedConfig, LoopedForCausalLM


NUM_CORE_LAYERS, NUM_LOOPS = 2, 8
PROMPT = torch.arange(16)[None] + 10


def backbone_config(num_hidden_layers: int, hidden_size: int, intermediate_size: int) -> LlamaConfig:
    """Configure a Llama with grouped-query attention."""
    return LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def make_models(args: argparse.Namespace, num_loops: int = NUM_LOOPS) -> tuple[LoopedForCausalLM, LlamaForCausalLM]:
    """Make a looped model of 1 + 2 x `num_loops` + 1 layer calls and a Llama of as many layers."""
    sizes = (args.hidden_size, args.intermediate_size or 4 * args.hidden_size)
    config = LoopedConfig(
        backbone_config=backbone_config(NUM_CORE_LAYERS + 2, *sizes),
        num_prelude_layers=1,
        num_coda_layers=1,
        num_loops=num_loops,
    )
    plain = LlamaForCausalLM(backbone_config(config.num_hidden_layers, *sizes))
    return LoopedForCausalLM(config).eval(), plain.eval()


def decode(model, num_tokens: int, is_compiled: bool) -> None:
    """Decode greedily with a static cache."""
    config = CompileConfig(mode="default")
    # transformers compiles on a CPU only if it is asked to
    config._compile_all_devices = True
    options = {"compile_config": config} if is_compiled else {"disable_compile": True}
    length = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "cache_implementation": "static"}
    model.generate(PROMPT, do_sample=False, **length, **options)


def seconds(function: Callable[[], None]) -> float:
    """Time one call in processor time, which other programs disturb less than wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def time_in_turns(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time all functions in every round, each first in turn, so that a drifting machine slows all."""
    for function in functions.values():
        # the first call compiles, the second warms up
        function(), function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(seconds(functions[name]))
    return times


def compare(args: argparse.Namespace) -> dict[str, float]:
    """Compare decoding in this process, and return the median ratios."""
    looped, plain = make_models(args)
    functions: dict[str, Callable[[], None]] = {
        f"{name}, {'compiled' if is_compiled else 'eager'}": lambda model=model, is_compiled=is_compiled: decode(
            model, args.tokens, is_compiled
        )
        for name, model in (("looped", looped), ("Llama", plain))
        for is_compiled in (False, True)
    }
    times = time_in_turns(functions, args.rounds)
    for name, values in times.items():
        print(f"{name:<52} {1e3 * statistics.median(values) / args.tokens:8.2f} ms a token", flush=True)
    pairs = (
        ("looped, compiled", "Llama, compiled"),
        ("looped, eager", "Llama, eager"),
        ("looped, compiled", "looped, eager"),
        ("Llama, compiled", "Llama, eager"),
        ("looped, compiled", "Llama, eager"),
    )
    ratios = {}
    for first, second in pairs:
        values = [a / b for a, b in zip(times[first], times[second])]
        low, middle, high = statistics.quantiles(values, n=4)
        ratios[f"{first} / {second}"] = middle
        print(f"{f'{first} / {second}':<52} {middle:8.2f}    ({low:.2f} to {high:.2f})", flush=True)
    return ratios


def compile_seconds(args: argparse.Namespace, num_loops: int, is_whole: bool) -> float:
    """Time the compilation of a looped model in this process, in parts or as a whole."""
    looped, _ = make_models(args, num_loops)
    if is_whole:
        looped.get_compiled_call = lambda config: torch.compile(looped.__call__, **config.to_dict())
    decode(looped, args.tokens, False)
    first, later = (seconds(lambda: decode(looped, args.tokens, True)) for _ in range(2))
    return first - later


def in_new_process(cache: str, *options: str) -> str:
    """Run this script in a process of its own with a compile cache in folder `cache`, and return its last line."""
    # compiled in the process itself, where processor time is counted
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, __file__, *options]
    output = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
    return output.strip().splitlines()[-1]


def main() -> None:
    """Run every comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds per comparison")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--intermediate-size", type=int, help="by default four times the hidden size")
    parser.add_argument("--processes", type=int, help="compare in so many processes, and print the ratios of each")
    parser.add_argument("--as-json", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile", nargs=2, metavar=("LOOPS", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.compile:
        print(compile_seconds(args, int(args.compile[0]), args.compile[1] == "whole"))
        return
    sizes = ["--hidden-size", str(args.hidden_size), "--tokens", str(args.tokens)]
    if args.intermediate_size:
        sizes += ["--intermediate-size", str(args.intermediate_size)]
    if args.processes:
        with tempfile.TemporaryDirectory() as cache:
            for index in range(args.processes):
                ratios = json.loads(in_new_process(cache, "--as-json", "--rounds", str(args.rounds), *sizes))
                line = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
                print(f"process {index}: {line}", flush=True)
        return
    ratios = compare(args)
    if args.as_json:
        print(json.dumps(ratios))
        return
    print("\nseconds to compile (the C++ compiler runs in other processes and is not in them)")
    for num_loops, how in ((8, "parts"), (16, "parts"), (32, "parts"), (8, "whole")):
        with tempfile.TemporaryDirectory() as cache:
            result = float(in_new_process(cache, "--compile", str(num_loops), how, *sizes))
        print(f"  {num_loops:>2} loops, {how:<6} {result:6.1f}", flush=True)


if __name__ == "__main__":
    main()
