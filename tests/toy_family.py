"""A family from outside of hf_loop: a gate behind the backbone, with the record that makes it one."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hf_loop.models import Family
from hf_loop.models.backbone import make_backbone
from hf_loop.models.checks import strict
from hf_loop.models.configuration_recurrent import RecurrentConfig
from hf_loop.models.modeling_recurrent import RecurrentPreTrainedModel


@strict
class ToyConfig(RecurrentConfig):
    """A gate behind the backbone.

    Args:
        gain (`float`, *optional*, defaults to 1.0):
            What its output is multiplied with.
    """

    model_type = "toy_lm"
    gain: float = 1.0

    @property
    def num_hidden_layers(self) -> int:
        return self.backbone_config.num_hidden_layers


class ToyPreTrainedModel(RecurrentPreTrainedModel):
    config_class = ToyConfig


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.backbone = make_backbone(config.backbone_config)
        self.adopt(self.backbone)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs):
        hidden_states = self.backbone(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=hidden_states + self.config.gain * self.gate(hidden_states))


class ToyForCausalLM(ToyPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.backbone.embed_tokens.weight"}

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.model = ToyModel(config)
        self.adopt(self.model.backbone)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        logits = self.lm_head(self.model(input_ids, attention_mask).last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


FAMILY = Family(
    name="toy",
    config=ToyConfig,
    classes={"AutoModel": ToyModel, "AutoModelForCausalLM": ToyForCausalLM},
    describe=lambda config: f"a gate of {config.gain}",
)
