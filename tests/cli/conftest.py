"""Small model folders for the commands, and a way to run them."""

import sys

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from hf_loop.cli.main import main
from hf_loop.models import LoopedConfig, LoopedForCausalLM
from hf_loop.tasks import shell_game


@pytest.fixture
def hf_loop(monkeypatch, capsys):
    """Run a command as the console script does and return its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-loop", *map(str, arguments)])
        # what the libraries wrote while a fixture made a model is not the command's
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tokenizer():
    return shell_game(1, 1)[1]


@pytest.fixture(scope="session")
def backbone_config(tokenizer):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


@pytest.fixture
def plain_folder(tmp_path, tokenizer, backbone_config):
    """A Llama checkpoint that is not looped."""
    folder = tmp_path / "plain"
    set_seed(0)
    LlamaForCausalLM(backbone_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def looped_folder(tmp_path, tokenizer, backbone_config):
    """A looped checkpoint with a tokenizer."""
    folder = tmp_path / "looped"
    set_seed(0)
    config = LoopedConfig(backbone_config=backbone_config, num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    LoopedForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
