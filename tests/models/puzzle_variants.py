"""Tiny puzzle models, one of every published kind."""

import torch
from torch import nn

from hf_loop import HierarchicalForPuzzle, HierarchicalPuzzleConfig


CELLS, VOCAB_SIZE = 9, 6
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "max_position_embeddings": 32,
}
# few cycles: over three segments random mixers amplify what rounding does by more than a single's precision
MLP = {
    "token_mixer": "mlp",
    "mixer_intermediate_size": 20,
    "num_puzzle_tokens": 3,
    "max_position_embeddings": 12,
    "num_loops": 2,
    "low_cycles": 2,
    "num_hidden_layers": 2,
}
VARIANTS = {
    "hrm": ("hrm", {}),
    "hrm, learned positions": ("hrm", {"position_embedding": "learned"}),
    "trm": ("trm", {}),
    "trm, mlp": ("trm", MLP),
    "trm, no positions": ("trm", {"position_embedding": "none"}),
    "trm, no puzzle": ("trm", {"num_puzzles": 0, "num_puzzle_tokens": 0}),
    "trm, wide puzzle": ("trm", {"num_puzzles": 3, "num_puzzle_tokens": 2, "puzzle_embedding_size": 40}),
    "trm, pre-norm": ("trm", {"norm_placement": "pre", "num_loops": 2, "low_cycles": 2}),
    "trm, mlp, pre-norm": ("trm", {**MLP, "norm_placement": "pre"}),
    "urm": ("urm", {}),
    "plain": ("plain", {}),
}


def tiny_puzzle_model(name: str = "trm", seed: int = 0, **overrides) -> HierarchicalForPuzzle:
    """A model of a preset at width 32, in evaluation mode; every weight is drawn, so that all of them matter."""
    preset, fields = VARIANTS[name]
    torch.manual_seed(seed)
    model = HierarchicalForPuzzle(
        HierarchicalPuzzleConfig.from_preset(preset, **{**SIZES, **fields, **overrides})
    ).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "halt_head" in parameter_name or "puzzle_embeddings" in parameter_name:
                nn.init.normal_(parameter, std=0.5)
    return model


def puzzles(batch_size: int = 3, seed: int = 0, num_cells: int = CELLS) -> torch.Tensor:
    """Random cells `[B, T]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB_SIZE, (batch_size, num_cells), generator=generator)
