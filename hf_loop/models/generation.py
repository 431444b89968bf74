"""Generation with a loop count: which calls run how many loops, and caches sized for them."""

import copy

from transformers import GenerationConfig
from transformers.generation import GenerationMixin

from .checks import check_positive_int


class LoopedGenerationMixin(GenerationMixin):
    """`generate(..., num_loops=n)`, from the call, a `GenerationConfig`, or the model's configuration, in that order."""

    def _prepare_generation_config(self, generation_config, **kwargs):
        num_loops = kwargs.pop("num_loops", None)
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        # `GenerationConfig.update` keeps an argument it has a field for: hand it back to the forward pass
        if num_loops is None:
            num_loops = getattr(generation_config, "num_loops", None)
        num_loops = getattr(self, "_pinned_num_loops", num_loops)
        if num_loops is not None:
            model_kwargs["num_loops"] = check_positive_int("num_loops", num_loops)
        return generation_config, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        num_loops = model_kwargs.get("num_loops")
        if num_loops is None or num_loops == self.config.num_loops:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        view = self.with_num_loops(num_loops)
        return super(LoopedGenerationMixin, view)._prepare_cache_for_generation(
            generation_config, model_kwargs, *args, **kwargs
        )

    def with_num_loops(self, num_loops: int):
        """The same weights under another loop count, which `generate` and `generate_batch` then keep to.

        Costs no memory. As `assistant_model` it drafts with fewer loops what this model verifies with all of them:
        `model.generate(**inputs, assistant_model=model.with_num_loops(1))`.

        Args:
            num_loops (`int`): loops of every call to the returned model; a `num_loops` argument is overridden.

        Raises:
            ValueError: `num_loops` is not a positive integer.
        """
        view = copy.copy(self)
        view.config = self.config.with_num_loops(num_loops)
        view._pinned_num_loops = num_loops
        return view

    def init_continuous_batching(self, generation_config: GenerationConfig | None = None, **kwargs):
        """As transformers', with the loop count of `generation_config` or of the model's own."""
        num_loops = getattr(generation_config or self.generation_config, "num_loops", None)
        if num_loops is None or num_loops == self.config.num_loops:
            return super().init_continuous_batching(generation_config, **kwargs)
        view = self.with_num_loops(check_positive_int("num_loops", num_loops))
        return super(LoopedGenerationMixin, view).init_continuous_batching(generation_config, **kwargs)

    def generate_batch(self, inputs, generation_config: GenerationConfig | None = None, num_loops=None, **kwargs):
        """As transformers' continuous batching, with the loop count as an argument."""
        if num_loops is not None:
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            generation_config.num_loops = check_positive_int("num_loops", num_loops)
        return super().generate_batch(inputs, generation_config, **kwargs)
