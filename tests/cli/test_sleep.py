"""A plain checkpoint that is made to sleep, and what it writes with a memory that is kept."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM


IDS = torch.tensor([[1, 4, 7, 5]])


@torch.no_grad()
def test_a_checkpoint_is_made_to_sleep_and_writes(hf_loop, plain_folder, tmp_path):
    arguments = ["--family", "sleep", "--window", 4, "--passes", 3, "--eviction", "sliding", "--rule", "delta"]
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


def test_an_option_of_another_family_is_refused(hf_loop, plain_folder, tmp_path):
    for arguments, reason in (
        (["--family", "sleep", "--num-loops", 3], "`num_loops` is no option of the family 'sleep'"),
        (["--window", 3], "`sleep_window` is no option of the family 'looped': it belongs to 'sleep'"),
    ):
        code, _, error = hf_loop("retrofit", plain_folder, tmp_path / "out", *arguments)
        assert code != 0
        assert reason in error
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["sleep"])
def test_a_sleeper_is_not_made_to_sleep_again(hf_loop, plain_folder, tmp_path, family):
    assert hf_loop("retrofit", plain_folder, tmp_path / "sleeper", "--family", family)[0] == 0
    code, _, error = hf_loop("retrofit", tmp_path / "sleeper", tmp_path / "again", "--family", family)
    assert code != 0
    assert "sleep model already" in error
