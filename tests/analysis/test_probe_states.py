"""The states that probes read are those of the model."""

import pytest
import torch

from hf_loop.analysis import capture, loop_states

from ..models.hierarchical_variants import tiny_hierarchical
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids


def test_states_after_every_loop_and_before_the_first():
    model = tiny_looped(num_prelude_layers=1)
    rows = random_ids(2, 7)
    found, expected = loop_states(model, rows, None, num_loops=2, include_start=True), capture(model, rows, 2)
    assert expected.start_state is not None
    for loop, state in enumerate([expected.start_state, *expected.loop_states]):
        torch.testing.assert_close(found[:, loop], state)


@pytest.mark.parametrize("make", [tiny_looped, tiny_hierarchical])
def test_states_are_those_of_each_row_alone(make):
    model = make()
    rows = [row[:length] for row, length in zip(random_ids(3, 9), (9, 6, 8), strict=True)]
    states = loop_states(model, rows, [0, -1, 5], batch_size=2)
    assert states.shape[:2] == (3, model.config.num_loops)
    for row, position, found in zip(rows, (0, 5, 5), states, strict=True):
        (alone,) = loop_states(model, [row], None)
        torch.testing.assert_close(found, alone[:, position], atol=1e-5, rtol=1e-5)


def test_bad_requests_for_states_are_named():
    model = tiny_looped()
    rows = [[3, 4, 5], [6, 7]]
    with pytest.raises(ValueError, match="positions must be given for rows of several lengths, got 2 to 3"):
        loop_states(model, rows, None)
    with pytest.raises(ValueError, match="one for each of 2 rows, got 1"):
        loop_states(model, rows, [0])
    with pytest.raises(ValueError, match="2 is outside of row 1, which has 2 tokens"):
        loop_states(model, rows, 2)
    with pytest.raises(ValueError, match="rows is empty"):
        loop_states(model, [])
    with pytest.raises(ValueError, match="include_start must be False"):
        loop_states(tiny_hierarchical(), rows, include_start=True)
