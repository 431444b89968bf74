# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation with a looped model: exits and cache policies."""

from typing import Any

from .loop_cache import LoopCache
from .transformers_seams import CACHE_NAMES, named_cache


class LoopedGenerationMixin:
    """Mixin with `generate(..., exit_criterion=, exit_threshold=, min_loops=, cache_policy=)`."""

    config: Any
    setting_names = ("exit_criterion", "exit_threshold", "cache_policy")

    @property
    def depth_names(self: Any) -> tuple[str, ...]:
        return (*super().depth_names, "min_loops")

    def make_generation_cache(self: Any, generation_config, model_kwargs, *args, **kwargs):
        given = [name for name in ("exit_criterion", "cache_policy") if model_kwargs.get(name) is not None]
        implementation = generation_config.cache_implementation
        if given and implementation not in (None, "dynamic"):
            raise ValueError(f"`cache_implementation` must be 'dynamic' with `{given[0]}`, got {implementation!r}")
        has_cache = any(model_kwargs.get(name) is not None for name in CACHE_NAMES)
        if not given or has_cache or not generation_config.use_cache:
            return super().make_generation_cache(generation_config, model_kwargs, *args, **kwargs)
        config = self.config.with_num_loops(model_kwargs.get("num_loops", self.config.num_loops))
        model_kwargs |= named_cache(LoopCache(config, model_kwargs.get("cache_policy")))


__all__ = ["LoopedGenerationMixin"]
