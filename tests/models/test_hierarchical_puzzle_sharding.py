"""FSDP: a puzzle model over two processes gives what it gives whole."""

import os
import subprocess
import sys
from pathlib import Path

from .puzzle_variants import tiny_puzzle_model


ROOT = Path(__file__).parents[2]


def test_sharded_logits_and_gradients_are_those_of_the_whole_model(tmp_path):
    for name in ("trm", "hrm", "urm"):
        tiny_puzzle_model(name).save_pretrained(tmp_path / name)
    worker = ROOT / "tests" / "models" / "sharded_puzzle_worker.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*torchrun, worker, tmp_path], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
