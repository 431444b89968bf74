# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Classification heads for sequences and tokens, for the models of any family."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.utils import can_return_tuple

from .transformers_seams import CACHE_NAME


def without_cache_and_scaled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate transformers' `forward` of a classifier: a cache is made only if `use_cache` is set, and the loss of a
    micro-batch is its share of the step's.

    A classified text is not continued, and no gradient reaches what a sleep writes to a cache. The cache may be passed
    under either of its names, as in other models. transformers averages over each micro-batch, and `Trainer` adds the
    averages up.
    """
    names = list(inspect.signature(forward).parameters)[1:-1]

    @functools.wraps(forward)
    @can_return_tuple
    def wrapper(self, *args, **kwargs):
        kwargs = {**dict(zip(names, args)), **kwargs}
        caches = [kwargs.pop(name) for name in ("cache", "past_key_values") if name in kwargs]
        caches = [cache for cache in caches if cache is not None]
        if len(caches) > 1:
            raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them")
        if caches:
            kwargs[CACHE_NAME] = caches[0]
        elif kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False
        labels, num_items = kwargs.pop("labels", None), kwargs.pop("num_items_in_batch", None)
        outputs = forward(self, **kwargs, return_dict=True)
        if labels is None:
            return outputs
        return type(outputs)(loss=self.label_loss(outputs.logits, labels, num_items), **outputs)

    return wrapper


# the generic constructors use AutoModel, which cannot make a model whose code came with its checkpoint
class SequenceClassifier(GenericForSequenceClassification):
    """Mixin for one label per sequence, read at the last token that is not padding; before a family's base class.

    `forward` is transformers' own; it passes further keywords such as `num_loops` on to the model.
    """

    # the family's headless model
    model_class: Any

    def __init__(self, config: Any):
        super(GenericForSequenceClassification, self).__init__(config)  # ty: ignore[too-many-positional-arguments]
        add_model(self, config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        cast(Any, self).post_init()

    forward = without_cache_and_scaled(GenericForSequenceClassification.forward)

    def label_loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> Any:
        """Compute the loss of logits `[B, C]`, averaged over `num_items` labels, by default those given."""
        model: Any = self
        arguments = {"logits": logits, "labels": labels, "pooled_logits": logits, "config": model.config}
        loss = model.loss_function(**arguments, num_items_in_batch=num_items)
        if num_items is None or model.config.problem_type == "single_label_classification":
            return loss
        # transformers averages these two kinds over the micro-batch whatever it is told
        return loss * labels.numel() / num_items


class TokenClassifier(GenericForTokenClassification):
    """Mixin for one label per token, otherwise like [`SequenceClassifier`].

    The dropout before the head is `config.classifier_dropout`, by default 0.1.
    """

    model_class: Any

    def __init__(self, config: Any):
        super(GenericForTokenClassification, self).__init__(config)  # ty: ignore[too-many-positional-arguments]
        add_model(self, config)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        cast(Any, self).post_init()

    forward = without_cache_and_scaled(GenericForTokenClassification.forward)

    def label_loss(self, logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None) -> Any:
        """Compute the loss of logits `[B, T, C]`, averaged over `num_items` labels, by default those given."""
        model: Any = self
        return model.loss_function(logits, labels, model.config, num_items_in_batch=num_items)


def make_classifiers(model_class: type, base_class: type) -> tuple[Any, Any]:
    """Make the two classification heads of a family.

    Args:
        model_class (`type`): the family's model without a head, such as `LoopedModel`.
        base_class (`type`): the base class of the family's models.

    Returns:
        `tuple[type, type]`: `LoopedForSequenceClassification`, whose label is read at the last token that is not
        padding, and `LoopedForTokenClassification`. The configuration's `num_labels` is the number of classes.
    """
    family = model_class.__name__.removesuffix("Model")

    def make(suffix: str, head: type, what: str) -> Any:
        fields = {
            "__module__": model_class.__module__,
            "__doc__": f"The {family.lower()} model with {what}; `config.num_labels` sets the classes.",
            "model_class": model_class,
        }
        return type(f"{family}For{suffix}", (head, base_class), fields)

    return (
        make("SequenceClassification", SequenceClassifier, "one label per sequence"),
        make("TokenClassification", TokenClassifier, "one label per token"),
    )


def add_model(classifier: Any, config: Any) -> None:
    """Make the model of a classifier."""
    classifier.num_labels = config.num_labels
    classifier.model = classifier.model_class(config)
    classifier.adopt(classifier.model.backbone)


__all__ = ["SequenceClassifier", "TokenClassifier", "make_classifiers"]
