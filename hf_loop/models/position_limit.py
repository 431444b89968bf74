# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Texts that are longer than a model was made for: an error where it cannot number their tokens, else one warning.

The limit is `max_position_embeddings`. Models with a memory run blocks or windows, so they have none.
"""

from typing import Any
from weakref import WeakSet

import torch
from transformers import Cache, PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)

# not an attribute of the model: a forward pass sets none
_warned: WeakSet[PreTrainedModel] = WeakSet()


def check_length(model: Any, backbone: Any, num_tokens: int, cache: Cache | None, position_ids: torch.Tensor) -> None:
    """Check the length of a text that is read as a whole, with what of it is in the cache.

    Args:
        model (`PreTrainedModel`): the model, which is warned about once.
        backbone (`Backbone`): its backbone.
        num_tokens (`int`): tokens of this call.
        cache (`Cache`, *optional*): the cache of earlier calls.
        position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.

    Raises:
        ValueError: if a position is not in the decoder's table.
    """
    limit = backbone.num_positions
    if limit is None or torch.compiler.is_compiling():
        return
    # a paged cache does not count, and a static cache counts on the device
    if isinstance(cache, Cache):
        num_seen = cache.get_seq_length()
        num_tokens += num_seen if isinstance(num_seen, int) else 0
    if num_tokens <= limit or model in _warned:
        return
    # padding and the documents of a packed row do not count
    num_positions = int(position_ids.max()) + 1
    check_table(backbone, num_positions)
    if num_positions > limit:
        _warned.add(model)
        logger.warning(
            f"The text has {num_positions} tokens, and the model was made for {limit} (`max_position_embeddings`): "
            "it has not learned to read more."
        )


def check_table(backbone: Any, num_positions: int) -> None:
    """Refuse positions that are not in the decoder's table.

    Raises:
        ValueError: if the decoder has a table, with fewer positions.
    """
    limit = backbone.num_positions
    if backbone.spec.has_position_table and limit is not None and num_positions > limit:
        raise ValueError(
            f"the text has {num_positions} tokens, more than the {limit} positions (`max_position_embeddings`) of the "
            f"{backbone.config.model_type} backbone: shorten it"
        )


__all__ = ["check_length", "check_table"]
