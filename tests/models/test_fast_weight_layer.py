"""The inserted layer: what it starts as, and that it may be run in pieces."""

import pytest
import torch

from hf_loop import SleepConfig, SleepForCausalLM
from hf_loop.models.fast_weight_layer import FastWeightLayer, ShortConvolution
from hf_loop.models.fast_weights import FAST_WEIGHT_RULES

from .tiny_backbones import tiny_backbone


HIDDEN_STATES = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))


def fresh_layer(**fields) -> FastWeightLayer:
    torch.manual_seed(0)
    config = SleepConfig(backbone_config=tiny_backbone("llama"), fast_weight_layers=[1], **fields)
    return SleepForCausalLM(config).model.memory_layers[0]


@pytest.fixture(params=FAST_WEIGHT_RULES)
def layer(request):
    return fresh_layer(fast_weight_rule=request.param)


@torch.no_grad()
def test_a_fresh_layer_changes_nothing(layer):
    hidden_states, state, _ = layer(HIDDEN_STATES)
    assert torch.equal(hidden_states, HIDDEN_STATES)
    assert state.abs().max() > 0
    # weights are what an initialisation makes, not what was in the memory
    for name, parameter in layer.named_parameters():
        assert parameter.abs().max() < 8 and (
            parameter.std() > 0 or "norm" in name or name in ("A_log", "o_proj.weight")
        )


@torch.no_grad()
def test_pieces_equal_the_whole(layer):
    layer.o_proj.weight.normal_()
    whole, state, conv = layer(HIDDEN_STATES)
    pieces, states = [], (None, None)
    for piece in HIDDEN_STATES.split([1, 4, 1, 3], dim=1):
        output, *states = layer(piece, *states)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states, [state, conv], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_size_and_decay_of_the_memory():
    layer = fresh_layer(fast_weight_num_heads=2, fast_weight_head_dim=8)
    assert layer(HIDDEN_STATES)[1].shape == (2, 2, 8, 8)
    decay = layer.decay(torch.zeros(1, 1, 64)).exp().flatten()
    torch.testing.assert_close(decay, torch.tensor([0.999, 0.905]), atol=1e-3, rtol=0)
    assert fresh_layer(fast_weight_rule="delta").decay(HIDDEN_STATES) is None


def test_the_convolution_sees_the_last_tokens_of_what_came_before():
    torch.manual_seed(0)
    convolution = ShortConvolution(6, 4)
    torch.nn.init.normal_(convolution.weight)
    states = torch.randn(2, 9, 6)
    whole, last = convolution(states, None)
    pieces, past = [], None
    for piece in states.split([1, 2, 5, 1], dim=1):
        output, past = convolution(piece, past)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(past, last)
    changed = states.clone()
    changed[:, 4] += 1
    differs = (convolution(changed, None)[0] != whole).any(-1).any(0)
    assert differs.tolist() == [False] * 4 + [True] * 4 + [False]
