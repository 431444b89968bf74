"""Run the tests that a release of transformers can break under any releases, each in an environment of its own.

    python tests/releases.py 5.23.0             # the oldest supported one, as CI does
    python tests/releases.py 5.23.0 5.24.0 5.25.0

The tests are those marked `release`: generation, caches, code on the Hub and a training step of each family. Then a
tiny model of every family, written here, must answer the same under every release where hf_loop is not installed.
Environments stay in .cache/releases and are used again. Prints a table; ends with code 1 unless everything passed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".cache" / "releases"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# the release itself is what varies, with the tokenizers that it asks for
FREE = ("transformers", "tokenizers")
# what the marked tests import; linters and quantization are not among it
EXTRAS = ("gguf", "hypothesis", "parameterized", "pytest", "pytest-timeout", "pytest-xdist", "trl")


@dataclass
class Outcome:
    """What one release gave.

    Args:
        release (`str`): the release of transformers.
        counts (`str`): tests passed, failed and skipped.
        folders (`str`): whether the folders of every family answered the same.
        seconds (`float`): how long it took, without the installation.
        failures (`list[str]`): the tests that failed.
    """

    release: str
    counts: str = ""
    folders: str = ""
    seconds: float = 0.0
    failures: list[str] | None = None

    @property
    def passed(self) -> bool:
        return self.failures == [] and self.folders == "same"


def install(release: str) -> Path:
    """The interpreter of an environment with hf_loop and this release, made where it is not there yet."""
    folder = ENVIRONMENTS / release
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists():
        return python
    print(f"transformers {release}: installing into {folder.relative_to(ROOT)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    constraints = folder / "constraints.txt"
    kept = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith(FREE)]
    constraints.write_text("\n".join([*kept, f"transformers=={release}", ""]))
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install_command = [str(python), "-m", "pip", "install", "-q", "-c", str(constraints), "-e", str(ROOT), *EXTRAS]
    subprocess.run(install_command, check=True)
    done.touch()
    return python


def run_marked_tests(python: Path, report: Path) -> tuple[str, list[str]]:
    """Return the counts of the marked tests, and the names of those that failed."""
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "-m", "release and not slow", f"--junitxml={report}"]
    code = subprocess.run([*command, "tests"], cwd=ROOT).returncode
    if not report.exists():
        return "none ran", [f"pytest ended with code {code}"]
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = number["failures"] + number["errors"]
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = number["tests"] - bad - number["skipped"]
    if code and not failures:
        failures = [f"pytest ended with code {code}"]
    return f"{passed} passed, {bad} failed, {number['skipped']} skipped", failures


def read_folders(python: Path, folder: Path) -> str:
    """Whether every family's folder answers under this release as it did where it was written."""
    command = [str(python), "-m", "tests.release_models", "read", str(folder)]
    # a home of its own: code that came with a checkpoint is kept there by name
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return "same" if subprocess.run(command, cwd=ROOT, env=environment).returncode == 0 else "DIFFERENT"


def try_release(release: str, folders: Path) -> Outcome:
    """Everything there is to try under one release."""
    python = install(release)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as reports:
        counts, failures = run_marked_tests(python, Path(reports) / "report.xml")
    answers = read_folders(python, folders)
    return Outcome(release, counts, answers, time.monotonic() - start, failures)


def main() -> int:
    """Try the releases that the command line names; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="+", help="releases of transformers, say 5.23.0")
    releases = parser.parse_args().releases
    with tempfile.TemporaryDirectory() as temporary:
        folders = Path(temporary)
        subprocess.run([sys.executable, "-m", "tests.release_models", "write", str(folders)], cwd=ROOT, check=True)
        outcomes = [try_release(release, folders) for release in releases]
    print(f"\n{'transformers':<14}{'marked tests':<40}{'folders':<12}seconds")
    for outcome in outcomes:
        print(f"{outcome.release:<14}{outcome.counts:<40}{outcome.folders:<12}{outcome.seconds:.0f}")
        for failure in outcome.failures or []:
            print(f"  failed: {failure}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
