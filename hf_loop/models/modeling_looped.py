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
"""The looped language model, over the layers of a transformers decoder.

    e = prelude(embed(x));  s = init(e)
    num_loops times:  s = norm(core(inject(s, e)))
    logits = head(norm(coda(s)))

With one loop, no injection and the state starting at `e`, this is the backbone itself, bit for bit.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .backbone import LOOPED_BACKBONES, Backbone
from .compiled_depth import CompiledParts, GenerationParts, choose_head, choose_schedule
from .configuration_looped import LoopedConfig
from .exit_gate import ExitGateMixin
from .exit_losses import ExitObjective, ExitObjectiveKind
from .exit_pass import ExitPass
from .exit_training import ExitTrainingMixin
from .exits import ExitRule, make_exits
from .family import Family, text_classes
from .generation_depth import DepthBatchingMixin
from .generation_looped import LoopedGenerationMixin
from .initial_state import InitialStateMixin, state_std
from .injection import ConcatInjection, DiagonalInjection, make_injection
from .loop_cache import open_cache, parse_policy
from .loop_calls import LoopCalls, loop_calls
from .loop_contrast import check_contrast, read_earlier_loop
from .loop_lora import LayerLoopLora, LoopLora
from .modeling_classification import make_classifiers
from .modeling_recurrent import (
    ForwardPass,
    ModelInputs,
    RecurrentForCausalLM,
    RecurrentModel,
    RecurrentPreTrainedModel,
)
from .outputs import LoopedCausalLMOutputWithPast, LoopedModelOutputWithPast
from .schedules import Call, LoopedDepth
from .transformers_seams import keep_logits, named_cache


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class LoopedPreTrainedModel(RecurrentPreTrainedModel):
    """Base class of the looped model and its heads."""

    config_class = LoopedConfig
    config: LoopedConfig
    family_tags = ("looped-transformer", "recurrent-depth")

    # whether `compile` makes graphs that serve all numbers of loops
    compiles_in_parts = True

    def compile(self, **kwargs):
        """Compile in place, with the arguments of `torch.compile`: one graph for the prelude, one for a pass of the
        core, and one for the coda, whatever the number of loops. What graphs do not take, such as a cache that grows,
        runs uncompiled.
        """
        headless: Any = self.base_model
        headless.parts = CompiledParts(**kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (ConcatInjection, DiagonalInjection, LayerLoopLora)):
            module.reset_parameters()
        elif isinstance(module, LoopedModel):
            if module.config.state_init == "learned":
                init.normal_(module.initial_state, std=state_std(module.config))
            if module.config.state_projection:
                init.eye_(module.state_projection.weight)


# trf-ignore: TRF057 as above
class LoopedModel(LoopedPreTrainedModel, InitialStateMixin, ExitGateMixin, RecurrentModel):
    """A backbone run on a looped schedule, without a head.

    Args:
        config (`LoopedConfig`): the backbone and the schedule.
    """

    special_specs = LOOPED_BACKBONES
    output_class = LoopedModelOutputWithPast
    # the compiled functions, if `compile` was called
    parts: CompiledParts | None = None

    def __init__(self, config: LoopedConfig):
        super().__init__(config)
        self.injection = make_injection(config)
        self.generation_parts = GenerationParts()
        # CODEPATH: models trained from scratch may learn the initial state; Huginn's is noise, Ouro's the input
        if config.state_init == "learned":
            self.initial_state = nn.Parameter(torch.zeros(config.hidden_size))
        # CODEPATH: a separate norm bounds the state of models trained from scratch; Ouro uses the final norm
        if config.loop_norm == "own":
            self.loop_norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        # CODEPATH: LoopedLM's models with a linear injection norm the state without gains
        elif config.loop_norm == "weightless":
            eps = getattr(config.backbone_config, "rms_norm_eps", 1e-6)
            self.loop_norm = nn.RMSNorm(config.hidden_size, eps=eps, elementwise_affine=False)
        # CODEPATH: Parcae maps the state before its coda
        if config.state_projection:
            self.state_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        # CODEPATH: Ouro's gate tells after every loop whether a token needs another
        if config.exit_gate:
            self.exit_gate = nn.Linear(config.hidden_size, 1)
        # CODEPATH: relaxed recursion gives the shared layers a low-rank update per loop
        self.loop_lora: Any = LoopLora(config, self.core_layers()) if config.loop_lora_rank else None
        self.post_init()

    def init_parallel_plans(self):
        super().init_parallel_plans()
        # FSDP would gather the weights of a core layer again in every loop: keep them
        layers = f"backbone.{self.spec.layers}"
        plan = dict(self._fsdp_plan or {})
        strategy = plan.pop(f"{layers}.*", None)
        if strategy is not None:
            num_prelude, num_core, num_coda = self.layer_counts()
            strategies = [strategy] * num_prelude + ["keep_full_weight"] * num_core + [strategy] * num_coda
            self._fsdp_plan = plan | {f"{layers}.{index}": strategy for index, strategy in enumerate(strategies)}
        if self.loop_lora is not None:
            # updates need the whole outputs of linear maps, and a plan cannot select core layers: tensor parallelism
            # splits only the embeddings and the head
            plan = self._tp_plan or {}
            self._tp_plan = {name: plan[name] for name in plan if not name.startswith(f"{layers}.")}

    def run(
        self,
        inputs: ModelInputs,
        depth: dict[str, Any],
        output_loop_states: bool = False,
        output_loop_hidden_states: bool = False,
        noise_per_example: bool | None = None,
        exit_criterion: str | ExitRule | None = None,
        exit_threshold: float | None = None,
        min_loops: int | None = None,
        cache_policy: str | None = None,
        contrast_loop: int | None = None,
        read_logits: Any = None,
        **kwargs,
    ) -> LoopedModelOutputWithPast:
        """The forward pass behind its checks.

        Args:
            inputs (`ModelInputs`): the arguments of `forward` that every family has.
            depth (`dict`): arguments of the depth schedule, checked.
            output_loop_states (`bool`, *optional*, defaults to `False`): whether to return the state after every loop.
            output_loop_hidden_states (`bool`, *optional*, defaults to `False`): whether to return the last hidden
                state after every loop. This runs the coda once per loop, without a cache.
            noise_per_example (`bool`, *optional*): whether a first state of noise differs between examples, in which
                case no cache is made. By default it does in training if no cache is given. In generation it does not,
                because a prompt and its continuation must get the same noise.
            exit_criterion (`str` or `ExitRule`, *optional*): the rule by which every token leaves the loop, see
                `exits.py`: `"state_change"`, `"kl"`, `"stable_argmax"`, `"entropy"` or `"gate"`.
            exit_threshold (`float`, *optional*): when a token is done, by default as the rule says.
            min_loops (`int`, *optional*): loops that every token runs at least, by default 1; at most `num_loops`.
            cache_policy (`str`, *optional*): what later loops read of earlier tokens, see `loop_cache.py`: `"own"`,
                `"last_loop"`, `"cyclic:N"` or `"window:N"`. By default that of the cache, else `"own"`.
            contrast_loop (`int`, *optional*): an earlier loop, from 1, after which the last hidden state is returned
                too, see `loop_contrast.py`.
            read_logits (`Callable`, *optional*): computes logits of the last hidden state, for the rules that need
                them.

        Raises:
            ValueError: if the cache was made for another number of loops or another policy, arguments of exits do not
                fit, or `output_loop_hidden_states` is set with a cache.
        """
        outputs_loops = output_loop_states or output_loop_hidden_states
        num_loops, has_head = depth["num_loops"], read_logits is not None
        exits = make_exits(exit_criterion, exit_threshold, min_loops, num_loops, has_head, self.config.exit_gate)
        if exits is not None and outputs_loops:
            raise ValueError("the outputs of every loop must not be asked for with `exit_criterion`")
        if exits is not None and depth.get("num_backprop_loops") is not None:
            raise ValueError(
                f"`num_backprop_loops` must be None with `exit_criterion`, got {depth['num_backprop_loops']}"
            )
        if output_loop_hidden_states:
            if inputs.cache is not None:
                raise ValueError("`cache` must be None with `output_loop_hidden_states` or `output_loop_logits`")
            inputs = inputs._replace(use_cache=False)
        if noise_per_example is None:
            is_cached = inputs.cache is not None or "paged_cache" in kwargs
            noise_per_example = self.config.starts_from_noise and self.training and not is_cached
        # no cache of noise per example: a later call would add other noise
        keeps_cache = inputs.cache is not None or bool(inputs.use_cache and not noise_per_example)
        cache = open_cache(inputs.cache, self.sized_config(depth), exits is not None, cache_policy, keeps_cache)
        inputs = inputs._replace(cache=cache)
        forward_pass = self.start_pass(inputs, depth, makes_cache=not noise_per_example, **kwargs)
        calls = self.layer_calls(forward_pass, inputs.attention_mask, cache_policy)
        schedule: LoopedDepth = choose_schedule(self.parts, calls)
        if contrast_loop is not None:
            check_contrast(contrast_loop, num_loops, exits is not None, calls, schedule.coda_calls())
        encoded = schedule.run_prelude(forward_pass.hidden_states, calls.run_call)
        state = self.first_state(encoded, inputs, forward_pass.inputs.position_ids, noise_per_example)
        further: dict[str, Any] = self.loops_run(forward_pass)
        kept: Any = [] if outputs_loops or contrast_loop is not None else None
        if exits is not None:
            exit_pass = ExitPass(schedule, calls, exits, read_logits, self.exit_gate_probability)
            state, exit_loops = exit_pass.run(state, encoded, num_loops)
            further |= {"num_loops": exit_loops.amax(dim=1), "exit_loops": exit_loops}
        else:
            state = schedule.run_loops(state, encoded, calls.run_call, **depth, loop_states=kept)
            if output_loop_states:
                further["loop_states"] = tuple(kept)
            if contrast_loop is not None:
                further["contrast_hidden_state"] = read_earlier_loop(schedule, calls, kept[contrast_loop - 1])
        if output_loop_hidden_states:
            read = tuple(schedule.finish(schedule.run_coda(state, calls.run_call)) for state in kept)
            further["loop_hidden_states"], last_hidden_state = read, read[-1]
        else:
            last_hidden_state = schedule.finish(schedule.run_coda(state, calls.run_call))
        # made at once, since outputs are in the order in which they are set
        return LoopedModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            **named_cache(forward_pass.inputs.cache if keeps_cache else None),
            **further,
        )

    def layer_calls(self, forward_pass: ForwardPass, attention_mask: Any, cache_policy: str | None) -> LoopCalls:
        """Make the layer calls of a pass under the policy of its cache, or of the call if it has no cache."""
        policy = getattr(forward_pass.inputs.cache, "policy", None) or parse_policy(cache_policy)
        backbone, hidden_states = forward_pass.backbone, forward_pass.hidden_states
        return loop_calls(backbone, forward_pass.inputs, hidden_states, attention_mask, policy)

    def layer_counts(self) -> tuple[int, int, int]:
        """Return the number of layers in the prelude, the core and the coda."""
        return self.config.num_prelude_layers, self.config.num_core_layers, self.config.num_coda_layers

    def core_layers(self) -> list[nn.Module]:
        """Return the layers inside the loop."""
        num_prelude, num_core, _ = self.layer_counts()
        return Backbone(self.backbone).layers[num_prelude : num_prelude + num_core]

    def layer_in_call(self, layer: nn.Module, call: Call) -> nn.Module:
        if self.loop_lora is None or call.loop is None:
            return layer
        return self.loop_lora.layer_in_loop(layer, call.layer - self.config.num_prelude_layers, call.loop)

    def update_size(self, call: Call) -> int:
        if self.loop_lora is None or call.loop is None:
            return 0
        return self.loop_lora.update_size(call.layer - self.config.num_prelude_layers, call.loop)


# trf-ignore: TRF057 as above
class LoopedForCausalLM(
    LoopedPreTrainedModel, DepthBatchingMixin, LoopedGenerationMixin, ExitTrainingMixin, RecurrentForCausalLM
):
    """The looped model with the backbone's language-model head.

    Args:
        config (`LoopedConfig`): the backbone and the schedule.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> import hf_loop

    >>> model = AutoModelForCausalLM.from_pretrained("hf_loop_quickstart")
    >>> model.generate(**inputs, num_loops=8)
    ```
    """

    model_class = LoopedModel
    output_class = LoopedCausalLMOutputWithPast
    set_arguments = frozenset(("output_loop_hidden_states", "noise_per_example", "read_logits"))
    head_arguments = frozenset(("output_loop_logits", "exit_objective"))

    def prepare_inputs_for_generation(self, *args, inputs_embeds: torch.Tensor | None = None, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)
        # CODEPATH: Huginn starts from noise, Ouro and others do not
        if self.training and self.config.starts_from_noise:
            inputs["noise_per_example"] = False
        return inputs

    # trf-ignore: TRF057 the signature is made of the arguments documented here and those of the model inside
    def forward(
        self,
        output_loop_logits: bool = False,
        exit_objective: ExitObjective | ExitObjectiveKind | None = None,
        **kwargs,
    ) -> LoopedCausalLMOutputWithPast:
        """Run [`LoopedModel`] and compute logits.

        Args:
            output_loop_logits (`bool`, *optional*, defaults to `False`): whether to return the logits after every
                loop, without a cache.
            exit_objective (`ExitObjective` or `str`, *optional*): the loss to compute of the labels, instead of that
                of the last loop's logits; a kind of [`ExitObjective`], with its default weights, or the whole. It runs
                the coda once per loop, without a cache, and `loop_states` are returned, too.

        Raises:
            ValueError: if [`LoopedModel`] raises it; if an `exit_objective` is given without labels, or one that uses
                the exit gate to a model without.
        """
        if kwargs.get("exit_criterion") is not None:
            kwargs["read_logits"] = self.read_logits
        kwargs["output_loop_hidden_states"] = output_loop_logits
        if exit_objective is not None:
            kwargs |= self.objective_arguments(exit_objective, kwargs)
        return super().forward(output_loop_logits=output_loop_logits, **kwargs)

    def read_last_logits(self, outputs: Any, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        compute = choose_head(self.model.parts, outputs)
        hidden_states = keep_logits(outputs.last_hidden_state, logits_to_keep)
        return compute(self.config.decoder_config, self.lm_head, hidden_states, self.model.spec)

    def read_outputs(self, outputs: Any, logits_to_keep: int | torch.Tensor, output_loop_logits=False, **own):
        read = super().read_outputs(outputs, logits_to_keep)
        if output_loop_logits:
            states = outputs.loop_hidden_states
            read["loop_logits"] = tuple(self.read_logits(state, logits_to_keep) for state in states)
        if outputs.contrast_hidden_state is not None:
            read["contrast_logits"] = self.read_logits(outputs.contrast_hidden_state, logits_to_keep)
        return read


_classifiers = make_classifiers(LoopedModel, LoopedPreTrainedModel)
LoopedForSequenceClassification, LoopedForTokenClassification = _classifiers


FAMILY = Family(
    name="looped",
    config=LoopedConfig,
    classes=text_classes(
        LoopedModel, LoopedForCausalLM, LoopedForSequenceClassification, LoopedForTokenClassification
    ),
    describe=lambda config: (
        f"{config.num_prelude_layers}+{config.num_core_layers}+{config.num_coda_layers} layers (prelude, core, coda), "
        f"{config.num_loops} loops"
    ),
)

__all__ = [
    "FAMILY",
    "LoopedForCausalLM",
    "LoopedForSequenceClassification",
    "LoopedForTokenClassification",
    "LoopedModel",
    "LoopedPreTrainedModel",
]
