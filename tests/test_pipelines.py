"""A depth given to a pipeline reaches the model."""

import pytest
import torch
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, pipeline
from transformers.pipelines.feature_extraction import FeatureExtractionPipeline

import hf_loop
from hf_loop.tasks.tokenizer import word_tokenizer

from .models.family_models import CAUSAL
from .models.tiny_backbones import tiny_backbone


TEXT = "one two three one"


def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(["one", "two", "three"])


def classifier(name: str):
    torch.manual_seed(0)
    config = hf_loop.LoopedConfig(backbone_config=tiny_backbone("llama", initializer_range=0.3), num_loops=2)
    return getattr(hf_loop, name)(config).eval()


MODELS = {
    "text-classification": lambda: classifier("LoopedForSequenceClassification"),
    "token-classification": lambda: classifier("LoopedForTokenClassification"),
    "feature-extraction": lambda: classifier("LoopedModel"),
}


def numbers(answer):
    """All the numbers in what a pipeline answers."""
    if isinstance(answer, dict):
        return [float(answer["score"])]
    return [number for part in answer for number in numbers(part)] if isinstance(answer, list) else [answer]


@pytest.mark.parametrize("task", MODELS)
def test_a_depth_reaches_the_model(task):
    model = MODELS[task]()
    expected = pipeline(task, model, tokenizer=tokenizer())
    model.config.num_loops = 5
    at_five = numbers(expected(TEXT))
    model.config.num_loops = 2
    at_two = numbers(expected(TEXT))
    assert at_two != at_five
    assert numbers(pipeline(task, model, tokenizer=tokenizer(), num_loops=5)(TEXT)) == at_five
    assert numbers(pipeline(task, model, tokenizer=tokenizer())(TEXT, num_loops=5)) == at_five
    assert numbers(pipeline(task, model, tokenizer=tokenizer(), num_loops=5)(TEXT, num_loops=2)) == at_two


@pytest.mark.parametrize("name", ["num_loop", "num_steps", "num_sleep_passes"])
@pytest.mark.parametrize("task", MODELS)
def test_a_depth_under_another_name_is_refused(task, name):
    with pytest.raises(TypeError, match=f"`{name}`, given to the pipeline, is no keyword of the model"):
        pipeline(task, MODELS[task](), tokenizer=tokenizer(), **{name: 5})


def test_the_passes_of_a_sleep_model_reach_it_and_others_have_no_depth():
    model = CAUSAL["sleep"]().model
    one, three = (
        numbers(pipeline("feature-extraction", model, tokenizer=tokenizer(), num_sleep_passes=n)(f"{TEXT} {TEXT}"))
        for n in (1, 3)
    )
    assert one != three
    torch.manual_seed(0)
    config = hf_loop.SleepConfig(backbone_config=tiny_backbone("llama", initializer_range=0.3), sleep_window=4)
    classifier = hf_loop.SleepForTokenClassification(config).eval()
    classifier.model.load_state_dict(model.state_dict())
    scores = [
        numbers(
            pipeline("token-classification", classifier, tokenizer=tokenizer(), num_sleep_passes=n)(f"{TEXT} {TEXT}")
        )
        for n in (1, 3)
    ]
    assert scores[0] != scores[1]
    with pytest.raises(TypeError, match="`num_loops`, given to the pipeline, is no keyword of the model"):
        pipeline("feature-extraction", CAUSAL["feedback"]().model, tokenizer=tokenizer(), num_loops=3)


def test_other_models_are_served_as_before():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(tiny_backbone("llama")).eval()
    classify = pipeline("text-classification", model, tokenizer=tokenizer(), truncation=True, max_length=2)
    assert classify(TEXT) == classify("one two")
    assert isinstance(pipeline("feature-extraction", model.model, tokenizer=tokenizer()), FeatureExtractionPipeline)
