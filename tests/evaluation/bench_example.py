"""A benchmark of decoding as it would be read from a file."""

import math

from hf_loop.evaluation.bench_quality import Quality
from hf_loop.evaluation.bench_results import Bench, BenchRow
from hf_loop.evaluation.bench_runs import Memory


def example() -> Bench:
    rows = [
        BenchRow("2 loops", "loops", Quality(10.0, 0.5, 2.0), {"1": Memory(2048.0, 3 << 20)}),
        BenchRow("1 loop", "loops", Quality(math.inf, 0.25, 1.0)),
        BenchRow("kl:0.1", "exit", Quality(11.0, 0.5, 1.5)),
        BenchRow("oracle", "oracle", Quality(10.0, 0.5, 1.25)),
        BenchRow("gate:0.5", "exit", refused={"text": "it has no gate", "1": "it has no gate"}),
        BenchRow("plain Llama", "plain"),
    ]
    rounds = [
        {"2 loops": [0.01, 0.02], "1 loop": [0.005, 0.01], "kl:0.1": [0.006, 0.02], "oracle": [0.006, 0.02]},
        {"2 loops": [0.02, 0.02], "1 loop": [0.012, 0.02], "plain Llama": [0.01, 0.0]},
    ]
    return Bench("tiny", 2, {"tokens": 64, "new_tokens": 4}, rows, {"1": rounds})
