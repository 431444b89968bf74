"""Decoding and a training step of every family under two versions of hf_loop, as paired ratios in one run.

    git worktree add ../before 15d2435
    python training/benchmarks/two_versions.py ../before .               # about 6 minutes on one CPU core
    python training/benchmarks/two_versions.py ../before . --rounds 5    # a quick look

Each version runs in a process of its own, on one thread. In every round both do the same work one after the other, in
an order that alternates, so that what slows the machine slows both. A ratio is the median over rounds of the second
version's processor time by the first's, between its quartiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, set_seed


FAMILIES = ("looped", "hierarchical", "feedback", "sleep", "puzzle")
WORK = ("decode", "train")


def make_model(family: str) -> Any:
    """A model of a family over eight layers of width 256, which only names that both versions have can make."""
    import hf_loop

    set_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024}
    decoder = LlamaConfig(**sizes, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4)
    if family == "looped":
        config = hf_loop.LoopedConfig(backbone_config=decoder, num_prelude_layers=2, num_coda_layers=2, num_loops=3)
        return hf_loop.LoopedForCausalLM(config)
    if family == "hierarchical":
        return hf_loop.HierarchicalForCausalLM(hf_loop.HierarchicalConfig(backbone_config=decoder, num_loops=2))
    if family == "feedback":
        config = hf_loop.FeedbackConfig(backbone_config=decoder, block_size=32, feedback_length=8)
        return hf_loop.FeedbackForCausalLM(config)
    if family == "sleep":
        return hf_loop.SleepForCausalLM(hf_loop.SleepConfig(backbone_config=decoder, sleep_window=32))
    # before there was a class of its own, puzzle models had that of the hierarchical ones
    config_class = getattr(hf_loop, "HierarchicalPuzzleConfig", hf_loop.HierarchicalConfig)
    return hf_loop.HierarchicalForPuzzle(config_class.from_preset("trm", **sizes, num_attention_heads=8))


def make_work(model: Any, family: str, work: str) -> Callable[[], Any]:
    """What is timed: 48 tokens after a prompt of 16, or forward and backward of two sequences of 128 tokens."""
    input_ids = torch.randint(3, 4000, (2, 128), generator=torch.Generator().manual_seed(0))
    if work == "train":

        def train() -> None:
            model.train()
            options = {} if family == "puzzle" else {"use_cache": False}
            model(input_ids, labels=input_ids, **options).loss.backward()
            model.zero_grad()

        return train
    model.eval()
    if family == "puzzle":
        return torch.no_grad()(lambda: model(input_ids[:1, :64], num_segments=2))
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False}
    return lambda: model.eval().generate(input_ids[:1, :16], **options)


def serve() -> None:
    """Do what the lines of standard input name, and answer with seconds of processor time."""
    torch.set_num_threads(1)
    works: dict[tuple[str, str], Callable[[], Any]] = {}
    models: dict[str, Any] = {}
    for line in sys.stdin:
        family, work = json.loads(line)
        if (family, work) not in works:
            models.setdefault(family, make_model(family))
            works[family, work] = make_work(models[family], family, work)
            works[family, work]()
        start = time.process_time()
        works[family, work]()
        print(json.dumps(time.process_time() - start), flush=True)


class Version:
    """A process that runs one version.

    Args:
        folder (`Path`): a checkout of hf_loop.
    """

    def __init__(self, folder: Path):
        environment = {**os.environ, "PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def time(self, family: str, work: str) -> float:
        """Seconds of processor time."""
        stdin: Any = self.process.stdin
        stdout: Any = self.process.stdout
        stdin.write(json.dumps([family, work]) + "\n")
        stdin.flush()
        return float(json.loads(stdout.readline()))


def main() -> None:
    """Print one line for every family and kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="a checkout of the first version")
    parser.add_argument("after", type=Path, nargs="?", help="a checkout of the second version")
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each (default 21)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.after is None:
        parser.error("two checkouts are needed")
    versions = [Version(args.before), Version(args.after)]
    print("family        work     after / before (quartiles)")
    for family in args.families:
        for work in WORK:
            ratios = []
            for number in range(args.rounds + 1):
                order = versions if number % 2 else versions[::-1]
                seconds = {version: version.time(family, work) for version in order}
                ratios.append(seconds[versions[1]] / seconds[versions[0]])
            # the first is a warm-up
            low, middle, high = statistics.quantiles(ratios[1:], n=4)
            print(f"{family:13} {work:8} {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
