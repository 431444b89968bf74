"""Ordinary PEFT adapters on the shared layers: train, save, load, disable, merge."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from .looped_variants import tiny_looped
from .model_tester import random_ids


INPUT_IDS = random_ids(2, 8)


@pytest.mark.parametrize("use_dora", [False, True])
def test_one_adapter_serves_every_loop(use_dora, tmp_path):
    model = tiny_looped(num_prelude_layers=1, num_coda_layers=1)
    expected = model(INPUT_IDS).logits
    adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=True, use_dora=use_dora)
    adapted = get_peft_model(model, adapter)
    torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)

    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()
    for _ in range(2):
        adapted(INPUT_IDS, labels=INPUT_IDS, num_loops=4, num_backprop_loops=2).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    trained = adapted(INPUT_IDS, num_loops=5).logits
    assert not torch.allclose(trained, model(INPUT_IDS).logits)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)
    generated = adapted.generate(input_ids=INPUT_IDS, num_loops=5, max_new_tokens=4, do_sample=False)

    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_looped(num_prelude_layers=1, num_coda_layers=1), tmp_path).eval()
    torch.testing.assert_close(loaded(INPUT_IDS, num_loops=5).logits, trained)
    # the same adapter was added in every loop, so adding it to the shared weights once is exact
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(INPUT_IDS, num_loops=5).logits, trained, atol=1e-4, rtol=1e-4)
    assert torch.equal(
        merged.generate(INPUT_IDS, num_loops=5, max_new_tokens=4, do_sample=False)[:, :9], generated[:, :9]
    )
