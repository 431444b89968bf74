"""A hook sees every layer call of every family with its loop, changes nothing by itself, and can change everything."""

import pytest
import torch

from hf_loop.models.call_hooks import hook_calls

from .composed_variants import PAIRS, make_composed
from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .sleep_variants import make_sleep


MODELS = {
    "looped": tiny_looped,
    "hierarchical": tiny_hierarchical,
    "feedback": make_feedback,
    "sleep": lambda: make_sleep(fast_weight_layers=[0, 2]),
    **{" over ".join(pair): (lambda pair=pair: make_composed(*pair)) for pair in PAIRS},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_hook_sees_every_call_and_changes_nothing(name):
    model = MODELS[name]().eval()
    input_ids = random_ids(2, 7)
    seen = []

    def watch(call, layer, hidden_states, run_layer):
        seen.append(call)
        return run_layer(layer, hidden_states)

    with torch.no_grad():
        expected = model(input_ids).logits
        with hook_calls(model, watch):
            assert torch.equal(model(input_ids).logits, expected)
        count = len(seen)
        model(input_ids)
    assert len(seen) == count
    # time schedules run the calls of a pass for every block or window
    assert set(seen) == set(model.config.calls())


def test_a_hook_can_skip_a_call_of_one_loop():
    model = tiny_looped(num_loops=3, num_prelude_layers=0, num_coda_layers=0).eval()
    input_ids = random_ids(1, 5)

    def only_first(call, layer, hidden_states, run_layer):
        return run_layer(layer, hidden_states) if call.loop == 0 else hidden_states

    with torch.no_grad(), hook_calls(model, only_first):
        logits = model(input_ids).logits
    assert torch.equal(logits, model(input_ids, num_loops=1).logits)


def test_one_hook_at_a_time():
    model = tiny_looped()
    with (
        hook_calls(model, lambda call, layer, states, run: run(layer, states)),
        pytest.raises(ValueError, match="hooked already"),
        hook_calls(model, lambda *args: args[2]),
    ):
        pass
    with hook_calls(model, lambda call, layer, states, run: run(layer, states)):
        pass
