"""The model families. Importing this package registers them with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from .configuration_looped import LoopedConfig
from .modeling_looped import (
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    LoopedForTokenClassification,
    LoopedModel,
    LoopedPreTrainedModel,
)


AutoConfig.register(LoopedConfig.model_type, LoopedConfig, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, LoopedModel),
    (AutoModelForCausalLM, LoopedForCausalLM),
    (AutoModelForSequenceClassification, LoopedForSequenceClassification),
    (AutoModelForTokenClassification, LoopedForTokenClassification),
):
    _auto_class.register(LoopedConfig, _model_class, exist_ok=True)
    # `save_pretrained` then writes the code beside the weights, so that they load where hf_loop is not installed
    _model_class.register_for_auto_class(_auto_class.__name__)
LoopedConfig.register_for_auto_class()

# Trainer (in label smoothing and in model cards) and lm-eval recognise models by these tables of names, which
# `register` does not fill; without them label smoothing scores every token against itself instead of the next one
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[LoopedConfig.model_type] = LoopedForCausalLM.__name__
MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[LoopedConfig.model_type] = LoopedForSequenceClassification.__name__
MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES[LoopedConfig.model_type] = LoopedForTokenClassification.__name__

__all__ = [
    "LoopedConfig",
    "LoopedForCausalLM",
    "LoopedForSequenceClassification",
    "LoopedForTokenClassification",
    "LoopedModel",
    "LoopedPreTrainedModel",
]
