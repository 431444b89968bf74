"""Which models can be measured over loops, and which can be scanned."""

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_loop.evaluation import accuracy_over_loops, perplexity_over_loops
from hf_loop.evaluation.scan import check_scannable
from hf_loop.models import LoopedForSequenceClassification, family_of

from ..models.composed_variants import make_composed
from ..models.families import FAMILIES
from ..models.looped_variants import tiny_looped
from ..models.tiny_backbones import tiny_backbone


NO_LOOPS = {
    "feedback": "num_loops in its configuration, got FeedbackForCausalLM without loops",
    "sleep": "num_loops in its configuration, got SleepForCausalLM without loops",
    "puzzle": "model must be a causal language model, got HierarchicalForPuzzle",
}
ROWS = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]


@pytest.mark.parametrize("family", NO_LOOPS)
def test_models_without_loops_are_refused(family):
    model = FAMILIES[family]()
    with pytest.raises(ValueError, match=NO_LOOPS[family]):
        perplexity_over_loops(model, torch.arange(1, 9), [1])
    with pytest.raises(ValueError, match=NO_LOOPS[family]):
        accuracy_over_loops(model, ROWS, [1])


def test_plain_models_and_classifiers_are_refused():
    with pytest.raises(ValueError, match="got LlamaForCausalLM without loops"):
        perplexity_over_loops(LlamaForCausalLM(tiny_backbone("llama")), torch.arange(1, 9), [1])
    with pytest.raises(ValueError, match="must be a causal language model, got LoopedForSequenceClassification"):
        accuracy_over_loops(LoopedForSequenceClassification(tiny_looped().config), ROWS, [1])


def test_a_composed_model_is_measured_over_its_loops():
    curve = perplexity_over_loops(make_composed("feedback", "looped"), torch.arange(1, 17), [1, 2])
    assert curve.trained_loops == 2 and curve.values[0] != curve.values[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_recurrent_models_are_not_scanned(family):
    config = FAMILIES[family]().config
    with pytest.raises(ValueError, match=f"the model is a {family_of(config).name} model already") as error:
        check_scannable(config)
    assert ("sweep it instead" in str(error.value)) == (family not in NO_LOOPS)
