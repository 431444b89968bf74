# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Presets of published hierarchical models, from their papers and released configurations."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The fields of a published model's configuration.

    Args:
        schedule (`dict[str, Any]`): fields of the configuration itself.
        layers (`dict[str, Any]`): fields of the backbone's configuration.
    """

    schedule: dict[str, Any]
    layers: dict[str, Any]

    def backbone(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the backbone's configuration with `overrides`, and widths computed from the sizes."""
        fields = self.layers | overrides
        if fields["model_type"] == "hrm_backbone":
            fields.setdefault("intermediate_size", gated_width(fields["hidden_size"]))
            if "num_attention_heads" in overrides:
                fields["num_key_value_heads"] = overrides.get("num_key_value_heads", fields["num_attention_heads"])
            if fields.get("token_mixer") == "mlp":
                if "max_position_embeddings" not in overrides:
                    raise ValueError(
                        "`token_mixer='mlp'` needs `max_position_embeddings`, the number of cells and puzzle tokens"
                    )
                fields.setdefault("mixer_intermediate_size", gated_width(fields["max_position_embeddings"]))
                if "position_embedding" not in overrides:
                    fields["position_embedding"] = "none"
        return fields


def gated_width(size: int, expansion: float = 4) -> int:
    """Return the width of a gated MLP with as many weights as a plain one of `expansion` times its size, rounded up to
    a multiple of 256."""
    return -(round(expansion * size * 2 / 3) // -256) * 256


# vocabulary of 9x9 Sudoku: padding, blank, nine digits
_LAYERS: dict[str, Any] = {
    "model_type": "hrm_backbone",
    "vocab_size": 11,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "bos_token_id": None,
    "eos_token_id": None,
}
_PUZZLE: dict[str, Any] = {
    "injection": "add",
    "state_init": "random",
    "stack_norm": "none",
    "cell_loss": "stablemax",
    "num_puzzles": 1,
    "num_puzzle_tokens": 1,
}
_SHARED: dict[str, Any] = {"shared_stack": True, "gradient": "last_cycle", "halting": "binary"}

PRESETS: dict[str, Preset] = {
    "hrm": Preset(
        _PUZZLE | {"num_loops": 2, "low_cycles": 2, "gradient": "one_step", "halting": "q_learning"},
        _LAYERS | {"num_hidden_layers": 8},
    ),
    "trm": Preset(
        _PUZZLE | _SHARED | {"num_loops": 3, "low_cycles": 6, "num_puzzle_tokens": 16},
        _LAYERS | {"num_hidden_layers": 2},
    ),
    "urm": Preset(
        _PUZZLE | _SHARED | {"num_loops": 2, "low_cycles": 6, "num_latent_states": 1},
        _LAYERS | {"num_hidden_layers": 4, "convolution_size": 2},
    ),
    # one pass over all layers, without recurrence
    "plain": Preset(
        _PUZZLE
        | {"num_loops": 1, "low_cycles": 1, "num_latent_states": 1, "shared_stack": True, "state_init": "zeros"}
        | {"max_segments": 1},
        _LAYERS | {"num_hidden_layers": 8},
    ),
    "hrm_text": Preset(
        {"num_loops": 2, "low_cycles": 3, "stack_norm": "final", "gradient": "last_k", "backprop_low_cycles": [2]},
        {"model_type": "hrm_text"},
    ),
}


def preset_fields(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"`name` must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


__all__ = ["PRESETS", "preset_fields"]
