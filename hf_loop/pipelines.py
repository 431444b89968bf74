"""Pipelines that pass a depth to the model; transformers' own would pass it to the tokenizer or drop it."""

from typing import Any

from transformers.pipelines.feature_extraction import FeatureExtractionPipeline
from transformers.pipelines.text_classification import TextClassificationPipeline
from transformers.pipelines.token_classification import TokenClassificationPipeline

from .models.checks import check_depth_names


# the arguments of a call that choose the depth
DEPTH_KEYWORDS = ("num_loops", "num_sleep_passes")


class DepthKeywords:
    """Pass `num_loops` and `num_sleep_passes` to a model of hf_loop; mixed in before a pipeline of transformers.

    Raises:
        TypeError: if the model does not take one of them, or it is misspelt.
    """

    model: Any

    def _sanitize_parameters(self: Any, **kwargs):
        depth = {}
        # not `isinstance`: a model's code may have come with its checkpoint
        if hasattr(self.model, "known_keywords"):
            check_depth_names(kwargs, self.model.base_model.argument_names, "pipeline")
            depth = {name: kwargs.pop(name) for name in DEPTH_KEYWORDS if name in kwargs}
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess, {**forward, **depth}, postprocess

    def _forward(self: Any, model_inputs, **kwargs):
        depth = {name: kwargs.pop(name) for name in DEPTH_KEYWORDS if name in kwargs}
        return super()._forward({**model_inputs, **depth}, **kwargs)


# the mixin's signature accepts what each pipeline accepts
class DepthTextClassificationPipeline(DepthKeywords, TextClassificationPipeline):  # ty: ignore[incompatible-method-override]
    """`text-classification` at a depth."""


class DepthTokenClassificationPipeline(DepthKeywords, TokenClassificationPipeline):  # ty: ignore[incompatible-method-override]
    """`token-classification` at a depth."""


class DepthFeatureExtractionPipeline(DepthKeywords, FeatureExtractionPipeline):  # ty: ignore[incompatible-method-override]
    """`feature-extraction` at a depth."""
