# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Generation with a memory that no step back can undo: what works as everywhere else, and what is refused."""

from typing import Any

from .memory_files import MemoryMixin
from .transformers_seams import GenerationHooks


class MemoryGenerationMixin(MemoryMixin, GenerationHooks):
    """`generate` for models whose cache is a memory, which can be saved and loaded. Such a model is `_is_stateful`."""

    def generation_settings(self: Any, generation_config, **kwargs):
        generation_config, model_kwargs = super().generation_settings(generation_config, **kwargs)
        # of the model that verifies, transformers checks this itself
        if generation_config.is_assistant:
            raise ValueError(
                f"`assistant_model` must not be a {self.config.model_type} model: its memory cannot take back the "
                "tokens that the other model refuses"
            )
        return generation_config, model_kwargs

    def make_generation_cache(self: Any, generation_config, model_kwargs, *args, **kwargs):
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise ValueError(
                f"`cache_implementation` must be 'dynamic' for a {self.config.model_type} model, whose memory has a "
                f"form of its own and does not grow, got {implementation!r}"
            )
        return super().make_generation_cache(generation_config, model_kwargs, *args, **kwargs)

    def init_continuous_batching(self: Any, *args, **kwargs):
        """Refused: the paged cache has keys and values of tokens, and no memory.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"`generate_batch` (continuous batching) does not work with a {self.config.model_type} model: its paged "
            "cache has no place for a memory. `generate` takes batches too."
        )


__all__ = ["MemoryGenerationMixin"]
