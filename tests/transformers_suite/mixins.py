"""Obtains transformers' own model tests, of the version that is installed.

They are in the source distribution, not in the wheel. The files that hold the mixins are unpacked once into `.cache/`
as a package of their own, `transformers_tests`; what they import from files the source distribution leaves out
(generation and export tests, the launcher of distributed tests) is replaced by the stand-ins below.
"""

import functools
import importlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import transformers
from filelock import FileLock


CACHE = Path(__file__).parents[2] / ".cache" / "transformers_suite"
MIXINS = (
    "test_configuration_common.py",
    "test_fsdp_mixin.py",
    "test_modeling_common.py",
    "test_tensor_parallel_mixin.py",
    "test_training_mixin.py",
)
STAND_INS = {
    "__init__.py": "",
    "distributed_testing_utils.py": "from tests.transformers_suite.rank_processes import *\n",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    # read for configurations without a nested one, which ours are not
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


class MixinsUnavailableError(Exception):
    """The source distribution cannot be had here; the message says why."""


def import_mixins(name: str) -> Any:
    """One file of transformers' own tests as a module, say `"test_modeling_common"`.

    Raises:
        MixinsUnavailableError: pip cannot download the source distribution, or it does not hold the mixins.
    """
    _add_to_path()
    return importlib.import_module(f"transformers_tests.{name}")


@functools.cache
def _add_to_path() -> None:
    folder = CACHE / transformers.__version__
    CACHE.mkdir(parents=True, exist_ok=True)
    # several pytest workers collect at once
    with FileLock(CACHE / "lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _unpack(_download(Path(scratch)), Path(scratch) / "unpacked")
                (Path(scratch) / "unpacked").rename(folder)
    sys.path.append(str(folder))


def _download(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    if importlib.util.find_spec("setuptools"):
        # pip asks the build backend for the name and version; an isolated one would have to be downloaded too
        command.append("--no-build-isolation")
    result = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if result.returncode or not archives:
        last_line = (result.stderr.strip() or "no source distribution").splitlines()[-1]
        raise MixinsUnavailableError(f"cannot download the source distribution of {requirement}: {last_line}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> None:
    package = folder / "transformers_tests"
    for name, text in STAND_INS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as files:
        for name in MIXINS:
            try:
                member = files.extractfile(f"{root}/tests/{name}")
            except KeyError:
                member = None
            if member is None:
                raise MixinsUnavailableError(f"{archive.name} holds no tests/{name}")
            with member, open(package / name, "wb") as file:
                shutil.copyfileobj(member, file)
