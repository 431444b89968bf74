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
"""The hierarchical language model (HRM, https://huggingface.co/papers/2506.21734): two states on two clocks.

    x = embed(tokens) [prelude(...)];  H = x;  L = 0
    num_loops times:  low_cycles times:  L = low(L + H [+ x])
                      H = high(H + L)
    logits = head(norm([coda(] H [)]))

`low` and `high` are stacks of backbone layers. Over transformers' own `hrm_text` layers, with the settings that
`hf_loop.convert` makes, this is `HrmTextModel`, bit for bit, at any number of cycles.
"""

from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.utils import logging

from .backbone import TWO_STACK_BACKBONES
from .configuration_hierarchical import HierarchicalConfig
from .family import Family, text_classes
from .initial_state import make_noise, noise_inputs
from .injection import DiagonalInjection
from .layer_views import read_weight
from .modeling_classification import make_classifiers
from .modeling_hrm import truncated_normal_
from .modeling_recurrent import ModelInputs, RecurrentForCausalLM, RecurrentModel, RecurrentPreTrainedModel
from .outputs import LoopedCausalLMOutputWithPast, LoopedModelOutputWithPast
from .schedules import HierarchicalDepth
from .transformers_seams import (
    create_masks_for_generate,
    named_cache,
    takes_cache,
)


logger = logging.get_logger(__name__)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class HierarchicalPreTrainedModel(RecurrentPreTrainedModel):
    """Base class of the hierarchical models and their heads."""

    config_class = HierarchicalConfig
    family_tags = ("hierarchical-reasoning-model", "recurrent-depth")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, DiagonalInjection):
            module.reset_parameters()
        initial_states: Any = getattr(module, "initial_states", None)
        if initial_states is not None:
            truncated_normal_(initial_states, 1.0)

    def initialize_weights(self):
        super().initialize_weights()
        # `hrm_text` freezes its initial state when it initializes it, which loading skips inside our class
        for module in self.modules():
            if isinstance(module, HierarchicalStacks) and (state := module.low_state_parameter()) is not None:
                state.requires_grad_(False)


def prefix_blocks(config: HierarchicalConfig, token_type_ids: torch.Tensor | None) -> torch.Tensor | None:
    """Return the block of every token `[B, T]`: 0 for tokens of type 1, -1 for others, which see only the past."""
    if token_type_ids is None:
        return None
    # CODEPATH: HRM-Text is trained on prefixes; other backbones are causal throughout
    if not config.prefix_lm:
        logger.warning_once("`token_type_ids` are ignored: the backbone's `prefix_lm` is not set.")
        return None
    return torch.where(token_type_ids == 1, 0, -1)


