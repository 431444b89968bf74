"""The model families. Importing this package registers them with transformers' Auto classes."""

import importlib
from pathlib import Path

from .backbone import BackboneSpec, register_backbone
from .configuration_feedback import FeedbackConfig
from .configuration_hierarchical import HierarchicalConfig, HierarchicalPuzzleConfig
from .configuration_hrm import HrmBackboneConfig
from .configuration_huginn import HuginnBackboneConfig
from .configuration_ifm_moe import IfmMoeBackboneConfig
from .configuration_looped import LoopedConfig
from .configuration_parcae import ParcaeBackboneConfig
from .configuration_sleep import SleepConfig
from .exit_losses import ExitObjective
from .exits import ExitRule, GivenExits
from .family import FAMILIES, Family, family_of, register_classes, register_family
from .loop_cache import LoopCache
from .modeling_feedback import (
    FeedbackForCausalLM,
    FeedbackForSequenceClassification,
    FeedbackForTokenClassification,
    FeedbackModel,
    FeedbackPreTrainedModel,
)
from .modeling_hierarchical import (
    HierarchicalForCausalLM,
    HierarchicalForSequenceClassification,
    HierarchicalForTokenClassification,
    HierarchicalModel,
    HierarchicalPreTrainedModel,
)
from .modeling_hierarchical_puzzle import (
    HierarchicalCarry,
    HierarchicalForPuzzle,
    HierarchicalPuzzleModel,
    HierarchicalPuzzleOutput,
)
from .modeling_hrm import HrmBackboneModel
from .modeling_huginn import HuginnBackboneForCausalLM, HuginnBackboneModel
from .modeling_ifm_moe import IfmMoeBackboneForCausalLM, IfmMoeBackboneModel
from .modeling_looped import (
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    LoopedForTokenClassification,
    LoopedModel,
    LoopedPreTrainedModel,
)
from .modeling_parcae import ParcaeBackboneForCausalLM, ParcaeBackboneModel
from .modeling_sleep import (
    SleepForCausalLM,
    SleepForSequenceClassification,
    SleepForTokenClassification,
    SleepModel,
    SleepPreTrainedModel,
)


# every modeling file with a `FAMILY` record is a family
for _path in sorted(Path(__file__).parent.glob("modeling_*.py")):
    _family = getattr(importlib.import_module(f".{_path.stem}", __name__), "FAMILY", None)
    if _family is not None:
        register_family(_family)
# decoders that transformers does not have
register_classes(HrmBackboneConfig, {})
register_classes(
    HuginnBackboneConfig, {"AutoModel": HuginnBackboneModel, "AutoModelForCausalLM": HuginnBackboneForCausalLM}
)
register_classes(
    IfmMoeBackboneConfig, {"AutoModel": IfmMoeBackboneModel, "AutoModelForCausalLM": IfmMoeBackboneForCausalLM}
)
register_classes(
    ParcaeBackboneConfig, {"AutoModel": ParcaeBackboneModel, "AutoModelForCausalLM": ParcaeBackboneForCausalLM}
)

__all__ = [
    "FAMILIES",
    "BackboneSpec",
    "ExitObjective",
    "ExitRule",
    "Family",
    "FeedbackConfig",
    "FeedbackForCausalLM",
    "FeedbackForSequenceClassification",
    "FeedbackForTokenClassification",
    "FeedbackModel",
    "FeedbackPreTrainedModel",
    "GivenExits",
    "HierarchicalCarry",
    "HierarchicalConfig",
    "HierarchicalForCausalLM",
    "HierarchicalForPuzzle",
    "HierarchicalForSequenceClassification",
    "HierarchicalForTokenClassification",
    "HierarchicalModel",
    "HierarchicalPreTrainedModel",
    "HierarchicalPuzzleConfig",
    "HierarchicalPuzzleModel",
    "HierarchicalPuzzleOutput",
    "HrmBackboneConfig",
    "HrmBackboneModel",
    "HuginnBackboneConfig",
    "HuginnBackboneForCausalLM",
    "HuginnBackboneModel",
    "IfmMoeBackboneConfig",
    "IfmMoeBackboneForCausalLM",
    "IfmMoeBackboneModel",
    "LoopCache",
    "LoopedConfig",
    "LoopedForCausalLM",
    "LoopedForSequenceClassification",
    "LoopedForTokenClassification",
    "LoopedModel",
    "LoopedPreTrainedModel",
    "ParcaeBackboneConfig",
    "ParcaeBackboneForCausalLM",
    "ParcaeBackboneModel",
    "SleepConfig",
    "SleepForCausalLM",
    "SleepForSequenceClassification",
    "SleepForTokenClassification",
    "SleepModel",
    "SleepPreTrainedModel",
    "family_of",
    "register_backbone",
    "register_family",
]


def __dir__() -> list[str]:
    return __all__
