# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private parts of transformers in a decoding method: what `generate` prepares, and its first step."""

from typing import Any

import torch


def prefill(model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> Any:
    """Run the prompt of a call to `generate`, at once or in chunks, and return the outputs of its last tokens."""
    return model._prefill(
        input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
    )


def pad_token_of(generation_config: Any, device: torch.device) -> torch.Tensor | None:
    """Return the token that fills finished rows in a call to `generate`, by default that of the end of a text."""
    pad_token = generation_config._pad_token_tensor
    return None if pad_token is None else pad_token.to(device)


__all__ = ["pad_token_of", "prefill"]
