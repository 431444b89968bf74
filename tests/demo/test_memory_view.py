"""Which tokens the next one reads, held to the model: changing one that is not read changes no logit."""

import pytest
import torch
from transformers import set_seed

from hf_loop import FeedbackConfig, FeedbackForCausalLM, SleepConfig, SleepForCausalLM
from hf_loop.demo.memory_view import memory_view

from .models import BLOCK, backbone, looped_config


# of one layer, so that a token does not reach the next through tokens in between; untrained fast weights add nothing
def feedback(**fields):
    options = {
        "backbone_config": backbone(num_hidden_layers=1),
        "block_size": BLOCK,
        "num_memory_segments": 1,
        "feedback_length": 0,
    }
    return FeedbackForCausalLM(FeedbackConfig(**options | fields))


def sleep(**fields):
    return SleepForCausalLM(SleepConfig(backbone_config=backbone(num_hidden_layers=1), sleep_window=BLOCK, **fields))


MODELS = {
    "a kept block": feedback,
    "no kept block": lambda: feedback(num_memory_segments=0),
    "all kept": lambda: feedback(num_memory_segments=None),
    "hard eviction": sleep,
    # a second pass would carry earlier tokens along in the keys that are kept
    "sliding eviction": lambda: sleep(eviction="sliding", num_sleep_passes=1),
}


@pytest.mark.parametrize("num_tokens", [3, 4, 5, 11, 12, 13])
@pytest.mark.parametrize("kind", MODELS)
def test_the_tokens_that_are_read_are_those_that_the_next_depends_on(kind, num_tokens):
    set_seed(0)
    model = MODELS[kind]().eval()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, model.config.vocab_size, (1, num_tokens + 1), generator=generator)

    def next_logits(ids):
        with torch.no_grad():
            return model(ids).logits[0, -1]

    expected, depends = next_logits(tokens), []
    for place in range(num_tokens):
        other = tokens.clone()
        other[0, place] = 3 + (tokens[0, place] - 2) % (model.config.vocab_size - 3)
        depends.append(not torch.equal(next_logits(other), expected))
    view = memory_view(model.config, num_tokens)
    assert view.is_read == depends
    assert view.blocks == [place // BLOCK for place in range(num_tokens)]


def test_memory_is_named():
    assert memory_view(looped_config(), 9) is None
    config = FeedbackConfig(backbone_config=looped_config(), block_size=BLOCK, feedback_length=2)
    view = memory_view(config, 9)
    # one prelude layer, four loops of one layer, one coda layer
    assert view.remembers and view.memory == "2 vectors in each of 6 layer calls"
    # one loop less, and the block that is read next has a memory of each of five calls
    assert memory_view(config, 9, num_loops=3).memory == "2 vectors in each of 5 layer calls"
    assert not memory_view(feedback().config, 9).remembers
    assert memory_view(sleep().config, 9).remembers
