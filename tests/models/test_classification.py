"""Classification heads of every family: as transformers' own, with the depth as an argument of the call."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from .families import CAUSAL_FAMILIES
from .model_tester import left_pad, random_ids


FAMILIES = [family for family in CAUSAL_FAMILIES if family != "looped with per-loop LoRA"]
DEEPER = {
    "feedback": {},
    "sleep": {"num_sleep_passes": 4},
    "looped": {"num_loops": 5},
    "hierarchical": {"num_loops": 5},
}
HEADS = [AutoModelForSequenceClassification, AutoModelForTokenClassification]


def make_classifier(family: str, auto_class=AutoModelForSequenceClassification, **fields):
    """With the weights of the family's tiny causal model, and a head whose logits differ visibly."""
    causal = CAUSAL_FAMILIES[family]()
    config = type(causal.config)(**causal.config.to_dict() | {"num_labels": 5, "classifier_dropout": 0.0, **fields})
    torch.manual_seed(0)
    model = auto_class.from_config(config).eval()
    model.model.load_state_dict(causal.model.state_dict())
    torch.nn.init.normal_(model.score.weight)
    return model


@pytest.mark.parametrize("auto_class", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_heads_read_the_model_and_open_again(family, auto_class, tmp_path):
    model = make_classifier(family, auto_class)
    names = {
        AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }[auto_class]
    assert names[model.config.model_type] == type(model).__name__
    input_ids = random_ids(3, 11)
    for depth in ({}, DEEPER[family]):
        states = model.model(input_ids, use_cache=False, **depth).last_hidden_state
        expected = model.score(states if auto_class is AutoModelForTokenClassification else states[:, -1])
        outputs = model(input_ids, **depth)
        torch.testing.assert_close(outputs.logits, expected)
        assert outputs.get("cache") is None and outputs.get("past_key_values") is None
    if DEEPER[family]:
        assert not torch.allclose(outputs.logits, model(input_ids).logits, atol=1e-3)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(input_ids).logits, model(input_ids).logits)
    assert auto_class.__name__ in model.config.auto_map


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_row_is_classified_as_alone(family, side):
    model = make_classifier(family)
    rows = [random_ids(1, length, seed=length)[0] for length in (5, 11, 9)]
    input_ids, attention_mask = left_pad(rows, pad_token_id=0)
    if side == "right":
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        attention_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids, attention_mask=attention_mask).logits
    for row, of_batch in zip(rows, logits):
        torch.testing.assert_close(of_batch, model(row[None]).logits[0], atol=1e-4, rtol=1e-4)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1 if no padding token is defined"):
        model(input_ids)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 4, 2])),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1, 0, 1]] * 3)),
        ("regression", torch.rand(3, 5)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_transformers(family, problem_type, labels):
    model = make_classifier(family, problem_type=problem_type).train()
    input_ids = random_ids(3, 11)
    outputs = model(input_ids, labels=labels, **DEEPER[family])
    losses = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": torch.nn.functional.mse_loss,
    }
    torch.testing.assert_close(outputs.loss, losses[problem_type](outputs.logits, labels))
    outputs.loss.backward()
    # gradient reaches the first window or block as well as the last
    embedding = model.get_input_embeddings().weight.grad
    assert all(embedding[token].abs().sum() > 0 for token in (input_ids[0, 0], input_ids[0, -1]))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cache_is_taken_by_either_name(family):
    model = make_classifier(family)
    input_ids = random_ids(2, 11)
    expected = model(input_ids).logits
    for name in ("cache", "past_key_values"):
        cache = getattr(model.model(input_ids[:, :6], use_cache=True), name)
        torch.testing.assert_close(model(input_ids[:, 6:], **{name: cache}).logits, expected, atol=1e-4, rtol=1e-4)
