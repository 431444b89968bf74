# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of private parts of transformers in `generate`: its steps, what it prepares, and its first step."""

import copy
from typing import Any

import torch
from transformers import Cache, GenerationConfig
from transformers.generation import GenerationMixin

from .transformers_seams import CACHE_NAME


class GenerationHooks(GenerationMixin):
    """Hooks for the steps of `generate` that our models change, under public names."""

    if CACHE_NAME == "past_key_values":

        def generate(self, *args, **kwargs):
            # later releases take both names
            if isinstance(kwargs.get("cache"), Cache):
                kwargs["past_key_values"] = kwargs.pop("cache")
            return super().generate(*args, **kwargs)

    def generation_settings(
        self: Any, generation_config: GenerationConfig | None, *args, **kwargs
    ) -> tuple[Any, dict[str, Any]]:
        """Return the configuration of a call to `generate`, and the arguments that go to the forward pass."""
        return super()._prepare_generation_config(generation_config, *args, **kwargs)

    def make_generation_cache(self: Any, generation_config: Any, model_kwargs: dict[str, Any], *args, **kwargs) -> Any:
        """Put the initial cache of a call to `generate` into `model_kwargs`."""
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def make_logits_processors(self: Any, generation_config: Any, *args, **kwargs) -> Any:
        """Make the list of processors of a call to `generate`, whose `model_kwargs` are among the keywords."""
        return super()._get_logits_processor(generation_config, *args, **kwargs)

    def next_model_kwargs(self: Any, outputs: Any, model_kwargs: dict[str, Any], *args, **kwargs) -> dict[str, Any]:
        """Return the arguments of the forward pass for the next token."""
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def decode(self: Any, input_ids: torch.Tensor, *args, **kwargs) -> Any:
        """Generate by greedy search or sampling, from what `generate` has prepared."""
        return super()._sample(input_ids, *args, **kwargs)

    def make_candidate_generator(self: Any, generation_config: Any, model_kwargs: dict[str, Any], **kwargs) -> Any:
        """Make the generator of candidate tokens for assisted generation, from this model's own settings."""
        kwargs |= {"generation_config": generation_config, "model_kwargs": model_kwargs}
        return super()._get_candidate_generator(**kwargs)

    # whether transformers passes these arguments by position or by name depends on the release
    def _prepare_generation_config(self, generation_config, *args, **kwargs):
        return self.generation_settings(generation_config, *args, **kwargs)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        return self.make_generation_cache(generation_config, model_kwargs, *args, **kwargs)

    def _get_logits_processor(self, generation_config, *args, **kwargs):
        return self.make_logits_processors(generation_config, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        return self.next_model_kwargs(outputs, model_kwargs, *args, **kwargs)

    def _sample(self, input_ids, *args, **kwargs):
        return self.decode(input_ids, *args, **kwargs)

    def _get_candidate_generator(self, **kwargs):  # ty: ignore[incompatible-method-override]
        return self.make_candidate_generator(**kwargs)


def logits_processors(model: Any, generation_config: GenerationConfig, num_prompt_tokens: int, device: Any) -> Any:
    """Return what `generate` applies to the logits of one sequence before it chooses a token."""
    generation_config = copy.deepcopy(generation_config)
    model._prepare_special_tokens(generation_config, True, device=device)
    return model._get_logits_processor(generation_config, num_prompt_tokens, device=device, model_kwargs={})


def prefill(model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]) -> Any:
    """Run the prompt of a call to `generate`, at once or in chunks, and return the outputs of its last tokens."""
    return model._prefill(
        input_ids, generation_config, model_kwargs, is_first_iteration=not generation_config.is_assistant
    )


def pad_token_of(generation_config: Any, device: torch.device) -> torch.Tensor | None:
    """Return the token that fills finished rows in a call to `generate`, by default that of the end of a text."""
    pad_token = generation_config._pad_token_tensor
    return None if pad_token is None else pad_token.to(device)


__all__ = ["GenerationHooks", "logits_processors", "pad_token_of", "prefill"]
