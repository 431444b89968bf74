"""PEFT adapters on a feedback model, with its learned vectors trained beside them, as the paper does."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from .feedback_variants import make_feedback
from .model_tester import random_ids


# several blocks of four tokens
INPUT_IDS = random_ids(2, 15)


def train(adapted, num_steps: int = 2) -> None:
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(num_steps):
        adapted(INPUT_IDS, labels=INPUT_IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()


@pytest.mark.parametrize("options", [{}, {"feedback_source": "top"}, {"feedback_init": "prefix"}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
@torch.random.fork_rng()
def test_lora_and_the_learned_vectors(options, checkpointing, tmp_path):
    model = make_feedback(**options)
    expected = model(INPUT_IDS).logits.detach()
    before = model.model.feedback_embedding.weight.detach().clone()
    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["feedback_embedding"])
    adapted = get_peft_model(model, adapter)
    torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)
    if checkpointing:
        adapted.base_model.model.gradient_checkpointing_enable()
    train(adapted)
    trained = adapted(INPUT_IDS).logits.detach()
    assert not torch.allclose(trained, expected, atol=1e-2)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_feedback(**options), tmp_path).eval()
    torch.testing.assert_close(loaded(INPUT_IDS).logits, trained)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(INPUT_IDS).logits, trained, atol=1e-4, rtol=1e-4)
    assert not torch.equal(merged.model.feedback_embedding.weight, before)
