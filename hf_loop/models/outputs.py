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
"""Outputs of the models: transformers' own, with what the loops did and what memory is left."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


@dataclass
class LoopedModelOutputWithPast(BaseModelOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Loops that were run for each row.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_hidden_states=True`):
            What `last_hidden_state` would be after every loop: the state through the coda and the final norm.
    """

    num_loops: torch.Tensor | None = None
    loop_states: tuple[torch.Tensor, ...] | None = None
    loop_hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class LoopedCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Loops that were run for each row.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_logits (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_logits=True`):
            The logits after every loop, each of shape `(batch_size, sequence_length, vocab_size)`.
    """

    num_loops: torch.Tensor | None = None
    loop_states: tuple[torch.Tensor, ...] | None = None
    loop_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class FeedbackModelOutputWithPast(BaseModelOutputWithPast):
    """
    Args:
        feedback (`torch.FloatTensor` of shape `(rows, num_hidden_layers, feedback_length, hidden_size)`, *optional*):
            Without a cache, the memory of every row, or document of packed rows, after its last complete block; zero
            for a row without one.
    """

    feedback: torch.Tensor | None = None


@dataclass
class FeedbackCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Args:
        feedback (`torch.FloatTensor` of shape `(rows, num_hidden_layers, feedback_length, hidden_size)`, *optional*):
            Without a cache, the memory of every row, or document of packed rows, after its last complete block; zero
            for a row without one.
    """

    feedback: torch.Tensor | None = None
