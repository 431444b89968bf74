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
"""The sleep language model: windows of tokens, fast weights that cross their borders, passes that write them.

    S = 0
    for each window of sleep_window tokens:
        h, S = layers(embed(window), S);   logits = head(norm(h))
        num_sleep_passes - 1 times:  h, S = layers(h, S)
        drop the keys and values of the window

(https://huggingface.co/papers/2605.26099, Algorithm 1.) What distinguishes a window with labels there, one pass whose
hidden states are read, from one without, N passes whose hidden states are not, makes no difference here to what is
predicted: the pass that predicts is the first of the N. What a window with labels leaves behind is that of all N, as
it will be in generation, or with `sleep_over_labels=False` that of the first, as there. The window the input ends in
is slept over only where a cache will need it.

With one pass over one window this is the backbone itself, bit for bit.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.utils import auto_docstring, can_return_tuple

from .backbone import Backbone, adopt_backbone, backbone_spec, compute_logits, make_backbone, next_positions
from .checks import check_positive_int
from .configuration_sleep import SleepConfig
from .family import Family, text_classes
from .family_checks import check_sleep
from .fast_weight_layer import FastWeightLayer, ShortConvolution, ZeroLinear
from .generation_sleep import SleepGenerationMixin
from .keyword_checks import ENGINE_KEYWORDS, check_keywords
from .modeling_classification import SequenceClassifier, TokenClassifier
from .modeling_recurrent import RecurrentPreTrainedModel
from .outputs import (
    RecurrentCausalLMOutputWithPast,
    RecurrentModelOutputWithPast,
    select_hidden_states,
    wants_hidden_states,
)
from .sleep_cache import check_sleep_cache, read_window, sleep_rows
from .sleep_passes import Place, SleepPasses
from .sleep_states import LayerState, select_rows
from .token_rows import Round, arrange_rows, gather_outputs, plan_rounds
from .transformers_seams import (
    CheckpointsSteps,
    capture_outputs,
    keep_logits,
    merge_with_config_defaults,
    named_cache,
    recordable,
    takes_cache,
)


# lengths of packed documents, which windows cut differently
_PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")

# of transformers' losses
IGNORE_INDEX = -100


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class SleepPreTrainedModel(CheckpointsSteps, RecurrentPreTrainedModel):
    """What the sleep model and its head share."""

    config_class = SleepConfig
    config: SleepConfig
    family_tags = ("sleep-consolidation", "fast-weights")
    steps = "windows"
    about_loops = ": a sleep model has no loops; its passes are `num_sleep_passes`"
    refused_keywords = dict.fromkeys(ENGINE_KEYWORDS, "an engine with its own attention has no place for fast weights")
    # hidden states are put together from the windows
    _can_record_outputs = recordable("attentions", "router_logits")
    no_prompt_learning = "a prompt would stand in the first window, whose keys and values the sleep after it drops"
    # here, since `PreTrainedModel` comes before the generation mixin: `generate` refuses to take tokens back
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (FastWeightLayer, ShortConvolution, ZeroLinear)):
            module.reset_parameters()

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Choose attention functions as the backbone does."""
        adopt_backbone(self, backbone)
        # where a row is in its window decides on the host what runs
        self._can_compile_fullgraph = False


