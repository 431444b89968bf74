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
"""What models over time share: which tokens are passed when is theirs, how a pass runs is the backbone's.

The backbone is a decoder, or a looped or hierarchical model over one; every layer call of a pass has a memory of its
own, by the slot of the call.
"""

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from .backbone import adopt_backbone
from .configuration_hierarchical import HierarchicalConfig
from .configuration_looped import LoopedConfig
from .keyword_checks import ENGINE_KEYWORDS
from .modeling_hierarchical import HierarchicalModel
from .modeling_looped import LoopedModel
from .modeling_recurrent import RecurrentModel
from .outputs import select_hidden_states
from .pretrained_model import RecurrentPreTrainedModel
from .token_rows import Round, TokenRows, arrange_rows, gather_outputs
from .transformers_seams import CheckpointsSteps, recordable


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class TimePreTrainedModel(CheckpointsSteps, RecurrentPreTrainedModel):
    """What a model over time and its heads share."""

    refused_keywords = dict.fromkeys(ENGINE_KEYWORDS, "an engine with its own attention has no place for a memory")
    # hidden states are put together here, from the rounds of tokens
    _can_record_outputs = recordable("attentions", "router_logits")
    # here, since `PreTrainedModel` comes before the generation mixin: `generate` refuses to take tokens back
    _is_stateful = True

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Choose attention functions as the backbone does."""
        adopt_backbone(self, backbone)
        # the schedule is decided on the host, by how far every sequence has come
        self._can_compile_fullgraph = False


# trf-ignore: TRF057 as above
class TimeModel(TimePreTrainedModel, RecurrentModel):  # trf-ignore: TRF013 families call `post_init` once complete
    """A backbone whose passes are run over some tokens at a time, without a head.

    Args:
        config (`TimeConfig`): the backbone and the schedule of tokens.
    """

    backbone_classes = {
        LoopedConfig.model_type: LoopedModel,
        HierarchicalConfig.model_type: HierarchicalModel,
    }

    def arrange(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        makes_cache: bool,
        depth: dict[str, Any],
    ) -> tuple[TokenRows, Cache | None]:
        """The real tokens of every sequence, and the cache, made here where one is wanted and none given.

        Args:
            inputs_embeds (`torch.Tensor` of shape `[B, T, D]`): the tokens.
            attention_mask, position_ids, cache: those of `forward`.
            makes_cache (`bool`): whether a cache is wanted. Packed documents get none.
            depth (`dict`): the arguments of the depth schedule.

        Raises:
            ValueError: the mask is not one of padding, or is shorter than the tokens.
        """
        batch_size, length = inputs_embeds.shape[:2]
        rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=cache is not None)
        if cache is None and makes_cache and len(rows.lengths) == batch_size:
            cache = DynamicCache(config=self.sized_config(depth))
            rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=True)
        return rows, cache


def gather_states(
    rounds: list[Round], outputs: list[list[torch.Tensor]], rows: TokenRows, shape: torch.Size
) -> list[torch.Tensor]:
    """The states `[B, T, D]` of all tokens, from those `[R, n, D]` of every round: one for each that a round gives."""
    return [gather_outputs(rounds, list(states), rows, shape) for states in zip(*outputs, strict=True)]


def named_hidden_states(
    states: list[torch.Tensor], last_hidden_state: torch.Tensor, output_hidden_states: Any
) -> dict[str, Any]:
    """The outputs `last_hidden_state` and `hidden_states`, with the last of `states` as the head reads it."""
    hidden_states = select_hidden_states((*states[:-1], last_hidden_state), output_hidden_states)
    return {"last_hidden_state": last_hidden_state, "hidden_states": hidden_states}


__all__ = ["TimeModel", "TimePreTrainedModel", "gather_states", "named_hidden_states"]
