"""Decoding by Huginn's own code and by ours, with the same weights, as paired ratios.

    git clone https://github.com/seal-rg/recurrent-pretraining ../recurrent-pretraining
    python -m venv ../huginn && ../huginn/bin/pip install torch==2.13.0 transformers==4.53.3
    python training/benchmarks/huginn_decoding.py ../recurrent-pretraining/recpre ../huginn/bin/python

Huginn's code (`raven_modeling_minimal.py`) needs transformers 4, so it runs in an environment and a process of its
own. It makes the model and decodes it with the `generate` that it has, over its growing cache; its static cache takes
bfloat16 only. Ours is what `hf-loop convert` makes of the saved model, and must say the same tokens.

1 + 2 x 8 + 1 layer calls of width 256, 48 tokens after a prompt of 16; processor times on one thread, medians of
rounds in which all decode one after the other, in an order that changes, with quartiles. About three minutes.
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
from pathlib import Path
from typing import Any

import torch


NUM_TOKENS = 48
PROMPT = torch.arange(16)[None] + 10
SIZES = {
    "n_embd": 256,
    "n_heads": 8,
    "n_layers": 4,
    "intermediate_size": 1024,
    "vocab_size": 8192,
    "block_size": 2048,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "mean_recurrence": 8,
    "state_init": "zero",
    "torch_dtype": "float32",
}


def serve(code: Path, model_folder: Path) -> None:
    """Save a model of Huginn's code, and decode it for every line of standard input; answers with seconds and
    tokens."""
    sys.path.insert(0, str(code.resolve().parent))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    package = code.resolve().name
    config_class = __import__(f"{package}.raven_config_minimal", fromlist=["RavenConfig"]).RavenConfig
    model_class = __import__(f"{package}.raven_modeling_minimal", fromlist=["RavenForCausalLM"]).RavenForCausalLM
    model = model_class(config_class(**SIZES)).float().eval()
    model.save_pretrained(model_folder)
    print(json.dumps("saved"), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        # a random first state would be another one in ours
        options = {"num_steps": SIZES["mean_recurrence"], "init_scale": 0.0}
        output = model.generate(
            PROMPT, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, **options
        )
        print(json.dumps([time.process_time() - start, output[0].tolist()]), flush=True)


class HuginnProcess:
    """A process that runs Huginn's code.

    Args:
        python (`Path`): the interpreter of an environment in which it runs.
        code (`Path`): the folder with the code.
        model_folder (`Path`): where it saves its model.
    """

    def __init__(self, python: Path, code: Path, model_folder: Path):
        self.process = subprocess.Popen(
            [str(python), __file__, "--serve", str(model_folder), str(code), str(python)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.read()

    def read(self) -> Any:
        stdout: Any = self.process.stdout
        return json.loads(stdout.readline())

    def decode(self) -> tuple[float, list[int]]:
        stdin: Any = self.process.stdin
        stdin.write("\n")
        stdin.flush()
        return self.read()


def our_decoders(model_folder: Path) -> dict[str, Callable[[], tuple[float, list[int]]]]:
    """Convert the model, and return the ways to decode it."""
    from transformers import CompileConfig

    from hf_loop import convert

    model = convert(model_folder)
    compile_config = CompileConfig(mode="default")
    # transformers compiles on a CPU only if it is asked to
    compile_config._compile_all_devices = True
    ways: dict[str, dict[str, Any]] = {
        "ours, growing cache": {},
        "ours, static cache": {"cache_implementation": "static", "disable_compile": True},
        "ours, static cache, compiled": {"cache_implementation": "static", "compile_config": compile_config},
    }

    def decoder(options: dict[str, Any]) -> Callable[[], tuple[float, list[int]]]:
        def decode() -> tuple[float, list[int]]:
            start = time.process_time()
            output = model.generate(
                PROMPT, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False, **options
            )
            return time.process_time() - start, output[0].tolist()

        return decode

    return {name: decoder(options) for name, options in ways.items()}


def main() -> None:
    """Print milliseconds a token of each, and how many times as fast as Huginn's code ours is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("code", type=Path, help="the folder with Huginn's code")
    parser.add_argument("python", type=Path, help="the interpreter of an environment in which it runs")
    parser.add_argument("--rounds", type=int, default=21, help="timed rounds (default 21)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.code, args.serve)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        huginn = HuginnProcess(args.python, args.code, Path(folder))
        decoders = {"Huginn's own code": huginn.decode, **our_decoders(Path(folder))}
    times: dict[str, list[float]] = {name: [] for name in decoders}
    names = list(decoders)
    tokens = huginn.decode()[1]
    for turn in range(args.rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds, generated = decoders[name]()
            if generated != tokens:
                raise SystemExit(f"{name} says other tokens than {names[0]}: {generated}, {tokens}")
            times[name].append(seconds)
    for name, seconds in times.items():
        # the first round compiles, the second warms up
        ratios = [own / other for own, other in zip(times[names[0]][2:], seconds[2:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1e3 * statistics.median(seconds[2:]) / NUM_TOKENS
        print(f"{name:<30} {milliseconds:7.2f} ms a token   {middle:5.2f} x as fast ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
