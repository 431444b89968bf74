"""Holds hf_loop to every decoder of the installed transformers and writes what it finds into hf_loop/models/README.md.

python -m tests.backbone_sweep            # goes on where an earlier run stopped, prints the count
python -m tests.backbone_sweep --write    # and writes the table
python -m tests.backbone_sweep gemma2 opt # these alone, again

Every model type is run in a process of its own, with a time limit: see tests/models/decoder_invariants.py.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from .backbone_table import README, count_line, kind_of, write_table
from .models.decoder_invariants import find_difference, random_decoder
from .models.tiny_decoders import causal_model_types


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "outputs" / "backbone_sweep.json"
# a result is of these sources
SOURCES = ("hf_loop/models/*.py", "tests/models/tiny_decoders.py", "tests/models/decoder_invariants.py")
TIME_LIMIT = 300
# what a decoder is that holds everything
HOLDS = ""


def fingerprint() -> str:
    """The release of transformers and the sources that a result is of."""
    digest = hashlib.sha256(transformers.__version__.encode())
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def check(model_type: str) -> str:
    """What keeps a decoder from being opened, `HOLDS` if nothing does."""
    try:
        base = random_decoder(model_type)
    except Exception as error:
        return f"no tiny configuration of it runs: {one_line(error)}"
    try:
        return find_difference(base) or HOLDS
    except ValueError as error:
        return one_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _report(model_type: str, queue: Any) -> None:
    torch.set_num_threads(1)
    # transformers warns about many a default configuration
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    queue.put(check(model_type))


def check_apart(model_type: str, time_limit: float = TIME_LIMIT) -> str:
    """`check` in a process of its own, which may crash or hang."""
    # forked: importing torch again for each would take longer than the check
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_report, args=(model_type, queue))
    process.start()
    process.join(time_limit)
    if process.is_alive():
        process.kill()
        process.join()
        return f"it takes longer than {time_limit:.0f} s"
    if queue.empty():
        return f"its process ended with code {process.exitcode}"
    return queue.get()


def read_results(path: Path) -> dict[str, str]:
    """Results of an earlier run over the same sources, by model type."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    return stored["results"] if stored["fingerprint"] == fingerprint() else {}


def run_sweep(path: Path = RESULTS, again: list[str] | None = None) -> dict[str, str]:
    """Check every decoder that has no result yet; the file is written after each.

    Args:
        path (`Path`): the file of results.
        again (`list[str]`, *optional*): check these alone, whether they have a result or not.
    """
    results = read_results(path)
    decoders = [name for name in causal_model_types() if kind_of(name) is None]
    todo = again or [name for name in decoders if name not in results]
    mark = fingerprint()
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, model_type in enumerate(todo, start=1):
        start = time.monotonic()
        results[model_type] = check_apart(model_type)
        seconds = time.monotonic() - start
        verdict = "holds" if results[model_type] == HOLDS else results[model_type]
        print(f"[{number}/{len(todo)}] {model_type} ({seconds:.1f} s): {verdict}", flush=True)
        stored = {"fingerprint": mark, "release": transformers.__version__, "results": results}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(stored, indent=1))
        part.replace(path)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model_types", nargs="*", help="check these alone, again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results")
    parser.add_argument("--write", action="store_true", help=f"write the table into {README.relative_to(ROOT)}")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = run_sweep(arguments.results, arguments.model_types)
    print(count_line(results))
    if arguments.write:
        write_table(results)


if __name__ == "__main__":
    main()
