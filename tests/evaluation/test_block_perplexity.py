"""Perplexity along a text: read block by block with a cache, it is what one forward pass over everything gives."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_loop.evaluation.block_perplexity import BlockCurve, perplexity_by_block
from hf_loop.evaluation.block_plots import plot_block_curves
from hf_loop.retrofitting import retrofit

from ..retrofitting.tiny_models import tiny_decoder


TEXTS = torch.randint(3, 60, (2, 23), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def losses_of(model, texts) -> torch.Tensor:
    """The loss of every token but the first, `[B, T - 1]`, from one forward pass."""
    logits = model(texts).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), texts[:, 1:], reduction="none")


def block_means(losses: torch.Tensor, edges: list[int]) -> torch.Tensor:
    return torch.stack([losses[:, start:stop].mean(1) for start, stop in zip(edges, edges[1:])], dim=1)


@pytest.mark.parametrize("schedule", [None, {"block_size": 5, "num_memory_segments": 0, "feedback_length": 2}])
def test_a_text_in_blocks_is_the_text_at_once(schedule):
    model = tiny_decoder("llama")
    model = model if schedule is None else retrofit(model, "feedback", **schedule)
    curve = perplexity_by_block(model, TEXTS, block_size=5)
    # the rest of three tokens is left out, and the first token is not predicted
    losses = losses_of(model, TEXTS)[:, :19]
    expected = block_means(losses, [0, 4, 9, 14, 19])
    torch.testing.assert_close(torch.tensor(curve.losses), expected, atol=1e-4, rtol=1e-4)
    assert curve.num_predicted == [4, 5, 5, 5]
    assert curve.perplexity == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert curve.perplexities() == pytest.approx(expected.mean(0).exp().tolist(), rel=1e-4)
    assert model.training is False


def test_windows_are_forgotten():
    model = tiny_decoder("llama")
    curve = perplexity_by_block(model, TEXTS[0], block_size=5, window=10)
    expected = [block_means(losses_of(model, part[None]), [0, 4, 9])[0] for part in (TEXTS[0, :10], TEXTS[0, 10:20])]
    torch.testing.assert_close(torch.tensor(curve.losses[0]), torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert curve.num_predicted == [4, 5, 4, 5]


def test_the_difference_of_two_curves_is_paired():
    curve = BlockCurve("a", 5, [[2.0, 3.0], [4.0, 5.0]], [4, 5])
    other = BlockCurve("b", 5, [[1.0, 2.5], [3.0, 4.5]], [4, 5])
    difference, error = curve.difference_from(other)
    assert difference == pytest.approx(0.75)
    assert error == pytest.approx(math.sqrt(1 / 12) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 1}, "`block_size` must be an integer of at least 2"),
        ({"block_size": 24}, "at least a block of 24 tokens, got 23"),
        ({"block_size": 5, "window": 12}, "multiple of block_size 5, got 12"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        perplexity_by_block(tiny_decoder("llama"), TEXTS, **options)


def test_curves_of_other_blocks_are_refused(tmp_path):
    curve, other = BlockCurve("a", 5, [[2.0, 3.0]], [4, 5]), BlockCurve("b", 5, [[2.0]], [4])
    with pytest.raises(ValueError, match="'a' and 'b' must be measured on the same blocks"):
        curve.difference_from(other)
    with pytest.raises(ValueError, match="must be of the same blocks"):
        plot_block_curves([curve, other], tmp_path / "figure.png")
    with pytest.raises(ValueError, match="must hold 2 blocks"):
        BlockCurve("a", 5, [[2.0]], [4, 5])


def test_the_figure_is_written(tmp_path):
    curves = [BlockCurve(name, 5, [[2.0, 3.0, math.inf]], [4, 5, 5]) for name in "abcdefghijklm"]
    plot_block_curves(curves, tmp_path / "figure.png", reference=BlockCurve("r", 5, [[2.0, 2.0, 2.0]], [4, 5, 5]))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
