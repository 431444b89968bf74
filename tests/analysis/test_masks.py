"""Masks reach the weights of looped layers in the loops they name, and change nothing else."""

import pytest
import torch

from hf_loop.analysis.masks import (
    MaskScores,
    inverted,
    map_masks,
    maskable_weights,
    masked_weights,
    only_in,
    random_masks,
    temperature_at,
)

from ..models.composed_variants import PAIRS, make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from ..models.sleep_variants import make_sleep


MODELS = {
    "looped": lambda: tiny_looped(num_prelude_layers=1, num_coda_layers=1),
    "tied embeddings": lambda: tiny_looped(tie_word_embeddings=True),
    "experts": lambda: tiny_looped("qwen3_moe"),
    "hierarchical": tiny_hierarchical,
    "feedback": make_feedback,
    "sleep": lambda: make_sleep(fast_weight_layers=[0, 2]),
    **{" over ".join(pair): (lambda pair=pair: make_composed(*pair)) for pair in PAIRS},
}
INPUT_IDS = random_ids(2, 7)


def filled(scores: MaskScores, value: float):
    return map_masks(scores.hard(), lambda name, mask: torch.full_like(mask, value))


@torch.no_grad()
def logits(model, masks=None, **kwargs):
    if masks is None:
        return model(INPUT_IDS, **kwargs).logits
    with masked_weights(model, masks):
        return model(INPUT_IDS, **kwargs).logits


@pytest.mark.parametrize("name", MODELS)
def test_masks_work_in_every_family_and_leave_the_weights_as_they_were(name):
    model = MODELS[name]().eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scores = MaskScores(model, per_loop=True, outside=True)
    expected = logits(model)
    torch.testing.assert_close(logits(model, filled(scores, 1.0)), expected, atol=0, rtol=0)
    assert not torch.allclose(logits(model, filled(scores, 0.0)), expected, atol=1e-3)

    with masked_weights(model, scores.soft(1.0)):
        loss = model(INPUT_IDS).logits.logsumexp(-1).mean()
    loss.backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(score.grad is not None and bool(score.grad.any()) for score in scores.scores)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(logits(model), expected, atol=0, rtol=0)


def test_without_its_weights_a_loop_does_nothing():
    # a layer of a Llama adds to its input what its linear maps give
    model = tiny_looped(num_prelude_layers=1, num_coda_layers=1)
    masks = filled(MaskScores(model), 0.0)
    torch.testing.assert_close(logits(model, only_in(masks, [1])), logits(model, num_loops=2))
    torch.testing.assert_close(logits(model, only_in(masks, [0, 2])), logits(model, num_loops=1))


def test_only_looped_layers_are_masked_unless_told_otherwise():
    model = tiny_looped(num_prelude_layers=1, num_coda_layers=1)
    layers = {name.split(".layers.")[1].split(".")[0] for name in maskable_weights(model)}
    assert layers == {"1", "2"}
    # seven linear maps in each layer; norms are no linear maps
    assert len(maskable_weights(model)) == 14
    assert len(maskable_weights(model, outside=True)) == 28
    assert MaskScores(model).soft(1.0)[None] == {}
    with pytest.raises(ValueError, match="no looped layer with weights to mask; without loops, `outside=True`"):
        maskable_weights(make_feedback())


def test_replacements_take_the_place_of_what_is_left_out():
    model, other = tiny_looped(seed=0), tiny_looped(seed=1)
    masks = filled(MaskScores(model), 0.0)
    names = maskable_weights(model)
    replacements = {name: weight.detach() for name, weight in other.named_parameters() if name in names}
    with torch.no_grad(), masked_weights(model, masks, replacements):
        found = model(INPUT_IDS).logits
    model.load_state_dict(replacements, strict=False)
    torch.testing.assert_close(found, logits(model), atol=0, rtol=0)


def test_a_weight_that_layers_share_has_one_mask():
    model = tiny_looped()
    layers = model.model.backbone.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    masks = MaskScores(model).hard()
    shared = next(name for name in masks[0] if name.endswith("layers.0.mlp.down_proj.weight"))
    assert len(masks[0]) == 4 * 7 - 1
    without = map_masks(masks, lambda name, mask: mask * (name != shared))
    found = logits(model, without)
    with torch.no_grad():
        layers[0].mlp.down_proj.weight.zero_()
    torch.testing.assert_close(found, logits(model), atol=0, rtol=0)


def test_one_set_of_scores_gets_the_gradient_of_all_loops():
    model = tiny_looped()
    shared, per_loop = MaskScores(model), MaskScores(model, per_loop=True)
    for scores in (shared, per_loop):
        with masked_weights(model, scores.soft(2.0)):
            model(INPUT_IDS).logits.logsumexp(-1).mean().backward()
    assert len(per_loop.scores) == 3 * len(shared.scores)
    for index, score in enumerate(shared.scores):
        parts = [per_loop.scores[index + loop * len(shared.scores)].grad for loop in range(3)]
        torch.testing.assert_close(score.grad, sum(parts), atol=1e-6, rtol=1e-3)


def test_soft_and_hard_masks_of_known_scores():
    scores = MaskScores(tiny_looped())
    with torch.no_grad():
        for score in scores.scores:
            score.fill_(-0.5)
        scores.scores[0][0, 0] = 0.5
    name = scores.groups[0][0]
    assert scores.soft(2.0)[0][name][0, :2].tolist() == pytest.approx([0.7310586, 0.2689414])
    assert scores.soft(200.0)[2][name][0, :2].tolist() == pytest.approx([1.0, 0.0])
    hard = scores.hard()[1][name]
    assert (hard[0, 0], hard.sum()) == (1.0, 1.0)
    assert scores.kept(2.0).item() == pytest.approx(0.2689414, abs=1e-4)
    assert inverted(scores.hard())[1][name].sum() == hard.numel() - 1


def test_the_temperature_grows_exponentially():
    assert [temperature_at(epoch, 90, 200.0) for epoch in (0, 45, 90)] == pytest.approx([1.0, 200**0.5, 200.0])


def test_random_masks_keep_as_many_of_every_matrix():
    scores = MaskScores(tiny_looped())
    torch.manual_seed(0)
    with torch.no_grad():
        for score in scores.scores:
            score.normal_(mean=-0.5)
    masks = scores.hard()
    drawn = random_masks(masks, seed=3)
    # a mask that all loops share is still one
    assert drawn[0] is drawn[2]
    for name, mask in masks[0].items():
        assert mask.sum() == drawn[0][name].sum()
        assert not torch.equal(mask, drawn[0][name])
        assert torch.equal(drawn[0][name], random_masks(masks, seed=3)[0][name])
        assert not torch.equal(drawn[0][name], random_masks(masks, seed=4)[0][name])


def test_loops_and_weights_that_masks_do_not_fit_are_refused():
    model = tiny_looped()
    masks = MaskScores(model).hard()
    with pytest.raises(ValueError, match="no entry for loop 3; they were made for"):
        logits(model, masks, num_loops=4)
    with pytest.raises(ValueError, match="`loops` must be among .*, got 5"):
        only_in(masks, [1, 5])
    with pytest.raises(ValueError, match="weights that the model does not have: lm_tail"):
        logits(model, {0: {"lm_tail.weight": torch.ones(1)}})
