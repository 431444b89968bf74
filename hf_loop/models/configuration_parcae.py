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
"""Configuration of Parcae's decoder (https://huggingface.co/papers/2604.12946), as a backbone."""

from transformers import LlamaConfig

from .checks import strict


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
@strict
class ParcaeBackboneConfig(LlamaConfig):
    r"""
    The decoder of Parcae: nanochat's layer with learned norms and value embeddings, see [`ParcaeAttention`]. Other
    fields are Llama's.

    Args:
        hidden_act (`str`, *optional*, defaults to `"relu2"`):
            Activation of the MLP, which has no gate.
        value_embedding_layers (`list[int]`, *optional*, defaults to `()`):
            Layers that add an embedding of the token to their values.
        value_gate_channels (`int`, *optional*, defaults to 32):
            Number of channels of a layer's input from which the gate of this embedding is computed.
        embedding_multiplier (`float`, *optional*, defaults to 1.0):
            Factor of the token embeddings.
        logit_scale (`float`, *optional*, defaults to 1.0):
            Factor of the logits.
        final_logit_softcapping (`float`, *optional*):
            Soft cap of the logits, by default none.

    Raises:
        ValueError: if a layer of `value_embedding_layers` does not exist, or the gate has more channels than the
            input.

    Example:

    ```python
    >>> from hf_loop import LoopedConfig

    >>> config = LoopedConfig(backbone_config={"model_type": "parcae_backbone", "value_embedding_layers": [1, 3]})
    ```
    """

    model_type = "parcae_backbone"
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }

    hidden_act: str = "relu2"
    value_embedding_layers: list[int] | tuple[int, ...] = ()
    value_gate_channels: int = 32
    embedding_multiplier: float = 1.0
    logit_scale: float = 1.0
    final_logit_softcapping: float | None = None

    def validate_architecture(self):
        """Refuse value embeddings of layers that do not exist, and gates with too many channels."""
        super().validate_architecture()
        for layer in self.value_embedding_layers:
            if not 0 <= layer < self.num_hidden_layers:
                raise ValueError(
                    f"`value_embedding_layers` must be layers from 0 to {self.num_hidden_layers - 1}, got "
                    f"{self.value_embedding_layers}"
                )
        if self.value_embedding_layers and not 0 < self.value_gate_channels <= self.hidden_size:
            raise ValueError(
                f"`value_gate_channels` must be between 1 and `hidden_size` {self.hidden_size}, got "
                f"{self.value_gate_channels}"
            )


__all__ = ["ParcaeBackboneConfig"]
