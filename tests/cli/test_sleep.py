"""A plain checkpoint that is made to sleep, and what it writes with a memory that is kept."""

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM


IDS = torch.tensor([[1, 4, 7, 5]])


@torch.no_grad()
def test_a_checkpoint_is_made_to_sleep_and_writes(hf_loop, plain_folder, tmp_path):
    arguments = ["--family", "sleep", "--set", "sleep_window=4", "--set", "num_sleep_passes=3"]
    arguments += ["--set", "eviction=sliding", "--set", "fast_weight_rule=delta"]
    code, output, _ = hf_loop("retrofit", plain_folder, tmp_path / "sleeper", *arguments)
    assert code == 0
    assert "windows of 4 tokens, 3 passes, sliding eviction, 1 fast-weight layers inserted" in output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sleeper")
    assert (model.config.fast_weight_rule, model.config.memory_layers) == ("delta", [2])
    assert torch.equal(model(IDS).logits, LlamaForCausalLM.from_pretrained(plain_folder)(IDS).logits)

    memory = tmp_path / "memory.safetensors"
    writing = ["--max-new-tokens", 3]
    assert hf_loop("generate", tmp_path / "sleeper", "one two", *writing, "--save-memory", memory)[0] == 0
    assert model.load_memory(memory).layers[0].seen[0] > 3
    assert hf_loop("generate", tmp_path / "sleeper", "three", *writing, "--memory", memory)[0] == 0


def test_a_sleeper_is_not_made_to_sleep_again(hf_loop, plain_folder, tmp_path):
    assert hf_loop("retrofit", plain_folder, tmp_path / "sleeper", "--family", "sleep")[0] == 0
    code, _, error = hf_loop("retrofit", tmp_path / "sleeper", tmp_path / "again", "--family", "sleep")
    assert code != 0
    assert "sleep model already" in error
