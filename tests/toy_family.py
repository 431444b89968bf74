"""A family from outside of hf_loop: a gate behind the layers, with the record that makes it one."""

from typing import Any

import torch
from torch import nn

from hf_loop.models import Family
from hf_loop.models.checks import strict
from hf_loop.models.configuration_recurrent import RecurrentConfig
from hf_loop.models.modeling_recurrent import RecurrentForCausalLM, RecurrentModel
from hf_loop.models.schedules import Depth


class ToyDepth(Depth):
    def __init__(self, config: Any, model: Any = None, norm: Any = None):
        super().__init__(config.decoder_config.num_hidden_layers, norm)
        self.config, self.model = config, model

    def finish(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = super().finish(hidden_states)
        return hidden_states + self.config.gain * self.model.gate(hidden_states)


@strict
class ToyConfig(RecurrentConfig):
    """A gate behind the layers.

    Args:
        gain (`float`, *optional*, defaults to 1.0):
            What its output is multiplied with.
    """

    model_type = "toy_lm"
    gain: float = 1.0

    def depth(self, model: Any = None, norm: Any = None) -> ToyDepth:
        return ToyDepth(self, model, norm)


class ToyModel(RecurrentModel):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()


class ToyForCausalLM(RecurrentForCausalLM):
    config_class = ToyConfig
    model_class = ToyModel


FAMILY = Family(
    name="toy",
    config=ToyConfig,
    classes={"AutoModel": ToyModel, "AutoModelForCausalLM": ToyForCausalLM},
    describe=lambda config: f"a gate of {config.gain}",
)
