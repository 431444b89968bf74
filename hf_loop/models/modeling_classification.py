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
from collections.abc import Callable
from typing import Any, cast

from torch import nn
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification

from .transformers_seams import CACHE_NAME


def runs_without_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate transformers' `forward` of a classifier so that it makes a cache only if `use_cache` is set.

    A classified text is not continued, and no gradient reaches what a sleep writes to a cache. The cache may be passed
    under either of its names, as in other models.
    """

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        names = [name for name in ("cache", "past_key_values") if name in kwargs]
        caches = [cache for cache in map(kwargs.pop, names) if cache is not None]
        if len(caches) > 1:
            raise ValueError("`cache` and `past_key_values` are two names of one argument: pass only one of them")
        if caches:
            kwargs[CACHE_NAME] = caches[0]
        elif len(args) < 4 and kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False
        return forward(self, *args, **kwargs)

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

    forward = runs_without_cache(GenericForSequenceClassification.forward)


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

    forward = runs_without_cache(GenericForTokenClassification.forward)


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
