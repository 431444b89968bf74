# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Generation with a looped model: exits, cache policies, drafts and the contrast with an earlier loop."""

from typing import Any

import torch

from .backbone import Backbone
from .compile_seams import CompiledGeneration
from .loop_cache import LoopCache
from .loop_contrast import LoopContrast, check_weight
from .module_seams import module_view
from .speculation import DRAFT_NAMES, check_drafting, decode_with_drafts
from .transformers_seams import CACHE_NAMES, create_masks_for_generate, named_cache, takes_cache


class LoopedGenerationMixin(CompiledGeneration):
    """Mixin with further arguments of `generate`.

    These are `exit_criterion`, `exit_threshold`, `min_loops` (see `exits.py`), `cache_policy` (see `loop_cache.py`),
    `contrast_loop`, `contrast_weight` (see `loop_contrast.py`), `draft_loops` and `num_draft_tokens` (see
    `speculation.py`). They may also come from the `GenerationConfig`. Where transformers compiles the decoding of
    tokens, the parts of the model are compiled, see `compiled_depth.py`.
    """

    config: Any
    setting_names = ("exit_criterion", "exit_threshold", "cache_policy")

    @property
    def depth_names(self: Any) -> tuple[str, ...]:
        return (*super().depth_names, "min_loops", "contrast_loop")

    def generation_settings(self: Any, generation_config, contrast_weight: float | None = None, **kwargs):
        drafting = {name: kwargs.pop(name, None) for name in DRAFT_NAMES}
        generation_config, model_kwargs = super().generation_settings(generation_config, **kwargs)
        if contrast_weight is None:
            contrast_weight = getattr(generation_config, "contrast_weight", None)
        contrast_weight = check_weight(contrast_weight, model_kwargs.get("contrast_loop"))
        if contrast_weight == 0:
            model_kwargs.pop("contrast_loop", None)
        else:
            # a copy of the caller's, from which `make_logits_processors` takes it
            generation_config.contrast_weight = contrast_weight
        # `decode` takes them from there
        vars(generation_config).update({name: value for name, value in drafting.items() if value is not None})
        check_drafting(generation_config, model_kwargs, model_kwargs.get("num_loops", self.config.num_loops))
        return generation_config, model_kwargs

    def make_logits_processors(self: Any, generation_config, *args, model_kwargs=None, **kwargs):
        processors = super().make_logits_processors(generation_config, *args, model_kwargs=model_kwargs, **kwargs)
        for name in ("contrast_loop", "draft_loops"):
            if model_kwargs is None and getattr(generation_config, name, None) is not None:
                raise ValueError(f"`{name}` does not work with `generate_batch`: `generate` takes batches too")
        if model_kwargs is not None and model_kwargs.get("contrast_loop") is not None:
            # the others change what it makes; between the steps it travels with the arguments of `forward`
            model_kwargs["loop_contrast"] = LoopContrast(generation_config.contrast_weight)
            processors.insert(0, model_kwargs["loop_contrast"])
        return processors

    @takes_cache
    def create_masks_for_generate(
        self: Any,
        config: Any,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Any,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ):
        """Make the masks for a static cache, which `generate` prepares outside of the compiled forward pass, as the
        decoder has them: for some layer types transformers would make others."""
        return create_masks_for_generate(
            config=Backbone(self.model).mask_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **named_cache(cache),
            position_ids=position_ids,
            block_sequence_ids=kwargs.get("block_sequence_ids"),
        )

    def next_model_kwargs(self: Any, outputs, model_kwargs, *args, **kwargs):
        if "loop_contrast" in model_kwargs:
            model_kwargs["loop_contrast"].earlier_logits = outputs.contrast_logits[:, -1]
        return super().next_model_kwargs(outputs, model_kwargs, *args, **kwargs)

    def make_candidate_generator(self: Any, generation_config, model_kwargs, **kwargs):
        draft_loops = getattr(generation_config, "draft_loops", None)
        if draft_loops is not None:
            raise ValueError(f"`draft_loops` must be None beside an `assistant_model`, got {draft_loops!r}")
        if model_kwargs.get("contrast_loop") is not None:
            raise ValueError(
                f"`contrast_loop` must be None in assisted generation, got {model_kwargs['contrast_loop']!r}"
            )
        return super().make_candidate_generator(generation_config, model_kwargs, **kwargs)

    # `inputs_embeds` is named because `generate` looks for it in the signature
    def prepare_inputs_for_generation(self: Any, *args, inputs_embeds: torch.Tensor | None = None, **kwargs):
        kwargs.pop("loop_contrast", None)
        return super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)

    def decode(self: Any, input_ids, *args, **kwargs):
        if getattr(kwargs["generation_config"], "draft_loops", None) is None:
            return super().decode(input_ids, *args, **kwargs)
        return decode_with_drafts(self, input_ids, *args, **kwargs)

    def make_generation_cache(self: Any, generation_config, model_kwargs, *args, **kwargs):
        given = [name for name in ("exit_criterion", "cache_policy") if model_kwargs.get(name) is not None]
        implementation = generation_config.cache_implementation
        if given and implementation not in (None, "dynamic"):
            raise ValueError(f"`cache_implementation` must be 'dynamic' with `{given[0]}`, got {implementation!r}")
        has_cache = any(model_kwargs.get(name) is not None for name in CACHE_NAMES)
        is_dynamic = implementation in (None, "dynamic") and not generation_config.is_assistant
        if not is_dynamic or has_cache or not generation_config.use_cache:
            return super().make_generation_cache(generation_config, model_kwargs, *args, **kwargs)
        config = self.config.with_num_loops(model_kwargs.get("num_loops", self.config.num_loops))
        model_kwargs |= named_cache(LoopCache(config, model_kwargs.get("cache_policy")))

    def make_compiled_call(self: Any, compiled_call, compile_config):
        # a view, so that the prompt and other threads run this model as it is
        headless: Any = module_view(self.base_model, is_lenient=True)
        headless.parts = self.base_model.generation_parts.with_config(compile_config)
        return module_view(self, {self.base_model_prefix: headless}, is_lenient=True).__call__


__all__ = ["LoopedGenerationMixin"]
