"""Measures what reading 1k to 256k tokens costs with a feedback memory, and beside it with other attention.

    python training/benchmarks/feedback_lengths.py                         # about 10 minutes on one CPU core
    python training/benchmarks/feedback_lengths.py --longest 16384         # a quick look

Three models with the same Llama layers read the same tokens, a block at a time, each into its own cache: with a
feedback memory, with block sliding-window attention alone (`feedback_length=0`), and with full attention.

The limit, before any overhead: a memory adds `f` rows to the `b` of a block in every layer and as many keys, so it
costs at least `f / b` = 6.25 % more arithmetic than the window alone, as in the paper (arXiv 2404.09173), which
reports 0.5 % more time. Both are linear in the length; full attention adds a term that is quadratic.

Times are processor times on one thread. The models take turns block by block, so that a drifting machine slows all of
them, and their ratios hold. Peak memory is that of a process that does nothing but read with one model (Linux only).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_loop import FeedbackConfig, FeedbackForCausalLM
from hf_loop.models.transformers_seams import cache_of, named_cache


BLOCK_SIZE, NUM_SEGMENTS, FEEDBACK_LENGTH = 512, 1, 32
NAMES = ("feedback", "window", "full")
LENGTHS = (1024, 4096, 16384, 65536, 262144)


class Reader:
    """A model, the cache it reads into, and the processor time it has taken.

    Args:
        name: one of `NAMES`.
    """

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        backbone = LlamaConfig(
            vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=LENGTHS[-1],
        )  # fmt: skip
        length = FEEDBACK_LENGTH if name == "feedback" else 0
        config = FeedbackConfig(
            backbone_config=backbone, block_size=BLOCK_SIZE, num_memory_segments=NUM_SEGMENTS, feedback_length=length
        )
        self.model: Any = LlamaForCausalLM(backbone) if name == "full" else FeedbackForCausalLM(config)
        self.model.eval()
        self.cache: Any = None
        self.seconds = 0.0

    @torch.no_grad()
    def read(self, block: torch.Tensor) -> None:
        """Read one block `[1, b]` more."""
        start = time.process_time()
        outputs = self.model(block, **named_cache(self.cache), use_cache=True, logits_to_keep=1)
        self.cache = cache_of(outputs)
        self.seconds += time.process_time() - start

    def cache_bytes(self) -> int:
        """Count the bytes of all tensors in the cache."""
        names = ("keys", "values", "feedback")
        tensors = [getattr(layer, name, None) for layer in self.cache.layers for name in names]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def blocks(longest: int):
    """Yield the tokens block by block, with their number so far."""
    generator = torch.Generator().manual_seed(1)
    for end in range(BLOCK_SIZE, longest + 1, BLOCK_SIZE):
        yield end, torch.randint(8192, (1, BLOCK_SIZE), generator=generator)


def compare_times(longest: int, longest_full: int) -> None:
    """Print time and cache of all models, and the ratios."""
    for name in NAMES:  # what a first call sets up
        Reader(name).read(torch.zeros(1, BLOCK_SIZE, dtype=torch.long))
    readers = {name: Reader(name) for name in NAMES}
    print("| tokens | feedback, s per 1k | over window alone | over full attention | cache, MiB | window | full |")
    print("|---|---|---|---|---|---|---|")
    for end, block in blocks(longest):
        if end > longest_full:
            readers.pop("full", None)
        for reader in readers.values():
            reader.read(block)
        if end in LENGTHS:
            print(time_row(end, readers), flush=True)


def time_row(length: int, readers: dict[str, Reader]) -> str:
    """Format one line of the table."""
    feedback, full = readers["feedback"], readers.get("full")
    cells = [
        f"{length:,}",
        f"{1024 * feedback.seconds / length:.3f}",
        f"{feedback.seconds / readers['window'].seconds:.3f}",
        "" if full is None else f"{feedback.seconds / full.seconds:.3f}",
        *("" if reader is None else f"{reader.cache_bytes() / 2**20:.2f}" for reader in map(readers.get, NAMES)),
    ]
    return f"| {' | '.join(cells)} |"


def peak_memory(name: str, longest: int) -> dict[int, int]:
    """Read so many tokens and return the peak resident memory of this process, in bytes."""
    reader, peaks = Reader(name), {}
    for end, block in blocks(longest):
        reader.read(block)
        if end in LENGTHS:
            status = Path("/proc/self/status").read_text()
            peaks[end] = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return peaks


def compare_memory(longest: int, longest_full: int) -> None:
    """Print the peak memory of every model, each in a process of its own."""
    print("\n| peak memory, MiB | " + " | ".join(f"{length:,}" for length in LENGTHS if length <= longest) + " |")
    print("|---|" + "---|" * sum(length <= longest for length in LENGTHS))
    for name in NAMES:
        limit = min(longest, longest_full if name == "full" else longest)
        command = [sys.executable, __file__, "--measure-memory", name, "--longest", str(limit)]
        peaks = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        print(f"| {name} | " + " | ".join(f"{peak / 2**20:.0f}" for peak in peaks.values()) + " |", flush=True)


def main() -> None:
    """Run all comparisons, or one measurement of memory in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="tokens to read")
    parser.add_argument("--longest-full", type=int, default=16384, help="tokens to read with full attention")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--measure-memory", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        print(json.dumps(peak_memory(args.measure_memory, args.longest)))
        return
    compare_times(args.longest, args.longest_full)
    compare_memory(args.longest, args.longest_full)


if __name__ == "__main__":
    main()
