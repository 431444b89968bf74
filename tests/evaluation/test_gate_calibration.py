"""The calibration of an exit gate against counting over pairs and ranges."""

import pytest
import torch

from hf_loop.evaluation import gate_calibration
from hf_loop.evaluation.gate_calibration import _ranking

from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids


@torch.no_grad()
def test_numbers_equal_counting():
    model = tiny_looped(num_coda_layers=1, exit_gate=True)
    model.model.exit_gate.weight.mul_(20)
    input_ids = random_ids(1, 45)
    found = gate_calibration(model, input_ids, num_loops=3, gain_threshold=0.1, window=20, batch_size=2)
    assert [row.loop for row in found] == [1, 2]
    chances, gains = [[], []], [[], []]
    for window in input_ids[0].split(20):
        outputs = model(window[None], num_loops=3, output_loop_states=True, output_loop_logits=True)
        for position in range(len(window) - 1):
            losses = [-logits[0, position].log_softmax(-1)[window[position + 1]] for logits in outputs.loop_logits]
            for loop in range(2):
                chances[loop].append(model.model.exit_gate_probability(outputs.loop_states[loop][0, position]).item())
                gains[loop].append((losses[loop] - losses[loop + 1]).item())
    for loop, row in enumerate(found):
        nothing = [gain <= 0.1 for gain in gains[loop]]
        pairs = list(zip(chances[loop], nothing, strict=True))
        assert row.predicted == pytest.approx(sum(chances[loop]) / 42, abs=1e-5)
        assert row.measured == pytest.approx(sum(nothing) / 42)
        error = sum(
            abs(sum(chance - is_nothing for chance, is_nothing in pairs if least <= 10 * chance < least + 1))
            for least in range(10)
        )
        assert row.error == pytest.approx(error / 42, abs=1e-5)
        wins = [high > low for high, is_high in pairs if is_high for low, is_low in pairs if not is_low]
        assert row.ranking == pytest.approx(sum(wins) / len(wins), abs=1e-3)


def test_equal_scores_and_a_single_kind():
    scores = torch.tensor([0.2, 0.5, 0.5, 0.9])
    assert _ranking(scores, torch.tensor([False, True, False, True])) == pytest.approx(3.5 / 4)
    assert _ranking(scores, torch.ones(4, dtype=torch.bool)) == 0.5


def test_a_model_without_a_gate_is_refused():
    with pytest.raises(ValueError, match="`exit_gate` of the configuration must be True"):
        gate_calibration(tiny_looped(), random_ids(1, 9))
