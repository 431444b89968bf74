"""The model families. Importing this package registers them with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from .backbone import BackboneSpec, register_backbone
from .configuration_feedback import FeedbackConfig
from .configuration_hierarchical import HierarchicalConfig
from .configuration_hrm import HrmBackboneConfig
from .configuration_huginn import HuginnBackboneConfig
from .configuration_looped import LoopedConfig
from .configuration_parcae import ParcaeBackboneConfig
from .configuration_sleep import SleepConfig
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


for _config_class in (
    LoopedConfig,
    FeedbackConfig,
    HierarchicalConfig,
    SleepConfig,
    HrmBackboneConfig,
    HuginnBackboneConfig,
    ParcaeBackboneConfig,
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    _config_class.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, LoopedModel),
    (AutoModelForCausalLM, LoopedForCausalLM),
    (AutoModelForSequenceClassification, LoopedForSequenceClassification),
    (AutoModelForTokenClassification, LoopedForTokenClassification),
    (AutoModel, FeedbackModel),
    (AutoModelForCausalLM, FeedbackForCausalLM),
    (AutoModelForSequenceClassification, FeedbackForSequenceClassification),
    (AutoModelForTokenClassification, FeedbackForTokenClassification),
    (AutoModel, HierarchicalModel),
    (AutoModelForCausalLM, HierarchicalForCausalLM),
    (AutoModelForSequenceClassification, HierarchicalForSequenceClassification),
    (AutoModelForTokenClassification, HierarchicalForTokenClassification),
    # the class of heads that predict every position from all of them
    (AutoModelForMaskedLM, HierarchicalForPuzzle),
    (AutoModel, SleepModel),
    (AutoModelForCausalLM, SleepForCausalLM),
    (AutoModelForSequenceClassification, SleepForSequenceClassification),
    (AutoModelForTokenClassification, SleepForTokenClassification),
    # decoders that transformers does not have, as models by themselves
    (AutoModel, HuginnBackboneModel),
    (AutoModelForCausalLM, HuginnBackboneForCausalLM),
    (AutoModel, ParcaeBackboneModel),
    (AutoModelForCausalLM, ParcaeBackboneForCausalLM),
):
    _auto_class.register(_model_class.config_class, _model_class, exist_ok=True)
    # `save_pretrained` then writes the code beside the weights, so that they load where hf_loop is not installed
    _model_class.register_for_auto_class(_auto_class.__name__)

# Trainer (in label smoothing and in model cards) and lm-eval recognise models by these tables of names, which
# `register` does not fill; without them label smoothing scores every token against itself instead of the next one
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LoopedConfig.model_type] = LoopedForCausalLM.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FeedbackConfig.model_type] = FeedbackForCausalLM.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[HierarchicalConfig.model_type] = HierarchicalForCausalLM.__name__
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[SleepConfig.model_type] = SleepForCausalLM.__name__
for _config_class, _sequences, _tokens in (
    (LoopedConfig, LoopedForSequenceClassification, LoopedForTokenClassification),
    (FeedbackConfig, FeedbackForSequenceClassification, FeedbackForTokenClassification),
    (HierarchicalConfig, HierarchicalForSequenceClassification, HierarchicalForTokenClassification),
    (SleepConfig, SleepForSequenceClassification, SleepForTokenClassification),
):
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[_config_class.model_type] = _sequences.__name__
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES[_config_class.model_type] = _tokens.__name__

__all__ = [
    "BackboneSpec",
    "FeedbackConfig",
    "FeedbackForCausalLM",
    "FeedbackForSequenceClassification",
    "FeedbackForTokenClassification",
    "FeedbackModel",
    "FeedbackPreTrainedModel",
    "HierarchicalCarry",
    "HierarchicalConfig",
    "HierarchicalForCausalLM",
    "HierarchicalForPuzzle",
    "HierarchicalForSequenceClassification",
    "HierarchicalForTokenClassification",
    "HierarchicalModel",
    "HierarchicalPreTrainedModel",
    "HierarchicalPuzzleModel",
    "HierarchicalPuzzleOutput",
    "HrmBackboneConfig",
    "HrmBackboneModel",
    "HuginnBackboneConfig",
    "HuginnBackboneForCausalLM",
    "HuginnBackboneModel",
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
    "register_backbone",
]
