"""Looped and hierarchical models are exported once for all batches and lengths, feedback and sleep models for one."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.export import Dim, export

from .feedback_variants import make_feedback
from .hierarchical_variants import tiny_hierarchical
from .looped_variants import tiny_looped
from .model_tester import left_pad, random_ids
from .sleep_variants import make_sleep


MODELS = {
    "looped": lambda: tiny_looped(num_prelude_layers=1, num_coda_layers=1),
    "looped, with windows and noise": lambda: tiny_looped("gemma3_text", injection="concat", state_init="normal"),
    "hierarchical": tiny_hierarchical,
}
DYNAMIC = {0: Dim("batch"), 1: Dim("length")}


class Logits(nn.Module):
    """The logits alone: an exported graph returns tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_one_export_runs_any_batch_and_length(name):
    model = MODELS[name]()
    exported = export(Logits(model), (random_ids(2, 7),), dynamic_shapes={"input_ids": DYNAMIC})
    run = exported.module()
    for batch_size, length in [(2, 7), (1, 1), (3, 20)]:
        input_ids = random_ids(batch_size, length, seed=length)
        torch.testing.assert_close(run(input_ids), model(input_ids).logits)


@torch.no_grad()
def test_an_export_takes_any_padding():
    model = tiny_looped(num_prelude_layers=1)
    inputs = left_pad([random_ids(1, 7)[0], random_ids(1, 4, seed=1)[0]])
    exported = export(Logits(model), inputs, dynamic_shapes={"input_ids": DYNAMIC, "attention_mask": DYNAMIC})
    rows = [random_ids(1, length, seed=length)[0] for length in (5, 12, 3)]
    logits = exported.module()(*left_pad(rows))
    for row, padded in zip(rows, logits, strict=True):
        torch.testing.assert_close(padded[-len(row) :], model(row[None]).logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [make_feedback, make_sleep], ids=["feedback", "sleep"])
def test_a_schedule_of_tokens_is_exported_for_one_shape(make):
    model = make()
    exported = export(Logits(model), (random_ids(2, 11),)).module()
    torch.testing.assert_close(exported(random_ids(2, 11, seed=1)), model(random_ids(2, 11, seed=1)).logits)
    with pytest.raises(AssertionError, match="Guard failed"):
        exported(random_ids(2, 12))
    with pytest.raises(ValueError, match=f"exported {model.config.model_type} model must be fixed"):
        export(Logits(model), (random_ids(2, 11),), dynamic_shapes={"input_ids": DYNAMIC})


@torch.no_grad()
def test_a_sleep_model_is_one_graph_and_a_feedback_model_is_not():
    sleep, feedback = make_sleep(), make_feedback()
    input_ids = random_ids(2, 11)
    compiled = torch.compile(sleep.forward, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_ids=input_ids, use_cache=False).logits, sleep(input_ids).logits)
    compiled = torch.compile(feedback.forward, backend="eager", fullgraph=True)
    with pytest.raises(Unsupported):
        compiled(input_ids=input_ids, use_cache=False)
