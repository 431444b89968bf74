import math

import pytest
import torch

from hf_loop.evaluation import perplexity_over_loops

from .fake_model import VOCAB_SIZE, fake_looped_model


def nll(is_right: bool) -> float:
    """Negative log-likelihood under the fake model's logits (10 for its prediction, 0 for the others)."""
    log_total = math.log(math.exp(10) + VOCAB_SIZE - 1)
    return log_total - 10 if is_right else log_total


def test_it_is_weighted_by_tokens_over_windows_that_do_not_overlap():
    # windows [1 2 3 4] (three right) and [5 6] (needs 5 loops, so one wrong at 1 loop)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    curve = perplexity_over_loops(fake_looped_model(), tokens, [1, 5], window=4)
    assert curve.metric == "perplexity"
    assert curve.values[0] == pytest.approx(math.exp((3 * nll(True) + nll(False)) / 4), rel=1e-6)
    assert curve.values[1] == pytest.approx(math.exp(nll(True)), rel=1e-6)


def test_batches_hold_windows_of_equal_length():
    model = fake_looped_model()
    tokens = torch.arange(23).remainder(VOCAB_SIZE)
    whole = perplexity_over_loops(model, tokens, [1, 2], window=5, batch_size=3)
    assert [shape for loops, shape, _ in model.calls if loops == 1] == [[3, 5], [1, 5], [1, 3]]
    single = perplexity_over_loops(fake_looped_model(), list(tokens.split(5)), [1, 2], window=5)
    assert whole.values == pytest.approx(single.values, rel=1e-6)


def test_a_window_of_one_token_is_left_out():
    model = fake_looped_model()
    perplexity_over_loops(model, torch.tensor([1, 2, 3, 4, 5]), [1], window=4)
    assert [shape for _, shape, _ in model.calls] == [[1, 4]]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), {}, "fewer than two tokens"),
        (torch.tensor([[3]]), {}, "fewer than two tokens"),
        ([], {}, "fewer than two tokens"),
        (torch.zeros(2, 8, dtype=torch.long), {}, "shape"),
        (torch.zeros(1, 8, dtype=torch.long), {"window": 1}, "window"),
        (torch.zeros(1, 8, dtype=torch.long), {"batch_size": 0}, "batch_size"),
        (torch.zeros(1, 8, dtype=torch.long), {"loops": [2.5]}, "got 2.5"),
    ],
)
def test_bad_input_gets_a_clear_error(tokens, options, message):
    options = {"loops": [1]} | options
    with pytest.raises(ValueError, match=message):
        perplexity_over_loops(fake_looped_model(), tokens, options.pop("loops"), **options)
