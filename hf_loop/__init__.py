"""Language models that compute in loops: a schedule over any transformers decoder.

Importing `hf_loop` registers its models with transformers' Auto classes.
"""

import importlib
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HOMES = {
    "BackboneSpec": "models",
    "DeepSupervisionArguments": "trainer",
    "DeepSupervisionTrainer": "trainer",
    "ExitObjective": "models",
    "ExitRule": "models",
    "FeedbackConfig": "models",
    "FeedbackForCausalLM": "models",
    "FeedbackForSequenceClassification": "models",
    "FeedbackForTokenClassification": "models",
    "FeedbackModel": "models",
    "GivenExits": "models",
    "HierarchicalConfig": "models",
    "HierarchicalForCausalLM": "models",
    "HierarchicalForPuzzle": "models",
    "HierarchicalForSequenceClassification": "models",
    "HierarchicalForTokenClassification": "models",
    "HierarchicalModel": "models",
    "HierarchicalPuzzleConfig": "models",
    "LoopCache": "models",
    "LoopedConfig": "models",
    "LoopedForCausalLM": "models",
    "LoopedForSequenceClassification": "models",
    "LoopedForTokenClassification": "models",
    "LoopedModel": "models",
    "LoopTrainer": "trainer",
    "LoopTrainingArguments": "trainer",
    "SleepConfig": "models",
    "SleepForCausalLM": "models",
    "SleepForSequenceClassification": "models",
    "SleepForTokenClassification": "models",
    "SleepModel": "models",
    "RandomStatePassing": "trainer",
    "WeightAveraging": "trainer",
    "add_loop_lora": "retrofitting",
    "convert": "retrofitting",
    "export": "retrofitting",
    "load_loop_adapter": "retrofitting",
    "register_backbone": "models",
    "retrofit": "retrofitting",
    "save_loop_adapter": "retrofitting",
    "unroll": "retrofitting",
}
# packages that are public as a whole: their `__all__` is what they offer, and the rest of hf_loop may change
_PACKAGES = ("analysis", "evaluation", "models", "retrofitting", "tasks", "trainer")
# for the tasks whose pipelines would keep a depth from the model
_PIPELINES = {
    "feature-extraction": "DepthFeatureExtractionPipeline",
    "text-classification": "DepthTextClassificationPipeline",
    "token-classification": "DepthTokenClassificationPipeline",
}


def register() -> None:
    """Register the models with transformers' Auto classes, and have models that are pushed write their own card.

    Importing hf_loop calls it, except in the installed `hf-loop` command: that answers `--help` without waiting for
    torch, and its commands call this when they need it.
    """
    importlib.import_module(".models", __name__)
    shared = importlib.import_module(".models.pretrained_model", __name__)
    shared.RecurrentPreTrainedModel.write_model_card = _write_model_card
    pipelines = importlib.import_module("transformers.pipelines").PIPELINE_REGISTRY
    for task, name in _PIPELINES.items():
        # by name, as transformers' own: imported when it is used
        pipelines.check_task(task)[1]["impl"] = f"{__name__}.pipelines.{name}"


def _write_model_card(model: "PreTrainedModel", folder: str, repo_id: str) -> None:
    # imported on use: figures and templates are not needed to run a model
    from .evaluation.hub_card import write_card_before_push

    write_card_before_push(model, folder, repo_id)


def _is_installed_command() -> bool:
    """Whether this process is `hf-loop` where pip puts it. A user's script may have that name too, elsewhere."""
    script = Path(sys.argv[0]) if sys.argv else Path()
    folder = Path(sysconfig.get_path("scripts"))
    return script.name in ("hf-loop", "hf-loop.exe") and script.parent.resolve() == folder.resolve()


if not _is_installed_command():
    register()


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_loop' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


__all__ = sorted({*_HOMES, *_PACKAGES})


def __dir__() -> list[str]:
    return __all__
