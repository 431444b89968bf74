"""Measures what sleep costs: nothing for a token read or written, and a pass over the window each when it fills.

    python training/benchmarks/sleep_cost.py                  # about 8 minutes on one CPU core
    python training/benchmarks/sleep_cost.py --rounds 5       # a quick look

Three measurements, each for a hybrid and for a Llama with inserted fast-weight layers, as ratios within one run:

- the time of a wake step, a token written in the middle of a window, at N = 1, 2, 4 and 8 passes: over the same at
  N = 1 (expected: 1), and over a step of the plain model with a cache of its own as long as the window;
- the time to read one whole window and sleep over it, over the same at N = 1 (expected: N, less what is done once);
- the size of the cache after 1 to 128 windows (expected: constant).

Times are processor times on one thread; every ratio is the median over rounds in which all N take turns.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3NextConfig

from hf_loop import SleepConfig, SleepForCausalLM
from hf_loop.models.transformers_seams import cache_of, named_cache


PASSES = (1, 2, 4, 8)
WINDOW = 128
# tokens in the open window before the steps that are timed, and the steps
NUM_OPEN, NUM_STEPS = 64, 32
COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 4096,
}


def backbones() -> dict[str, PreTrainedConfig]:
    """Configure a hybrid with linear attention in every second layer, and a decoder that is given two such layers."""
    hybrid = Qwen3NextConfig(
        **COMMON,
        layer_types=["linear_attention", "full_attention"] * 4,
        linear_num_key_heads=8,
        linear_num_value_heads=8,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        num_experts=0,
        mlp_only_layers=list(range(8)),
    )
    return {"qwen3_next": hybrid, "llama, 2 inserted": LlamaConfig(**COMMON)}


def random_ids(length: int) -> torch.Tensor:
    """Draw the tokens of one row."""
    return torch.randint(10, 4000, (1, length))


def seconds(function: Callable[[], object]) -> float:
    """Time one call in processor time, which other programs disturb less than wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def write_tokens(model, cache, tokens: torch.Tensor, **kwargs) -> None:
    """Run one forward pass for each token, as in generation."""
    for token in tokens.split(1, dim=1):
        model(token, **named_cache(cache), use_cache=True, **kwargs)


def compare_wake_steps(model: SleepForCausalLM, plain, rounds: int) -> None:
    """Time steps in the middle of a window, at every N and of the plain model."""
    start, steps = random_ids(WINDOW + NUM_OPEN), random_ids(NUM_STEPS)
    caches = {n: model(start, use_cache=True, num_sleep_passes=n).cache for n in PASSES}
    plain_cache = cache_of(plain(start[:, -NUM_OPEN:], use_cache=True))

    def time_of(num_passes: int) -> float:
        cache = copy.deepcopy(caches.get(num_passes, plain_cache))
        if num_passes == 0:
            return seconds(lambda: write_tokens(plain, cache, steps))
        return seconds(lambda: write_tokens(model, cache, steps, num_sleep_passes=num_passes))

    times = take_turns(time_of, (0, *PASSES), rounds)
    report("wake step over that at N = 1", times, 1)
    report("wake step over the plain model's", times, 0)


def compare_sleeps(model: SleepForCausalLM, rounds: int) -> None:
    """Time reading a whole window and sleeping over it."""
    window = random_ids(WINDOW)
    times = take_turns(
        lambda n: seconds(lambda: model(window, use_cache=True, num_sleep_passes=n, logits_to_keep=1)), PASSES, rounds
    )
    report("window read and slept over, over that at N = 1", times, 1)


def take_turns(time_of: Callable[[int], float], variants: tuple[int, ...], rounds: int) -> list[dict[int, float]]:
    """Time every variant in every round; each goes first in turn, so that a drifting machine slows all."""
    for variant in variants:
        time_of(variant)
    times = []
    for turn in range(rounds):
        first = turn % len(variants)
        times.append({variant: time_of(variant) for variant in (*variants[first:], *variants[:first])})
    return times


def report(name: str, times: list[dict[int, float]], reference: int) -> None:
    """Print one line: the median ratio at every N, and the quartiles."""
    cells = []
    for n in PASSES:
        low, middle, high = statistics.quantiles([turn[n] / turn[reference] for turn in times], n=4)
        cells.append(f"{middle:5.2f} ({low:.2f} to {high:.2f})")
    print(f"  {name:<48} " + "   ".join(cells), flush=True)


def count_cache_bytes(model: SleepForCausalLM, num_windows: int = 128) -> None:
    """Count the bytes of the cache after so many windows and `NUM_OPEN` tokens."""
    cache, sizes = None, {}
    for window in range(1, num_windows + 1):
        cache = model(random_ids(WINDOW), cache=cache, use_cache=True, logits_to_keep=1).cache
        if window & (window - 1) == 0:
            opened = copy.deepcopy(cache)
            model(random_ids(NUM_OPEN), cache=opened, use_cache=True, logits_to_keep=1)
            tensors = [tensor for layer in opened.layers for tensor in layer.memory_state().values()]
            sizes[window] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    print(
        "  bytes of the cache after windows: " + ", ".join(f"{n}: {size:,}" for n, size in sizes.items()), flush=True
    )


@torch.no_grad()
def main() -> None:
    """Make all three measurements for every backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds per comparison")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, config in backbones().items():
        torch.manual_seed(0)
        model = SleepForCausalLM(SleepConfig(backbone_config=config, sleep_window=WINDOW)).eval()
        plain = AutoModelForCausalLM.from_config(config).eval()
        columns = "   ".join(f"N = {n}{'':<15}" for n in PASSES)
        print(
            f"{name}, windows of {WINDOW} tokens: median ratio (quartiles) of {args.rounds} rounds\n{'':51}{columns}"
        )
        compare_wake_steps(model, plain, args.rounds)
        compare_sleeps(model, args.rounds)
        count_cache_bytes(model)


if __name__ == "__main__":
    main()
