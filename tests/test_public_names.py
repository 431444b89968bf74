"""`dir` of the package, and of each of its public packages, is what is public and nothing else."""

import importlib
import subprocess
import sys

import pytest

import hf_loop


PACKAGES = ["analysis", "evaluation", "models", "retrofitting", "tasks", "trainer"]


def test_the_package_lists_what_it_offers():
    names = dir(hf_loop)
    assert names == sorted(hf_loop.__all__)
    assert [name for name in names if name.startswith("_") or name in sys.stdlib_module_names] == []
    modules = [name for name in names if type(getattr(hf_loop, name)) is type(sys)]
    assert modules == PACKAGES
    for name in set(names) - set(modules):
        assert getattr(hf_loop, name).__module__.startswith("hf_loop."), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_package_lists_what_it_offers(package):
    module = importlib.import_module(f"hf_loop.{package}")
    assert dir(module) == sorted(module.__all__)
    for name in module.__all__:
        assert type(getattr(module, name)) is not type(sys), f"{name} is a module"


def test_a_public_package_needs_no_import_of_its_own():
    code = "import hf_loop; print(hf_loop.tasks.shell_game.__name__, hf_loop.evaluation.Results.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "shell_game Results\n", result.stderr


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'importlibb'"):
        hf_loop.importlibb  # noqa: B018 looking the name up is the test
