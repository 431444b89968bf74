"""A run of two gloo processes: killed while it saves, resumed, and refused where another run has the folder."""

import json
import os
import subprocess
import sys

import pytest

from hf_loop.output_folders import folder_lock

from .test_distributed import ROOT


def launch(folder, how):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [ROOT / "tests" / "trainer" / "killed_worker.py", folder, how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    results = [folder.parent / f"{how}_{rank}.json" for rank in range(2)]
    return done, [json.loads(path.read_text()) for path in results if path.is_file()]


@pytest.mark.slow
def test_two_processes_go_on_as_if_one_had_not_been_killed(tmp_path):
    done, whole = launch(tmp_path / "whole", "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    done, results = launch(run, "killed")
    assert done.returncode != 0 and results == []
    assert "checkpoint-6" not in os.listdir(run)
    done, resumed = launch(run, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert resumed == whole
    assert sorted(os.listdir(run)) == ["checkpoint-6", "checkpoint-9"]

    # what the second process lacks, both pass over
    path = run / "checkpoint-9" / "deep_supervision_1.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    done, resumed = launch(run, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(f"passed over {run}/checkpoint-9: {path.name} is cut off or damaged") == 1
    assert resumed == whole

    with folder_lock(run):
        done, refused = launch(run, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert all("run is in use: another process is writing into it" in message for message in refused)
    assert len(refused) == 2
