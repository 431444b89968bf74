"""Ordinary PEFT adapters on the shared layers: train, save, load, disable, merge."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from .loop_lora_models import tiny_loop_lora
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


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "bias": "lora_only"}], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt_neox"])
def test_an_adapter_beside_per_loop_lora_merges_exactly(options, model_type):
    model = tiny_loop_lora(model_type, num_prelude_layers=1, num_coda_layers=1)
    expected = model(INPUT_IDS).logits
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=True, **options)
    adapted = get_peft_model(model, adapter)
    torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)
    # the adapter alone is trained, under checkpointing
    assert not any(parameter.requires_grad for parameter in model.model.loop_lora.parameters())
    adapted.train()
    adapted.base_model.model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adapted(INPUT_IDS, labels=INPUT_IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    trained = {num_loops: adapted(INPUT_IDS, num_loops=num_loops).logits for num_loops in (1, 3, 5)}
    assert not torch.allclose(trained[3], expected, atol=1e-2)
    if "bias" not in options:
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)
    merged = adapted.merge_and_unload()
    for num_loops in trained:
        logits = merged(INPUT_IDS, num_loops=num_loops).logits
        torch.testing.assert_close(logits, trained[num_loops], atol=1e-5, rtol=1e-5)


def test_target_names_do_not_reach_the_updates():
    for target_modules in ("all-linear", r".*(q_proj|down_proj)", ["q_proj", "down_proj"]):
        adapted = get_peft_model(tiny_loop_lora(), LoraConfig(r=2, target_modules=target_modules))
        assert not any("loop_lora" in name for name in adapted.base_model.targeted_module_names)


def test_replicated_layers_are_refused():
    # merging them would add every replica's adapter to the one weight that they share
    replicated = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 3], [1, 4]])
    for model in (tiny_looped(), tiny_looped().model):
        with pytest.raises(ValueError, match="Could not locate the layers"):
            get_peft_model(model, replicated)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_into_tied_embeddings_warns(target):
    adapted = get_peft_model(tiny_looped(tie_word_embeddings=True), LoraConfig(r=2, target_modules=[target]))
    with pytest.warns(UserWarning, match="tied_target_modules"):
        adapted.merge_adapter()


def test_a_copied_norm_cannot_differ_per_loop():
    adapter = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["input_layernorm"])
    adapted = get_peft_model(tiny_loop_lora(), adapter)
    with pytest.raises(ValueError, match="cannot reach the weight of ModulesToSaveWrapper"):
        adapted(INPUT_IDS)
    adapted = get_peft_model(tiny_loop_lora(loop_lora_vectors=False), adapter)
    expected = tiny_loop_lora(loop_lora_vectors=False)(INPUT_IDS).logits
    torch.testing.assert_close(adapted(INPUT_IDS).logits, expected)


def test_the_adapter_must_be_merged_before_the_updates():
    model = tiny_loop_lora()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    layer = model.model.core_layers()[0]
    with pytest.raises(ValueError, match="no 'self_attn.q_proj.weight': unload or merge its adapter"):
        model.model.loop_lora.merged_state_dict(layer, 0, 0)
    adapted.merge_and_unload()
    layer.load_state_dict(model.model.loop_lora.merged_state_dict(layer, 0, 0))
