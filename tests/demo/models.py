"""Tiny models of every kind of page, with random weights that answer otherwise at every depth."""

from typing import Any

import torch
from transformers import LlamaConfig, set_seed

from hf_loop import (
    FeedbackConfig,
    FeedbackForCausalLM,
    HierarchicalConfig,
    HierarchicalForCausalLM,
    HierarchicalForPuzzle,
    HierarchicalPuzzleConfig,
    LoopedConfig,
    LoopedForCausalLM,
    SleepConfig,
    SleepForCausalLM,
)
from hf_loop.tasks import shell_game, sudoku


TOKENIZER = shell_game(1, 1)[1]
PUZZLE_TOKENIZER = sudoku(1, 1, size=4)[1]
PROMPT = "ball:2 1<->2 2<->3 1<->3 2<->3 1<->2"
BLOCK = 4


def backbone(num_hidden_layers: int = 3) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        initializer_range=0.8,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=TOKENIZER.bos_token_id,
        # random weights would end a text at any token
        eos_token_id=None,
    )


def looped_config(**fields: Any) -> LoopedConfig:
    layers = {"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 4}
    return LoopedConfig(backbone_config=backbone(), **{**layers, **fields})


MODELS = {
    "looped": lambda: LoopedForCausalLM(looped_config()),
    "gated": lambda: LoopedForCausalLM(looped_config(exit_gate=True)),
    "feedback": lambda: FeedbackForCausalLM(
        FeedbackConfig(backbone_config=backbone(), block_size=BLOCK, num_memory_segments=1, feedback_length=2)
    ),
    "feedback over looped": lambda: FeedbackForCausalLM(
        FeedbackConfig(backbone_config=looped_config(), block_size=BLOCK, num_memory_segments=1, feedback_length=2)
    ),
    "sleep": lambda: SleepForCausalLM(SleepConfig(backbone_config=backbone(), sleep_window=BLOCK)),
    "hierarchical": lambda: HierarchicalForCausalLM(
        HierarchicalConfig(backbone_config=backbone(), num_loops=2, shared_stack=True)
    ),
}


def make_model(kind: str) -> Any:
    set_seed(0)
    return MODELS[kind]().eval()


def make_solver(**fields: Any) -> Any:
    """A puzzle model whose answers change from segment to segment."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(PUZZLE_TOKENIZER),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_loops": 1,
        "low_cycles": 1,
        "max_segments": 4,
        "num_puzzles": 0,
        "num_puzzle_tokens": 0,
    }
    return HierarchicalForPuzzle(HierarchicalPuzzleConfig.from_preset("trm", **{**sizes, **fields})).eval()


def save(folder: Any, model: Any, tokenizer: Any = TOKENIZER) -> Any:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
