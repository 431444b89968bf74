"""Windows with labels read once, as Algorithm 1 has it, and the others slept over."""

import pytest
import torch
from torch import nn

from .model_tester import random_ids
from .sleep_variants import VARIANTS, WINDOW, make_sleep


INPUT_IDS = random_ids(3, 3 * WINDOW + 2)
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
IGNORE_INDEX = -100


def labels_at(*places: tuple[int, int]) -> torch.Tensor:
    """Labels of single tokens, by row and column."""
    labels = torch.full_like(INPUT_IDS, IGNORE_INDEX)
    for row, column in places:
        labels[row, column] = INPUT_IDS[row, column]
    return labels


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return make_sleep(**VARIANTS[request.param], num_sleep_passes=3, sleep_over_labels=False)


def algorithm_1(model, row: torch.Tensor, reads_once: list[bool]) -> torch.Tensor:
    """One row by the cache, window by window, with the passes that its labels say: logits `[T, V]`."""
    cache, logits = None, []
    for window, once in zip(row.split(WINDOW), [*reads_once, True]):
        passes = 1 if once else 3
        outputs = model(window[None], past_key_values=cache, use_cache=True, num_sleep_passes=passes)
        cache = outputs.past_key_values
        logits.append(outputs.logits[0])
    return torch.cat(logits)


@torch.no_grad()
def test_a_window_is_read_once_where_a_token_of_it_predicts(model):
    # the second window of row 0; of row 1 the first, whose last token predicts the first of the second; of row 2 none
    labels = labels_at((0, WINDOW + 2), (1, WINDOW), (2, 3 * WINDOW + 1))
    outputs = model(INPUT_IDS, labels=labels)
    once = [[False, True, False], [True, False, False], [False, False, False]]
    for row, logits, reads_once in zip(INPUT_IDS, outputs.logits, once):
        torch.testing.assert_close(logits, algorithm_1(model, row, reads_once), **CLOSE)
    # rows do not decide for one another
    for index in range(3):
        alone = model(INPUT_IDS[index : index + 1], labels=labels[index : index + 1]).logits[0]
        torch.testing.assert_close(outputs.logits[index], alone, **CLOSE)
    assert not torch.allclose(outputs.logits[:2], model(INPUT_IDS[:2], use_cache=False).logits, atol=1e-4)


@torch.no_grad()
def test_labels_that_are_shifted_already_say_the_same():
    model = make_sleep("qwen3_5_text", num_sleep_passes=3, sleep_over_labels=False)
    labels = labels_at((0, WINDOW + 2), (1, WINDOW), (2, 3))
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    expected = model(INPUT_IDS, labels=labels)
    outputs = model(INPUT_IDS, labels=labels, shift_labels=shifted)
    assert torch.equal(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.loss, expected.loss)


@torch.no_grad()
def test_padded_and_packed_sequences_read_once_what_they_read_once_alone():
    model = make_sleep("olmo_hybrid", num_sleep_passes=3, sleep_over_labels=False)
    labels = labels_at((0, WINDOW + 2), (1, 2 * WINDOW + 1))
    lengths = (14, 11)
    for side in ("left", "right"):
        input_ids, mask = torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 16, dtype=torch.long)
        padded_labels = torch.full_like(input_ids, IGNORE_INDEX)
        for row, length in enumerate(lengths):
            place = slice(16 - length, 16) if side == "left" else slice(0, length)
            input_ids[row, place], mask[row, place] = INPUT_IDS[row, :length], 1
            padded_labels[row, place] = labels[row, :length]
        logits = model(input_ids, attention_mask=mask, labels=padded_labels).logits
        for row, length in enumerate(lengths):
            alone = model(INPUT_IDS[row : row + 1, :length], labels=labels[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(logits[row][mask[row].bool()], alone, **CLOSE)
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    packed, packed_labels = (
        torch.cat([tensor[row, :length] for row, length in enumerate(lengths)])[None] for tensor in (INPUT_IDS, labels)
    )
    logits = model(packed, position_ids=position_ids, labels=packed_labels).logits[0]
    for row, part in enumerate(logits.split(lengths)):
        alone = model(INPUT_IDS[row : row + 1, : lengths[row]], labels=labels[row : row + 1, : lengths[row]]).logits[0]
        torch.testing.assert_close(part, alone, **CLOSE)


@pytest.mark.parametrize("places", [[(0, 2), (1, 6)], [(0, 2), (1, 2), (2, 2)]], ids=["mixed", "all"])
def test_checkpointing_changes_no_gradient(model, places):
    labels = labels_at(*places, (0, -1), (1, -1), (2, -1))
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(INPUT_IDS, labels=labels).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_with_labels_everywhere_all_windows_are_read_once_or_none(model):
    once = model(INPUT_IDS, labels=INPUT_IDS).logits
    torch.testing.assert_close(once, model(INPUT_IDS, use_cache=False, num_sleep_passes=1).logits, **CLOSE)
    model.config.sleep_over_labels = True
    thrice = model(INPUT_IDS, labels=INPUT_IDS).logits
    assert torch.equal(thrice, model(INPUT_IDS, use_cache=False).logits)
    assert not torch.allclose(once, thrice, atol=1e-4)


def test_a_cache_is_made_with_labels_only_where_it_is_asked_for():
    model = make_sleep("qwen3_next")
    assert model(INPUT_IDS, labels=INPUT_IDS).past_key_values is None
    assert model(INPUT_IDS, labels=INPUT_IDS, use_cache=True).past_key_values is not None
    model.config.sleep_over_labels = False
    with pytest.raises(ValueError, match="`reads_once` must be None with a cache"):
        model(INPUT_IDS, labels=INPUT_IDS, use_cache=True)
