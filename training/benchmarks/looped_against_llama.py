"""What looping costs beside a plain Llama that calls as many layers, all in one run and as ratios.

    python training/benchmarks/looped_against_llama.py                  # about 5 minutes on two CPU cores
    python training/benchmarks/looped_against_llama.py --rounds 3       # a quick look

The limit, before any overhead: both models do the same multiplications per layer call, so time cannot fall below
1.0 for arithmetic alone; a looped model reads its core's weights once per loop but they stay in cache between loops,
which is worth the most where weights outweigh activations (decoding one token), and it has fewer gradients to write.

Times are processor times on one thread. Peak memory is what a forward and backward pass adds to a fresh process that
has already run one with a single loop.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_loop import LoopedConfig, LoopedForCausalLM


HIDDEN_SIZE, NUM_CORE_LAYERS, NUM_LOOPS = 512, 2, 6


def backbone_config(num_hidden_layers: int) -> LlamaConfig:
    """A Llama of hidden size 512 with grouped-query attention."""
    return LlamaConfig(
        vocab_size=8192,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )


def looped_model(num_loops: int = NUM_LOOPS) -> LoopedForCausalLM:
    """One prelude and one coda layer around a core of two."""
    config = LoopedConfig(
        backbone_config=backbone_config(NUM_CORE_LAYERS + 2),
        num_prelude_layers=1,
        num_coda_layers=1,
        num_loops=num_loops,
    )
    return LoopedForCausalLM(config)


def decode(model, num_tokens: int = 48) -> None:
    """Greedy decoding of `num_tokens` after a prompt of 16."""
    prompt = torch.arange(16)[None] + 10
    model.generate(prompt, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False)


def backward_pass(model, sequence_length: int = 128, **kwargs) -> None:
    """Forward and backward on a batch of four rows."""
    input_ids = torch.randint(10, 8000, (4, sequence_length))
    model(input_ids, labels=input_ids, use_cache=False, **kwargs).loss.backward()


def training_step(model, optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward and update."""
    backward_pass(model)
    optimizer.step()
    optimizer.zero_grad()


def seconds(function) -> float:
    """Processor time of one call, which another program on the machine disturbs less than wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def paired_ratios(first, second, rounds: int) -> list[float]:
    """`first`'s time over `second`'s, in turn, so that a drifting machine slows both."""
    first(), second()
    return [seconds(first) / seconds(second) for _ in range(rounds)]


def report(name: str, ratios: list[float]) -> None:
    """One line: median, minimum and maximum."""
    print(f"{name:<58} {statistics.median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def compare_times(rounds: int) -> None:
    """Decoding and training against Llama with as many layer calls."""
    looped = looped_model()
    plain = LlamaForCausalLM(backbone_config(looped.config.num_hidden_layers))
    print(f"{looped.config.num_hidden_layers} layer calls, hidden size {HIDDEN_SIZE}; looped over plain Llama, median")
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
    """Bytes that a forward and backward pass adds to this process."""
    model = looped_model(num_loops).train()
    backward_pass(model, 512, num_loops=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        backward_pass(model, 512, num_loops=num_loops, num_backprop_loops=num_backprop_loops)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def compare_memory() -> None:
    """Truncated against full back-propagation."""
    print("\nmemory of forward and backward beyond that of one loop: last 2 loops with gradient against all")
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
    """Keys and values per token, read off a cache that was filled."""
    model = looped_model().eval()
    print("\nkeys and values, bytes per token in fp32")
    for num_loops in (1, 2, 4, 8):
        with torch.no_grad():
            cache = model(torch.arange(64)[None], num_loops=num_loops, use_cache=True).past_key_values
        num_bytes = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        print(f"  {num_loops:>2} loops: {num_bytes // 64:>6}")


def main() -> None:
    """Run every comparison, or one memory measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed pairs per comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--measure-memory", nargs=2, type=int, metavar=("LOOPS", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.measure_memory:
        print(json.dumps(peak_memory(*args.measure_memory)))
        return
    compare_times(args.rounds)
    compare_memory()
    count_cache_bytes()


if __name__ == "__main__":
    main()