# trf-ignore: TRF057 as above
# trf-ignore: TRF013 the classes below call `post_init` once they are complete
class HierarchicalStacks(HierarchicalPreTrainedModel, RecurrentModel):
    """Base class of models that run a backbone on the hierarchical schedule, causal or not.

    Args:
        config (`HierarchicalConfig`): the backbone and the schedule.
    """

    special_specs = TWO_STACK_BACKBONES
    output_class = LoopedModelOutputWithPast

    def __init__(self, config: HierarchicalConfig):
        super().__init__(config)
        # CODEPATH: HRM and its puzzle successors start from vectors that are drawn once and not trained
        if config.state_init == "random":
            self.initial_states = nn.Buffer(torch.empty(config.num_latent_states, config.hidden_size))
        # CODEPATH: LoopedLM injects the prelude's output before every stack call
        if config.injection == "diagonal":
            self.stack_injection = DiagonalInjection(config)
        # CODEPATH: HRM-Text norms the output of a stack call; HRM's and TRM's layers end with a norm already
        if config.stack_norm == "weightless":
            eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
            self.stack_norm = nn.RMSNorm(config.hidden_size, eps=eps, elementwise_affine=False)

    def enter(self, hidden_states: torch.Tensor) -> torch.Tensor:
        scale = self.config.embedding_scale
        return hidden_states if scale == 1 else hidden_states * scale

    def init_parallel_plans(self):
        super().init_parallel_plans()
        # FSDP would gather the weights of a layer again in every cycle: keep them
        spec = self.spec
        plan = dict(self._fsdp_plan or {})
        for layers in (spec.layers, spec.high_layers):
            if f"backbone.{layers}.*" in plan:
                plan[f"backbone.{layers}.*"] = "keep_full_weight"
        self._fsdp_plan = plan

    def low_state_parameter(self) -> torch.Tensor | None:
        """Return the backbone's own initial fast state `[D]`, `None` if it has none."""
        name = self.spec.low_state
        return None if name is None else read_weight(self.backbone, name)

    def first_states(
        self, encoded: torch.Tensor, inputs: ModelInputs, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make the states before the first cycle of a pass, from the first stack's input `[B, T, D]`."""
        # CODEPATH: LoopedLM's fast state starts from noise
        if self.config.state_init != "sine_normal":
            return self.make_initial_states(encoded)
        return self.make_initial_states(encoded, noise_inputs(inputs, position_ids, per_example=False)[0])

    def make_initial_states(
        self, encoded: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make the slow and the fast state before the first cycle, each `[B, T, D]`; the fast one may be `None`.

        Args:
            encoded (`torch.Tensor` of shape `[B, T, D]`): the first stack's input.
            position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`, *optional*): positions, which noise is
                computed from.

        Raises:
            ValueError: if the fast state is noise and there are no positions.
        """
        has_low = self.config.num_latent_states == 2
        # CODEPATH: as above
        if self.config.state_init == "sine_normal":
            if position_ids is None:
                raise ValueError("`state_init='sine_normal'` needs `position_ids`, from which its noise is computed")
            return encoded, make_noise(self.config, position_ids.new_zeros(1, 1), position_ids, encoded)
        # CODEPATH: HRM and its puzzle successors start from the stored vectors
        if self.config.state_init == "random":
            vectors = self.initial_states.to(encoded)
            return vectors[0].expand_as(encoded), vectors[1].expand_as(encoded) if has_low else None
        zeros = torch.zeros_like(encoded)
        start = self.low_state_parameter()
        low = zeros if start is None else start.to(dtype=encoded.dtype, device=encoded.device).expand_as(encoded)
        # CODEPATH: the slow state of HRM-Text starts from the input, that of other models at zero
        high = encoded if self.config.state_init == "input" else zeros
        return high, low if has_low else None


# trf-ignore: TRF057 as above
class HierarchicalModel(HierarchicalStacks):
    """A causal backbone run on the hierarchical schedule, without a head.

    Args:
        config (`HierarchicalConfig`): the backbone and the schedule.
    """

    def __init__(self, config: HierarchicalConfig):
        super().__init__(config)
        self.post_init()

    def run(
        self,
        inputs: ModelInputs,
        depth: dict[str, Any],
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> LoopedModelOutputWithPast:
        """The forward pass behind its checks.

        Args:
            inputs (`ModelInputs`): the arguments of `forward` that every family has.
            depth (`dict`): arguments of the depth schedule, checked.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): for a backbone
                with `prefix_lm`, 1 at the tokens of the prefix, which see each other in both directions. The whole
                prefix must be in the first call that fills a cache.

        Raises:
            ValueError: if the cache was made for another number of loops.
        """
        # a paged cache does not tell, but prompts with a prefix never come with one
        is_prefill = not isinstance(inputs.cache, Cache) or not inputs.cache.is_initialized
        blocks = prefix_blocks(self.config, token_type_ids) if is_prefill else None
        forward_pass = self.start_pass(inputs, depth, block_sequence_ids=blocks, **kwargs)
        schedule: HierarchicalDepth = forward_pass.backbone.depth
        encoded = schedule.run_prelude(forward_pass.hidden_states, forward_pass.run_call)
        states = self.first_states(encoded, inputs, forward_pass.inputs.position_ids)
        high, _ = schedule.run_cycles(states, encoded, forward_pass.run_call, **forward_pass.depth)
        return LoopedModelOutputWithPast(
            last_hidden_state=schedule.finish(schedule.run_coda(high, forward_pass.run_call)),
            **named_cache(forward_pass.inputs.cache),
            **self.loops_run(forward_pass),
        )


# trf-ignore: TRF057 as above
class HierarchicalForCausalLM(HierarchicalPreTrainedModel, RecurrentForCausalLM):
    """The hierarchical model with the backbone's language-model head.

    Args:
        config (`HierarchicalConfig`): the backbone and the schedule.

    Example:

    ```python
    >>> import hf_loop

    >>> model = hf_loop.convert("sapientinc/HRM-Text-1B")
    >>> model.generate(**inputs, num_loops=4)
    ```
    """

    model_class = HierarchicalModel
    output_class = LoopedCausalLMOutputWithPast

    @staticmethod
    @takes_cache
    def create_masks_for_generate(
        config: HierarchicalConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs,
    ):
        """Make the masks for a static cache, which `generate` prepares outside of the compiled forward pass."""
        return create_masks_for_generate(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **named_cache(cache),
            position_ids=position_ids,
            block_sequence_ids=prefix_blocks(config, token_type_ids) if is_first_iteration else None,
        )

    def next_model_kwargs(self, outputs, model_kwargs, *args, **kwargs):
        prompt_types = model_kwargs.get("token_type_ids")
        model_kwargs = super().next_model_kwargs(outputs, model_kwargs, *args, **kwargs)
        if prompt_types is not None:
            # new tokens would get the type of the last one, and without a cache count as prefix
            new_types = model_kwargs["token_type_ids"][:, prompt_types.shape[1] :]
            model_kwargs["token_type_ids"] = torch.cat([prompt_types, torch.zeros_like(new_types)], dim=1)
        return model_kwargs


_classifiers = make_classifiers(HierarchicalModel, HierarchicalPreTrainedModel)
HierarchicalForSequenceClassification, HierarchicalForTokenClassification = _classifiers


def describe_cycles(config: HierarchicalConfig) -> str:
    """Describe the stacks and the cycles in a few words."""
    cycles = f"{config.num_loops} slow cycles of {config.low_cycles} fast ones"
    outer = config.num_prelude_layers, config.num_coda_layers
    around = f", between {outer[0]} and {outer[1]} other layers" if any(outer) else ""
    # CODEPATH: one of LoopedLM's models runs the layers of a stack twice in every call
    repeats = f" (run {config.stack_repeats} times)" if config.stack_repeats > 1 else ""
    return f"{config.num_stack_layers} layers in each stack{repeats}{around}, {cycles}"


FAMILY = Family(
    name="hierarchical",
    config=HierarchicalConfig,
    classes=text_classes(
        HierarchicalModel,
        HierarchicalForCausalLM,
        HierarchicalForSequenceClassification,
        HierarchicalForTokenClassification,
    ),
    describe=describe_cycles,
)

__all__ = [
    "FAMILY",
    "HierarchicalForCausalLM",
    "HierarchicalForSequenceClassification",
    "HierarchicalForTokenClassification",
    "HierarchicalModel",
    "HierarchicalPreTrainedModel",
    "HierarchicalStacks",
    "describe_cycles",
]
