"""Language models that compute in loops: a schedule over any transformers decoder.

Importing `hf_loop` registers its models with transformers' Auto classes.
"""

import importlib
import sys
from pathlib import Path


_HOMES = {
    "LoopedConfig": "models",
    "LoopedForCausalLM": "models",
    "LoopedForSequenceClassification": "models",
    "LoopedForTokenClassification": "models",
    "LoopedModel": "models",
    "LoopTrainer": "trainer",
    "LoopTrainingArguments": "trainer",
    "retrofit": "retrofitting",
}

# the `hf-loop` command answers `--help` without waiting for torch; its commands import what they need
if Path(sys.argv[0]).stem != "hf-loop":
    importlib.import_module(".models", __name__)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_loop' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = sorted(_HOMES)
