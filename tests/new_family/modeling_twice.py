"""The model that runs every layer of its backbone twice, the second time behind a learned gate."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_twice import TwiceConfig
from .family import Family
from .modeling_recurrent import RecurrentForCausalLM, RecurrentModel, RecurrentPreTrainedModel


class TwicePreTrainedModel(RecurrentPreTrainedModel):
    """What the model and its head share."""

    config_class = TwiceConfig

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TwiceModel):
            init.constant_(module.gates, self.config.initial_gate)


class TwiceModel(TwicePreTrainedModel, RecurrentModel):
    """The backbone's layers, each twice, without a head.

    Args:
        config (`TwiceConfig`): the backbone and the gates.
    """

    def __init__(self, config: TwiceConfig):
        super().__init__(config)
        self.gates = nn.Parameter(torch.empty(config.decoder_config.num_hidden_layers))
        self.post_init()


class TwiceForCausalLM(TwicePreTrainedModel, RecurrentForCausalLM):
    """The model with the backbone's language-model head.

    Args:
        config (`TwiceConfig`): the backbone and the gates.
    """

    model_class = TwiceModel


FAMILY = Family(
    name="twice",
    config=TwiceConfig,
    classes={"AutoModel": TwiceModel, "AutoModelForCausalLM": TwiceForCausalLM},
    describe=lambda config: f"every layer twice, gates from {config.initial_gate}",
)

__all__ = ["FAMILY", "TwiceForCausalLM", "TwiceModel"]
