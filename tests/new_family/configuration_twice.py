"""Configuration of a model that runs every layer of its backbone twice, the second time behind a learned gate."""

from typing import Any

import torch

from .checks import strict
from .configuration_recurrent import RecurrentConfig
from .schedules import Call, Depth, RunCall


class TwiceDepth(Depth):
    """Every layer twice in a row; the second call's change is scaled by the layer's gate."""

    def __init__(self, config: Any, model: Any = None, norm: Any = None):
        super().__init__(config.decoder_config.num_hidden_layers, norm)
        self.model = model

    def calls(self) -> list[Call]:
        return [Call(layer, 2 * layer + again, again) for layer in range(self.num_layers) for again in (0, 1)]

    def run(self, hidden_states: torch.Tensor, run_call: RunCall) -> torch.Tensor:
        calls = self.calls()
        for first, second in zip(calls[::2], calls[1::2]):
            once = run_call(first, hidden_states)
            hidden_states = once + self.model.gates[first.layer] * (run_call(second, once) - once)
        return hidden_states


@strict
class TwiceConfig(RecurrentConfig):
    r"""
    Every layer of the backbone runs twice, the second time behind a learned gate.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of the decoder whose layers are run.
        initial_gate (`float`, *optional*, defaults to 0.0):
            What the gates start from; at 0 the model is its backbone.
    """

    model_type = "twice_lm"

    initial_gate: float = 0.0

    def depth(self, model: Any = None, norm: Any = None) -> TwiceDepth:
        return TwiceDepth(self, model, norm)


__all__ = ["TwiceConfig"]
