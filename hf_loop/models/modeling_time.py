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
"""The base of models with a time schedule, which decides when which tokens are run; how is up to the backbone.

The backbone is a decoder, or a looped or hierarchical model over one. Every layer call of a pass has a memory of its
own, at the slot of the call.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from .backbone import adopt_backbone
from .configuration_hierarchical import HierarchicalConfig
from .configuration_looped import LoopedConfig
from .keyword_checks import ENGINE_KEYWORDS
from .modeling_hierarchical import HierarchicalModel
from .modeling_looped import LoopedModel
from .modeling_recurrent import ModelInputs, RecurrentModel
from .outputs import select_hidden_states
from .pretrained_model import RecurrentPreTrainedModel
from .token_sequences import Chunk, TokenSequences, arrange_sequences, scatter_outputs
from .transformers_seams import CheckpointsSteps, recordable


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class TimePreTrainedModel(CheckpointsSteps, RecurrentPreTrainedModel):
    """Base class of models with a time schedule and of their heads."""

    no_engine = "an engine with its own attention has no place for a memory"
    refused_keywords = dict.fromkeys(ENGINE_KEYWORDS, no_engine)
    # without hidden states, which the model collects from the chunks itself
    _can_record_outputs = recordable("attentions", "router_logits")
    # set here, because `PreTrainedModel` comes before the generation mixin: `generate` then refuses to drop tokens
    _is_stateful = True

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Use the backbone's attention function."""
        adopt_backbone(self, backbone)
        # the schedule is planned on the host, from the position of every sequence
        self._can_compile_fullgraph = False


# trf-ignore: TRF057 as above
class TimeModel(TimePreTrainedModel, RecurrentModel):  # trf-ignore: TRF013 families call `post_init` once complete
    """A backbone that runs a chunk of tokens at a time, without a head.

    Args:
        config (`TimeConfig`): the backbone and the schedule.
    """

    backbone_classes = {
        LoopedConfig.model_type: LoopedModel,
        HierarchicalConfig.model_type: HierarchicalModel,
    }

    def arrange(
        self, inputs: ModelInputs, inputs_embeds: torch.Tensor, depth: dict[str, Any], makes_cache: bool = True
    ) -> tuple[TokenSequences, Cache | None]:
        """Find the sequences of a batch, and make a cache if one is wanted and none given.

        Args:
            inputs (`ModelInputs`): the arguments of `forward`.
            inputs_embeds (`torch.Tensor` of shape `[B, T, D]`): the tokens.
            depth (`dict`): arguments of the depth schedule.
            makes_cache (`bool`, *optional*, defaults to `True`): whether to make a cache if `use_cache` is set. Packed
                documents get none.

        Raises:
            ValueError: if the mask is not a padding mask, or is shorter than the tokens, or the model is being
                exported for any batch size or length.
        """
        batch_size, length = inputs_embeds.shape[:2]
        if isinstance(batch_size, torch.SymInt) or isinstance(length, torch.SymInt):
            raise ValueError(
                f"the batch size and the length of an exported {self.config.model_type} model must be fixed: from "
                "them, which tokens are run when is planned on the host"
            )
        mask, position_ids, cache = inputs.attention_mask, inputs.position_ids, inputs.cache
        sequences = arrange_sequences(batch_size, length, mask, position_ids, has_cache=cache is not None)
        if cache is None and inputs.use_cache and makes_cache and len(sequences.lengths) == batch_size:
            cache = DynamicCache(config=self.sized_config(depth))
            sequences = arrange_sequences(batch_size, length, mask, position_ids, has_cache=True)
        return sequences, cache

    def sequences_of(self, inputs: Mapping[str, Any]) -> TokenSequences:
        """Find the sequences of a forward pass without a cache, given the arguments of `forward`."""
        tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"][..., 0]
        mask, position_ids = inputs.get("attention_mask"), inputs.get("position_ids")
        return arrange_sequences(*tokens.shape, mask, position_ids, has_cache=False)


def scatter_states(
    chunks: list[Chunk], outputs: list[list[torch.Tensor]], sequences: TokenSequences, shape: torch.Size
) -> list[torch.Tensor]:
    """Put the states `[R, n, D]` of the chunks' tokens back in the batch `[B, T, D]`, layer call by layer call."""
    return [scatter_outputs(chunks, list(states), sequences, shape) for states in zip(*outputs, strict=True)]


def named_hidden_states(
    states: list[torch.Tensor], last_hidden_state: torch.Tensor, output_hidden_states: Any
) -> dict[str, Any]:
    """Return the outputs `last_hidden_state` and `hidden_states`, in which it replaces the last of `states`."""
    hidden_states = select_hidden_states((*states[:-1], last_hidden_state), output_hidden_states)
    return {"last_hidden_state": last_hidden_state, "hidden_states": hidden_states}


__all__ = ["TimeModel", "TimePreTrainedModel", "named_hidden_states", "scatter_states"]
