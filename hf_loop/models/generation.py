# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation with a chosen number of loops or passes, and caches sized for it."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from .checks import check_count, check_depth_names
from .decoding_seams import GenerationHooks
from .module_seams import module_view
from .transformers_seams import as_before_on_error, is_prompted, is_scored_by_trl


class RecurrentGenerationMixin(GenerationHooks):
    """Mixin with `generate(..., num_loops=n)`, and the same for every other name in `depth_names`.

    The value comes from the call, else from its `GenerationConfig`, else from the model. For models whose cache is a
    memory (`_is_stateful`), it refuses kinds of generation that remove tokens from the cache.
    """

    config: Any
    _is_stateful: bool
    # number of loops that `generate` of a view always uses
    pinned_num_loops: int | None = None

    @property
    def depth_names(self) -> tuple[str, ...]:
        """Names of the arguments of `generate` that set the depth."""
        return ("num_loops",) if self.config.has_loops else ()

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Names of further arguments of `generate` that belong to the model, and are no numbers of loops or passes."""
        return ()

    def generation_settings(self: Any, generation_config, **kwargs):
        own_names = (*self.depth_names, *self.setting_names)
        given = {name: kwargs.pop(name, None) for name in own_names}
        if kwargs.get("num_loops") is not None:
            raise ValueError(f"`num_loops` is no keyword of a {self.config.model_type} model{self.about_loops}")
        generation_config, model_kwargs = super().generation_settings(generation_config, **kwargs)
        check_depth_names(vars(generation_config), self.argument_names, "generation configuration")
        if self._is_stateful and generation_config.is_assistant:
            # transformers itself checks the model that verifies
            raise ValueError(
                f"`assistant_model` must not be a {self.config.model_type} model: the tokens that the other model "
                "refuses cannot be removed from its memory"
            )
        for name, value in given.items():
            # `GenerationConfig.update` keeps arguments for which it has a field: pass them to `forward` all the same
            value = getattr(generation_config, name, None) if value is None else value
            if name == "num_loops" and self.pinned_num_loops is not None:
                value = self.pinned_num_loops
            if value is not None:
                model_kwargs[name] = check_count(name, value) if name in self.depth_names else value
        num_loops = model_kwargs.get("num_loops")
        if num_loops is not None and self.training and num_loops != self.config.num_loops and is_scored_by_trl(self):
            raise ValueError(
                f"`num_loops` must be that of the model's configuration, {self.config.num_loops}, while TRL "
                f"trains it, got {num_loops}: the trainer would score its samples at another depth. Load the model "
                f"with `num_loops={num_loops}` (in `model_init_kwargs`, which also apply to the reference model)"
            )
        return generation_config, model_kwargs

    def make_generation_cache(self: Any, generation_config, model_kwargs, *args, **kwargs):
        implementation = generation_config.cache_implementation
        if self._is_stateful and implementation not in (None, "dynamic"):
            raise ValueError(
                f"`cache_implementation` must be 'dynamic' for a {self.config.model_type} model, whose memory does "
                f"not grow, got {implementation!r}"
            )
        view, num_loops = self, model_kwargs.get("num_loops")
        if num_loops is not None and num_loops != self.config.num_loops:
            view = self.with_num_loops(num_loops)
        return super(RecurrentGenerationMixin, view).make_generation_cache(
            generation_config, model_kwargs, *args, **kwargs
        )

    def make_candidate_generator(self: Any, generation_config, model_kwargs, **kwargs):
        # the model that drafts uses its own depth; a plain decoder refuses `num_loops`
        own_names = (*self.depth_names, *self.setting_names)
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in own_names}
        for name in own_names:
            if hasattr(generation_config, name):
                generation_config = copy.deepcopy(generation_config)
                delattr(generation_config, name)
        if generation_config.assistant_early_exit is not None:
            check_early_exit(self.config, generation_config.assistant_early_exit)
        return super().make_candidate_generator(generation_config, model_kwargs, **kwargs)

    # `inputs_embeds` is named because `generate` looks for it in the signature
    def prepare_inputs_for_generation(self: Any, *args, inputs_embeds: torch.Tensor | None = None, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)
        if is_prompted(self) and "cache" in inputs:
            # PEFT looks for the cache under its older name; without it, it would add the prompt before every token
            inputs["past_key_values"] = inputs.pop("cache")
        return inputs

    def with_num_loops(self: Any, num_loops: int):
        """Make a view of the model with another number of loops, which `generate` and `generate_batch` then use.

        The view shares all weights. As `assistant_model` it drafts with fewer loops, and this model verifies with all:
        `model.generate(**inputs, assistant_model=model.with_num_loops(1))`.

        Args:
            num_loops (`int`): number of loops of the view; it overrides a `num_loops` given to its `generate`.

        Raises:
            ValueError: if `num_loops` is not a positive integer.
        """
        config = self.config.with_num_loops(num_loops)
        # the headless model too, as some trainers run it directly
        headless: Any = module_view(self.base_model, is_lenient=True)
        view: Any = module_view(self, {self.base_model_prefix: headless}, is_lenient=True)
        view.config = headless.config = config
        view.pinned_num_loops = num_loops
        return view

    def init_continuous_batching(self, generation_config: GenerationConfig | None = None, *args, **kwargs):
        """Start continuous batching as transformers does, with `num_loops` of `generation_config` or of the model.

        Raises:
            ValueError: if the model's cache is a memory, which a paged cache cannot hold.
        """
        if self._is_stateful:
            raise ValueError(
                f"`generate_batch` (continuous batching) does not work with a {self.config.model_type} model: its "
                "paged cache cannot hold a memory. Use `generate`, which takes batches too"
            )
        view: Any = self
        num_loops = getattr(generation_config or self.generation_config, "num_loops", None)
        if num_loops is not None and self.config.has_loops and num_loops != self.config.num_loops:
            view = self.with_num_loops(check_count("num_loops", num_loops))
        with as_before_on_error(view):
            return super(RecurrentGenerationMixin, view).init_continuous_batching(generation_config, *args, **kwargs)

    @contextmanager
    def continuous_batching_context_manager(self: Any, *args, **kwargs) -> Generator[Any]:
        """Run continuous batching as transformers does. After an error the model is what it was before."""
        with as_before_on_error(self), super().continuous_batching_context_manager(*args, **kwargs) as manager:
            yield manager

    def generate_batch(self, inputs, generation_config: GenerationConfig | None = None, *args, **kwargs):
        """Run transformers' continuous batching, with a further keyword argument `num_loops`."""
        num_loops = kwargs.pop("num_loops", None)
        if num_loops is not None:
            config: Any = copy.deepcopy(generation_config or self.generation_config)
            config.num_loops = check_count("num_loops", num_loops)
            generation_config = config
        return super().generate_batch(inputs, generation_config, *args, **kwargs)


def check_early_exit(config: Any, num_slots: int) -> None:
    """Check an `assistant_early_exit`.

    Raises:
        ValueError: if it is not the number of layer calls of a whole number of loops.
    """
    try:
        copy.deepcopy(config).num_hidden_layers = num_slots
    except ValueError as error:
        raise ValueError(
            f"`assistant_early_exit` must be the number of layer calls of a whole number of loops, such as "
            f"{config.with_num_loops(1).num_hidden_layers} for one loop, got {num_slots!r}"
        ) from error


__all__ = ["RecurrentGenerationMixin"]
