"""The contrast of the last loop with an earlier one."""

import copy
import math

import pytest
import torch

from hf_loop.models.loop_contrast import LoopContrast

from .looped_variants import VARIANTS, tiny_looped
from .model_tester import random_ids


NUM_LOOPS = 4
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CONTRAST = {"contrast_loop": 2, "contrast_weight": 3.0}


@pytest.fixture(params=["plain", "prelude and coda", "concat", "final norm", "quarter steps"])
def model(request):
    return tiny_looped(num_loops=NUM_LOOPS, **VARIANTS[request.param])


def contrasted(last: torch.Tensor, earlier: torch.Tensor, weight: float) -> torch.Tensor:
    """The formula for one token."""
    last, earlier = last.softmax(0), earlier.softmax(0)
    scores = [
        (1 + weight) * math.log(p) - weight * math.log(q) if p >= 0.1 * last.max() else -math.inf
        for p, q in zip(last.tolist(), earlier.tolist())
    ]
    return torch.tensor(scores)


def naive_generation(model, ids: torch.Tensor, num_tokens: int, contrast_loop: int, contrast_weight: float):
    """Without a cache, every token from the logits of all loops."""
    for _ in range(num_tokens):
        logits = model(ids, output_loop_logits=True).loop_logits
        rows = zip(logits[-1][:, -1], logits[contrast_loop - 1][:, -1])
        best = [contrasted(last, earlier, contrast_weight).argmax() for last, earlier in rows]
        ids = torch.cat([ids, torch.stack(best)[:, None]], dim=1)
    return ids


def test_the_processor_is_the_formula():
    last, earlier = 3 * torch.randn(2, 2, 11)
    processor = LoopContrast(0.7)
    processor.earlier_logits = earlier
    expected = torch.stack([contrasted(*row, 0.7) for row in zip(last, earlier)])
    torch.testing.assert_close(processor(None, last), expected)
    assert expected.isinf().any() and not expected.isinf().all(dim=1).any()


def test_the_earlier_logits_are_those_of_the_readout(model):
    ids = random_ids(2, 9)
    loop_logits = model(ids, output_loop_logits=True).loop_logits
    for loop in (1, 2, 3):
        outputs = model(ids, contrast_loop=loop, use_cache=True)
        assert torch.equal(outputs.contrast_logits, loop_logits[loop - 1])
        assert torch.equal(outputs.logits, loop_logits[-1])
    first = model(ids[:, :6], contrast_loop=2, use_cache=True)
    rest = model(ids[:, 6:], contrast_loop=2, past_key_values=first.past_key_values, logits_to_keep=2)
    # with a coda, an earlier loop's state reads what the last loop left of earlier tokens, as it does in generation
    if model.config.num_coda_layers == 0:
        torch.testing.assert_close(rest.contrast_logits, loop_logits[1][:, -2:], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(rest.logits, loop_logits[-1][:, -2:], atol=2e-5, rtol=1e-5)


def test_generation_is_that_of_the_naive_twin(model):
    ids = random_ids(3, 7)
    generated = model.generate(ids, **GREEDY, **CONTRAST, use_cache=False)
    assert torch.equal(generated, naive_generation(model, ids, 6, **CONTRAST))
    assert not torch.equal(generated, model.generate(ids, **GREEDY))
    if model.config.num_coda_layers == 0:
        assert torch.equal(generated, model.generate(ids, **GREEDY, **CONTRAST))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=str)
def test_a_weight_of_zero_is_plain_generation(model, options):
    ids = random_ids(2, 7)
    torch.manual_seed(0)
    expected = model.generate(ids, **{**GREEDY, **options})
    torch.manual_seed(0)
    assert torch.equal(model.generate(ids, **{**GREEDY, **options}, contrast_loop=2, contrast_weight=0), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}, {"cache_policy": "last_loop"}])
def test_a_padded_batch_is_its_rows_alone(model, options):
    ids, num_padding = random_ids(3, 9), [0, 4, 2]
    mask = torch.tensor([[0] * n + [1] * (9 - n) for n in num_padding])
    options = {**GREEDY, **CONTRAST, **options}
    together = model.generate(ids, attention_mask=mask, **options)
    for row, n in enumerate(num_padding):
        alone = model.generate(ids[row : row + 1, n:], **options)
        assert torch.equal(together[row, 9:], alone[0, 9 - n :])


def test_sampling_and_several_sequences():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    ids = random_ids(2, 7)
    options = {**GREEDY, "do_sample": True, "num_return_sequences": 3, "repetition_penalty": 1.2}
    assert model.generate(ids, **options, contrast_loop=1).shape == (6, 13)


def test_settings_come_from_the_generation_configuration_too():
    model = tiny_looped(num_loops=NUM_LOOPS)
    ids, config = random_ids(2, 7), copy.deepcopy(model.generation_config)
    expected = model.generate(ids, **GREEDY, **CONTRAST)
    config.contrast_loop, config.contrast_weight = CONTRAST.values()
    assert torch.equal(model.generate(ids, generation_config=config, **GREEDY), expected)
    plain = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, generation_config=config, **GREEDY, contrast_weight=0.0), plain)
    default = model.generate(ids, **GREEDY, contrast_loop=2)
    assert torch.equal(default, model.generate(ids, **GREEDY, contrast_loop=2, contrast_weight=0.5))
    with pytest.raises(ValueError, match="generate_batch"):
        model.generate_batch([[3, 4, 5]], generation_config=config)


def test_nothing_is_kept_of_the_earlier_loop():
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    ids = random_ids(2, 7)
    caches = [model(ids, use_cache=True, **options).past_key_values for options in ({}, {"contrast_loop": 2})]
    for plain, contrast in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(plain.keys, contrast.keys) and torch.equal(plain.values, contrast.values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast_loop": 0}, "`contrast_loop`"),
        ({"contrast_loop": 1.5}, "`contrast_loop`"),
        ({"contrast_loop": NUM_LOOPS}, "`contrast_loop` must be less than num_loops=4, got 4"),
        ({"contrast_loop": 2, "num_loops": 1}, "`contrast_loop` must be less than num_loops=1"),
        ({"contrast_loop": 2, "contrast_weight": -0.5}, "`contrast_weight` must be a number of at least 0, got -0.5"),
        ({"contrast_loop": 2, "contrast_weight": math.nan}, "`contrast_weight`"),
        ({"contrast_loop": 2, "contrast_weight": "1"}, "`contrast_weight`"),
        ({"contrast_weight": 0.5}, "`contrast_weight` needs a `contrast_loop`"),
        ({"contrast_loop": 2, "exit_criterion": "kl"}, "`contrast_loop` must be None with `exit_criterion`"),
        ({"contrast_loop": 2, "prompt_lookup_num_tokens": 2}, "`contrast_loop` must be None in assisted generation"),
        ({"contrast_loop": 2, "cache_implementation": "static"}, "`contrast_loop` needs a dynamic cache"),
    ],
    ids=str,
)
def test_refused(options, message):
    model = tiny_looped(num_loops=NUM_LOOPS, **VARIANTS["prelude and coda"])
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 5), **{**GREEDY, **options})