# trf-ignore: TRF057 as above
class SleepModel(SleepPreTrainedModel):
    """The backbone's layers on the sleep schedule, without a head.

    Args:
        config (`SleepConfig`): the backbone and the schedule.
    """

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        check_sleep(config.backbone_config, SleepModel)
        self.backbone = make_backbone(config.backbone_config)
        # CODEPATH: hybrids keep fast weights in layers of their own, attention-only decoders in inserted ones
        self.memory_layers = nn.ModuleList([FastWeightLayer(config) for _ in config.memory_layers])
        self.adopt(self.backbone)
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_sleep_passes: int | None = None,
        reads_once: torch.Tensor | None = None,
        **kwargs,
    ) -> RecurrentModelOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            What earlier calls have left for this one; `past_key_values` is its older name.
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Where they restart within a row, without a mask and without a cache, a new document begins, with fast
            weights of its own. Positions themselves are counted from the window or the row, see `position_mode`.
        num_sleep_passes (`int`, *optional*):
            Passes over a full window, `config.num_sleep_passes` if not given.
        reads_once (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            A window with a token for which this is true is read in one pass, whatever the number of passes.

        Raises:
            ValueError: the number of passes is not a positive integer, the mask is not one of padding, the cache is
                not a sleep model's or has another number of rows, or `reads_once` is given with a cache.
        """
        check_keywords(self, kwargs)
        num_passes = self._check_num_passes(num_sleep_passes)
        backbone = Backbone(self.backbone)
        inputs_embeds = backbone.embed_inputs(input_ids, inputs_embeds)
        batch_size, length, _ = inputs_embeds.shape
        rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=cache is not None)
        if cache is None and use_cache and len(rows.lengths) == batch_size:
            cache = DynamicCache(config=self.config)
            rows = arrange_rows(batch_size, length, attention_mask, position_ids, has_cache=True)
        # put together from the windows here; `output_attentions` gives those of the layer calls, pass by pass
        output_hidden_states = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        all_layers = wants_hidden_states(output_hidden_states)
        passes = self._passes(backbone, all_layers, kwargs)
        # decoders that add positions here are refused: theirs are counted from the window
        hidden_states = backbone.enter(inputs_embeds, next_positions(inputs_embeds, None))
        if cache is None:
            rounds = list(plan_rounds(rows.lengths, [0] * len(rows.lengths), self.config.sleep_window, False))
            reads_once = None if reads_once is None else rows.take(reads_once)
            outputs = self._read_all(passes, rounds, rows.take(hidden_states), num_passes, reads_once)
        else:
            if reads_once is not None:
                raise ValueError("`reads_once` must be None with a cache, where later tokens may follow in a window")
            check_sleep_cache(cache, self.config)
            rounds, outputs = read_window(passes, cache, rows, hidden_states, num_passes)
        layer_states = [
            gather_outputs(rounds, list(states), rows, hidden_states.shape) for states in zip(*outputs, strict=True)
        ]
        # nothing was read where all tokens are padding
        last_hidden_state = backbone.norm(layer_states[-1] if layer_states else hidden_states)
        all_states: Any = (*layer_states[:-1], last_hidden_state)
        return RecurrentModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            **named_cache(cache),
            hidden_states=cast(Any, select_hidden_states(all_states, output_hidden_states)),
        )

    def _read_all(
        self,
        passes: SleepPasses,
        rounds: list[Round],
        tokens: torch.Tensor,
        num_passes: int,
        reads_once: torch.Tensor | None,
    ) -> list[list[torch.Tensor]]:
        """All windows of rows `[R, N, D]` that start together, without a cache: the outputs of `wake` in each."""
        every = self.config.num_backprop_windows
        states = passes.empty_states()
        outputs = []
        for number, round_ in enumerate(rounds):
            states = [state.first_rows(len(round_.counts)) for state in states]
            if every is not None and number > 0 and (len(rounds) - number) % every == 0:
                states = [state.detach() for state in states]
            # nothing comes after the last window that would read what a sleep writes
            passes_here = [num_passes if number < len(rounds) - 1 else 0] * len(round_.counts)
            if reads_once is not None and passes_here[0]:
                # of a row that ends here this may say anything: nothing reads what its sleep would write
                once = round_.take(reads_once).any(-1).tolist()
                passes_here = [1 if is_once else num_passes for is_once in once]
            read, states = self.run_step(_window_step, passes, round_, passes_here, round_.take(tokens), states)
            outputs.append(read)
        return outputs

    @torch.no_grad()
    def sleep(self, cache: Cache, num_passes: int | None = None) -> None:
        """Write what is in the open windows into the fast weights now, and drop their keys and values.

        The next token of every row starts a window. A row whose window is empty, because it has just filled and
        slept, stays as it is.

        Args:
            cache (`Cache`): the cache, which is changed.
            num_passes (`int`, *optional*): passes, `config.num_sleep_passes` if not given.

        Raises:
            ValueError: the number of passes is not a positive integer, or the cache is not a sleep model's.
        """
        num_passes = self._check_num_passes(num_passes, "num_passes")
        check_sleep_cache(cache, self.config)
        window: Any = cache.layers[0]
        rows = [row for row, filled in enumerate(window.filled) if filled > 0]
        sleep_rows(self._passes(Backbone(self.backbone), False, {}), cache, rows, num_passes)

    def _passes(self, backbone: Backbone, all_layers: bool, kwargs: dict[str, Any]) -> SleepPasses:
        kwargs = {name: value for name, value in kwargs.items() if name not in _PACKING_ARGUMENTS}
        return SleepPasses(self.config, backbone, self.memory_layers, all_layers, kwargs)

    def _check_num_passes(self, num_passes: int | None, name: str = "num_sleep_passes") -> int:
        return self.config.num_sleep_passes if num_passes is None else check_positive_int(name, num_passes)


def _window_step(
    passes: SleepPasses, round_: Round, num_passes: list[int], hidden_states: torch.Tensor, states: list[LayerState]
) -> tuple[list[torch.Tensor], list[LayerState]]:
    """One window of rows that start together: predicted and, unless there are 0 passes, slept over as often as each
    row's `num_passes` says."""
    num_rows, num_tokens = len(round_.counts), round_.num_tokens
    # rows that end here are padded on the right, where nothing that counts comes after
    kept = [max(state.num_columns() for state in states)] * num_rows
    seen = [round_.seen[0]] * num_rows
    outputs, core_output, read = passes.wake(hidden_states, states, Place([0] * num_rows, kept, seen))
    if not num_passes[0]:
        return outputs, read
    place = Place([num_tokens] * num_rows, kept, [count + num_tokens for count in seen])
    first, *others = sorted(set(num_passes))
    states = passes.sleep(core_output, read, place, first)
    for count in others:
        rows = [row for row, row_passes in enumerate(num_passes) if row_passes == count]
        index = torch.tensor(rows, device=core_output.device)
        row_place = Place(*([numbers[row] for row in rows] for numbers in place))
        row_states = [state.select(index) for state in read]
        slept = passes.sleep(select_rows(core_output, index), row_states, row_place, count)
        states = [state.merge(part, index, num_rows) for state, part in zip(states, slept)]
    return outputs, states


def _predicts(labels: torch.Tensor, shift_labels: torch.Tensor | None) -> torch.Tensor:
    """Which tokens `[B, T]` predict a label."""
    if shift_labels is not None:
        return shift_labels != IGNORE_INDEX
    return nn.functional.pad(labels != IGNORE_INDEX, (0, 1))[:, 1:]


# trf-ignore: TRF057 as above
class SleepForCausalLM(SleepPreTrainedModel, SleepGenerationMixin):
    """The sleep model with the backbone's language-model head.

    Args:
        config (`SleepConfig`): the backbone and the schedule.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> import hf_loop

    >>> model = AutoModelForCausalLM.from_pretrained("me/sleeper")
    >>> output = model.generate(**document, num_sleep_passes=4, return_dict_in_generate=True)
    >>> model.sleep(output.cache)
    ```
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SleepConfig):
        super().__init__(config)
        self.model = SleepModel(config)
        self.adopt(self.model.backbone)
        spec = backbone_spec(config.backbone_config)
        self._tied_weights_keys = {"lm_head.weight": f"model.backbone.{spec.embed_tokens}.weight"}
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=spec.head_bias)
        self.post_init()

    def sleep(self, cache: Cache, num_passes: int | None = None) -> None:
        """Write what is in the open windows of a cache into its fast weights now; see `SleepModel.sleep`."""
        self.model.sleep(cache, num_passes)

    @takes_cache
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_sleep_passes: int | None = None,
        **kwargs,
    ) -> RecurrentCausalLMOutputWithPast:
        r"""
        cache (`Cache`, *optional*):
            What earlier calls have left for this one; `past_key_values` is its older name.
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Where they restart within a row, without a mask and without a cache, a new document begins, with fast
            weights of its own. Positions themselves are counted from the window or the row, see `position_mode`.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The tokens to be predicted, -100 where there is none. No cache is made then unless `use_cache` asks for it.
        num_sleep_passes (`int`, *optional*):
            Passes over a full window, `config.num_sleep_passes` if not given.

        Raises:
            ValueError: the number of passes is not a positive integer, the mask is not one of padding, the cache is
                not a sleep model's or has another number of rows, or there are labels and a cache where
                `config.sleep_over_labels` is False.
        """
        if labels is not None and cache is None and use_cache is None:
            use_cache = False
        reads_once = None
        # CODEPATH: Algorithm 1 of the paper reads windows with labels once; in generation there is no such difference
        if labels is not None and not self.config.sleep_over_labels:
            reads_once = _predicts(labels, kwargs.get("shift_labels"))
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_sleep_passes=num_sleep_passes,
            reads_once=reads_once,
            **kwargs,
        )
        hidden_states = keep_logits(outputs.last_hidden_state, logits_to_keep)
        logits = compute_logits(self.model.backbone.config, self.lm_head, hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return RecurrentCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **named_cache(outputs.cache),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# trf-ignore: TRF057 as above
class SleepForSequenceClassification(SequenceClassifier, SleepPreTrainedModel):
    """The sleep model with one label per sequence, read at the last token that is not padding.

    Args:
        config (`SleepConfig`): the backbone and the schedule; `num_labels` sets the classes.
    """

    model_class = SleepModel


# trf-ignore: TRF057 as above
class SleepForTokenClassification(TokenClassifier, SleepPreTrainedModel):
    """The sleep model with one label per token.

    Args:
        config (`SleepConfig`): the backbone and the schedule; `num_labels` sets the classes.
    """

    model_class = SleepModel


FAMILY = Family(
    name="sleep",
    config=SleepConfig,
    classes=text_classes(SleepModel, SleepForCausalLM, SleepForSequenceClassification, SleepForTokenClassification),
    describe=lambda config: (
        f"windows of {config.sleep_window} tokens, {config.num_sleep_passes} passes, {config.eviction} eviction, "
        f"{len(config.memory_layers)} fast-weight layers inserted"
    ),
)

__all__ = [
    "FAMILY",
    "SleepForCausalLM",
    "SleepForSequenceClassification",
    "SleepForTokenClassification",
    "SleepModel",
    "SleepPreTrainedModel",
]
