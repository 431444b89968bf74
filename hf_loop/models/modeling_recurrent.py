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
"""What the models of the families share."""

from typing import Any

from transformers import PreTrainedModel

from .configuration_recurrent import RecurrentConfig
from .transformers_seams import BeforeUpload, recordable


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class RecurrentPreTrainedModel(BeforeUpload, PreTrainedModel):
    """A model that runs a backbone on a schedule, with or without a head."""

    config_class = RecurrentConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["cache", "past_key_values"]
    # what a backbone does not support it refuses itself, when it is made
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = recordable("hidden_states", "attentions", "router_logits")
    # tags of the family on the Hub, besides the library's and the model type
    family_tags: tuple[str, ...] = ()
    # set where hf_loop is installed; code that came with a checkpoint pushes transformers' own card
    write_model_card: Any = None

    def post_init(self):
        super().post_init()
        self.add_model_tags(["hf_loop", *self.family_tags, self.config.model_type])

    def before_upload(self, folder: str, repo_id: str) -> None:
        if self.write_model_card is not None:
            self.write_model_card(folder, repo_id)


__all__ = ["RecurrentPreTrainedModel"]
