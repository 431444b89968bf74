"""For every test: whether a release of transformers can break it (tests/releases.py runs those under any release),
compiled graphs of its own, and libraries as loud as when they were imported."""

from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import transformers


TESTS = Path(__file__).parent
LEVEL = transformers.logging.get_verbosity()
# generation, caches, code on the Hub, and training of each family
RELEASE_TESTS = {
    "models/test_adapters.py",
    "models/test_cache_guard.py",
    "models/test_classification.py",
    "models/test_feedback_generation.py",
    "models/test_generate_anywhere.py",
    "models/test_hierarchical_generation.py",
    "models/test_looped_generation.py",
    "models/test_offloading.py",
    "models/test_peft_seams.py",
    "models/test_sleep_generation.py",
    "models/test_transformers_seams.py",
    "test_hub.py",
    "test_hub_adapters.py",
    "test_hub_feedback.py",
    "test_hub_hierarchical.py",
    "test_hub_sleep.py",
    "trainer/test_feedback_run.py",
    "trainer/test_hierarchical_run.py",
    "trainer/test_preferences.py",
    "trainer/test_sleep_run.py",
    "trainer/test_trainer.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(TESTS).as_posix() in RELEASE_TESTS:
            item.add_marker(pytest.mark.release)


@pytest.fixture(autouse=True)
def graphs_are_those_of_one_test(request: pytest.FixtureRequest) -> None:
    # torch makes a limited number of graphs of a function, and all tests of a process would share them
    if "compil" in request.node.nodeid:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def libraries_as_imported() -> None:
    # a command makes them quiet for its whole process, here for all tests after one whose fixture ran a command
    transformers.logging.set_verbosity(LEVEL)
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    huggingface_hub.utils.enable_progress_bars()
