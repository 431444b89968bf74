"""Processes that talk to the Hub on loopback.

`huggingface_hub` reads its settings when it is imported, so every step of a test runs in a process of its own.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

from .hub_server import HubServer


# put before a script, this makes it one of a reader who does not have hf_loop
BLOCK_HF_LOOP = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_loop":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
try:
    import hf_loop
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hf_loop could be imported; this test would prove nothing")
"""


def run_python(code: str, hub: HubServer, home: Path, expect_failure: bool = False) -> str:
    """Run code in a fresh process that talks to `hub` and return its stdout, or its stderr if it should fail."""
    environment = hub.environment(HF_HOME=str(home), OMP_NUM_THREADS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=home,
        timeout=300,
    )
    assert (result.returncode != 0) == expect_failure, result.stderr[-3000:]
    return result.stderr if expect_failure else result.stdout
