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
"""The sleep language model: windows of tokens, fast weights that persist across them, and passes that write them.

    S = 0
    for each window of sleep_window tokens:
        h, S = layers(embed(window), S);   logits = head(norm(h))
        num_sleep_passes - 1 times:  h, S = layers(h, S)
        drop the keys and values of the window

Algorithm 1 of https://huggingface.co/papers/2605.26099 reads labelled windows in one pass and unlabelled ones in N.
Here the first of the N passes makes the prediction, so logits are the same. Only the fast weights left behind differ:
N passes by default, as in generation, or one with `sleep_over_labels=False`. The last window of the input is slept
over only if there is a cache, as nothing else would read the result.

With one pass over one window this is the backbone itself, bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache

from .backbone import Backbone, next_positions
from .checks import check_count
from .configuration_sleep import SleepConfig
from .cost import (
    PARAMETERS,
    Measure,
    Span,
    Work,
    attention_work,
    given_depth,
    norm_work,
    num_positions,
    pass_work,
    work_with_head,
)
from .family import Family, text_classes
from .family_checks import check_sleep
from .fast_weight_layer import FastWeightLayer, ShortConvolution, ZeroLinear
from .memory_files import MemoryMixin
from .modeling_classification import make_classifiers
from .modeling_recurrent import ModelInputs, RecurrentForCausalLM
from .modeling_time import TimeModel, TimePreTrainedModel, named_hidden_states, scatter_states
from .outputs import RecurrentCausalLMOutputWithPast, RecurrentModelOutputWithPast, wants_hidden_states
from .puzzle_loss import IGNORE_INDEX
from .schedules import Call
from .sleep_passes import SleepPasses
from .sleep_windows import check_sleep_cache, open_windows, read_tokens, sleep_over, window_spans
from .token_sequences import Chunk, plan_chunks
from .transformers_seams import named_cache


# lengths of packed documents for flash attention; they do not apply to windows
_PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class SleepPreTrainedModel(TimePreTrainedModel):
    """Base class of the sleep model and its heads."""

    config_class = SleepConfig
    config: SleepConfig
    family_tags = ("sleep-consolidation", "fast-weights")
    steps = "windows"
    no_loops = "a sleep model has no loops; its passes are `num_sleep_passes`"
    no_prompt_learning = "a prompt would be in the first window, whose keys and values the first sleep drops"

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (FastWeightLayer, ShortConvolution, ZeroLinear)):
            module.reset_parameters()


# trf-ignore: TRF057 as above
class SleepModel(SleepPreTrainedModel, TimeModel):
    """A backbone run on the sleep schedule, without a head.

    Args:
        config (`SleepConfig`): the backbone and the schedule.
    """

    def __init__(self, config: SleepConfig):
        check_sleep(config.decoder_config, SleepModel)
        super().__init__(config)
        # CODEPATH: hybrid decoders have layers with fast weights, attention-only decoders get inserted ones
        self.memory_layers = nn.ModuleList([FastWeightLayer(config) for _ in config.memory_layers])
        self.post_init()

    def run(
        self,
        inputs: ModelInputs,
        depth: dict[str, Any],
        num_sleep_passes: int | None = None,
        reads_once: torch.Tensor | None = None,
        **kwargs,
    ) -> RecurrentModelOutputWithPast:
        """The forward pass behind its checks.

        Args:
            inputs (`ModelInputs`): the arguments of `forward` that every family has. Without a mask and a cache, a
                document with fast weights of its own begins wherever `position_ids` do not increase by one. The
                positions of the layers are counted by `config.position_mode`.
            depth (`dict`): arguments of the depth schedule, checked.
            num_sleep_passes (`int`, *optional*): passes over a full window, by default `config.num_sleep_passes`.
            reads_once (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*): `True` at tokens
                whose window gets one pass, whatever the number of passes.

        Raises:
            ValueError: if the number of passes is not a positive integer, the mask is not a padding mask, the cache
                was not made for this model or has another number of sequences, or `reads_once` is given with a cache.
        """
        num_passes = self._check_num_passes(num_sleep_passes)
        backbone = Backbone(self)
        inputs_embeds = backbone.embed_inputs(inputs.input_ids, inputs.inputs_embeds)
        sequences, cache = self.arrange(inputs, inputs_embeds, depth)
        if cache is not None and reads_once is not None:
            raise ValueError("`reads_once` must be None with a cache, because later calls may add tokens to a window")
        # collected here from the chunks; `output_attentions` returns those of every layer call, pass by pass
        output_hidden_states = kwargs.pop("output_hidden_states", self.config.output_hidden_states)
        passes = self._passes(depth, wants_hidden_states(output_hidden_states), kwargs)
        # these positions have no effect: decoders that add positions to their embeddings are refused
        hidden_states = backbone.enter(inputs_embeds, next_positions(inputs_embeds, None))

        windows = open_windows(passes, len(sequences.lengths), cache)
        tokens = sequences.gather(hidden_states)
        once = None if reads_once is None else sequences.gather(reads_once)
        has_cache = cache is not None
        chunks = list(plan_chunks(sequences.lengths, windows.position.filled, self.config.sleep_window, has_cache))
        outputs = []
        for number, chunk in enumerate(chunks):
            num_left = len(chunks) - number
            counts, passes_here = chunk.counts, [num_passes] * len(chunk.counts)
            if not has_cache:
                windows = windows.first(len(counts))
                windows = windows.detach(self._cut_here(sequences.lengths[: len(counts)], number))
                # sequences that end here run on padding at their right end, which affects nothing before it
                counts = [chunk.num_tokens] * len(counts)
                passes_here = self._passes_here(chunk, num_passes, once, is_last=num_left == 1)
            read, windows = self.run_step(read_tokens, passes, windows, chunk.gather(tokens), counts, passes_here)
            outputs.append(read)
        states = scatter_states(chunks, outputs, sequences, hidden_states.shape)
        if cache is not None:
            windows.store(cache, inputs_embeds.shape[1])
        # there are no states if all tokens are padding
        last_hidden_state = backbone.depth.finish(states[-1] if states else hidden_states)
        return RecurrentModelOutputWithPast(
            **named_hidden_states(states, last_hidden_state, output_hidden_states), **named_cache(cache)
        )

    def _cut_here(self, lengths: list[int], number: int) -> list[int]:
        """Return the sequences whose gradient does not go back beyond the start of window `number` (from 0)."""
        every, window = self.config.num_backprop_windows, self.config.sleep_window
        if every is None or number == 0:
            return []
        # counted from each sequence's own last window, whatever the others' lengths
        return [row for row, length in enumerate(lengths) if (-(-length // window) - number) % every == 0]

    def _passes_here(self, chunk: Chunk, num_passes: int, once: torch.Tensor | None, is_last: bool) -> list[int]:
        """Return the number of passes over every sequence's window of a chunk, without a cache."""
        if is_last:
            # nothing follows the last window that would read the fast weights
            return [0] * len(chunk.counts)
        if once is None:
            return [num_passes] * len(chunk.counts)
        # arbitrary for a sequence that ends here, as nothing reads its fast weights after that
        return [1 if is_once else num_passes for is_once in chunk.gather(once).any(-1).tolist()]

    @torch.no_grad()
    def sleep(self, cache: Cache, num_passes: int | None = None, num_loops: int | None = None) -> None:
        """Write the open windows into the fast weights now, and drop their keys and values.

        The next token of every sequence starts a new window. A sequence whose window is empty is left unchanged.

        Args:
            cache (`Cache`): the cache, changed in place.
            num_passes (`int`, *optional*): number of passes, by default `config.num_sleep_passes`.
            num_loops (`int`, *optional*): number of loops that the cache was filled with, for a backbone that has
                loops; by default that of its configuration.

        Raises:
            ValueError: if the number of passes is not a positive integer, or the cache was not made for this model.
        """
        num_passes = self._check_num_passes(num_passes, "num_passes")
        passes = self._passes(self.depth_arguments(num_loops=num_loops), False, {})
        window: Any = check_sleep_cache(cache, passes)[0]
        indices = [index for index, filled in enumerate(window.filled) if filled > 0]
        windows = open_windows(passes, len(window.filled), cache)
        sleep_over(passes, windows, indices, num_passes).store(cache, 0)

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        window = self.config.sleep_window
        sequences, once = self.sequences_of(inputs), inputs.get("reads_once")
        once = None if once is None else sequences.gather(once)
        read, slept, cut = [], [], []
        for row, length in enumerate(sequences.lengths):
            spans = list(window_spans(self.config, [length]))
            for number, (span, sleep_span) in enumerate(spans):
                read.append(span)
                # the last window is not slept over
                is_last = number == len(spans) - 1
                if is_last or (once is not None and once[row, number * window : (number + 1) * window].any()):
                    continue
                (cut if self._cut_here([length], number + 1) else slept).append(sleep_span)
        # padding is normed, too
        padding = norm_work(self, measure) * (num_positions(inputs) - sum(sequences.lengths))
        work = padding + self._read_work(read, inputs, measure) + self._sleep_work(slept, inputs, measure)
        return work + self._sleep_work(cut, inputs, measure).without_gradient()

    def count_steps(self, steps: Sequence[int], inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        spans = list(window_spans(self.config, steps))
        slept = [span for _, span in spans if span is not None]
        read = self._read_work([span for span, _ in spans], inputs, measure)
        return read + self._sleep_work(slept, inputs, measure)

    def _read_work(self, spans: list[Span], inputs: Mapping[str, Any], measure: Measure) -> Work:
        """Count the passes that read the tokens of `spans`."""
        return norm_work(self, measure) * _num_rows(spans) + self._pass_work(spans, inputs, measure)

    def _sleep_work(self, spans: list[Span], inputs: Mapping[str, Any], measure: Measure) -> Work:
        """Count the further passes over windows."""
        num_passes = self._check_num_passes(inputs.get("num_sleep_passes"))
        if num_passes == 1 or not spans:
            return Work()
        work = Work(0, -self._unread_work(spans, inputs, measure))
        # CODEPATH: in the paper all layers sleep, or the middle ones
        if self.config.sleep_layers is None:
            return work + self._pass_work(spans, inputs, measure) * (num_passes - 1)
        calls, (start, end) = self.config.calls(), self.config.sleep_range
        core, coda = (self._pass_work(spans, inputs, measure, part) for part in (calls[start:end], calls[end:]))
        return work + core * (num_passes - 1) + coda

    def _unread_work(self, spans: list[Span], inputs: Mapping[str, Any], measure: Measure) -> int:
        """Count what gradient does not reach in the last pass over windows, as it follows the last write."""
        calls = Backbone(self).depth.trained_calls(**given_depth(self, inputs))
        last = max(index for index, call in enumerate(calls) if call.layer in self.config.writing_layers)
        # CODEPATH: the next window reads the keys and values of all calls, if they are kept
        if self.config.eviction == "sliding":
            last = max(last, len(calls) - 2)
        inserted: Any = dict(zip(self.config.memory_layers, self.memory_layers)).get(calls[last].layer)
        # CODEPATH: an inserted layer writes before it reads, a decoder's own layer is counted whole
        is_read = inserted is None or (self.config.eviction == "sliding" and last < len(calls) - 1)
        reads = [] if is_read else [inserted.gate_proj, inserted.output_norm, inserted.o_proj]
        read_work = sum(map(measure.module, reads)) * _num_rows(spans)
        return self._pass_work(spans, inputs, measure, calls[last + 1 :]).trained + read_work

    def _pass_work(
        self, spans: list[Span], inputs: Mapping[str, Any], measure: Measure, calls: list[Call] | None = None
    ) -> Work:
        """Count one pass of `calls`, by default of all, over the rows of spans."""
        depth, inserted = given_depth(self, inputs), dict(zip(self.config.memory_layers, self.memory_layers))
        rows = pass_work(self, depth, calls, inserted, measure) * _num_rows(spans)
        return rows + attention_work(self, depth, spans, measure, calls, inserted)

    def _passes(self, depth: dict[str, Any], all_layers: bool, kwargs: dict[str, Any]) -> SleepPasses:
        keywords = {name: value for name, value in kwargs.items() if name not in _PACKING_ARGUMENTS}
        return SleepPasses(self.sized_config(depth), Backbone(self), self.memory_layers, all_layers, keywords, depth)

    def _check_num_passes(self, num_passes: int | None, name: str = "num_sleep_passes") -> int:
        return self.config.num_sleep_passes if num_passes is None else check_count(name, num_passes)


def _num_rows(spans: list[Span]) -> int:
    return sum(span.num_queries for span in spans)


def _predicts(labels: torch.Tensor, shift_labels: torch.Tensor | None) -> torch.Tensor:
    """Return whether each token `[B, T]` predicts a label."""
    if shift_labels is not None:
        return shift_labels != IGNORE_INDEX
    return nn.functional.pad(labels != IGNORE_INDEX, (0, 1))[:, 1:]


# trf-ignore: TRF057 as above
class SleepForCausalLM(SleepPreTrainedModel, RecurrentForCausalLM, MemoryMixin):
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

    model_class = SleepModel
    set_arguments = frozenset(("reads_once",))

    @property
    def depth_names(self) -> tuple[str, ...]:
        return (*super().depth_names, "num_sleep_passes")

    def sleep(self, cache: Cache, num_passes: int | None = None, num_loops: int | None = None) -> None:
        """Write the open windows of a cache into its fast weights now, see `SleepModel.sleep`."""
        self.model.sleep(cache, num_passes, num_loops)

    # trf-ignore: TRF057 the signature is made of the arguments documented here and those of the model inside
    def forward(self, labels: torch.Tensor | None = None, **kwargs) -> RecurrentCausalLMOutputWithPast:
        """Run [`SleepModel`] and compute logits.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): the tokens to predict,
                -100 for none. With labels, a cache is made only if `use_cache` is set.

        Raises:
            ValueError: if [`SleepModel`] raises it, or labels are given with a cache and `config.sleep_over_labels` is
                `False`.
        """
        if labels is not None:
            has_cache = any(kwargs.get(name) is not None for name in ("cache", "past_key_values", "use_cache"))
            kwargs |= {} if has_cache else {"use_cache": False}
            kwargs |= self._reads_once(labels, kwargs.get("shift_labels"))
        return super().forward(labels=labels, **kwargs)

    def count_work(self, inputs: Mapping[str, Any], measure: Measure = PARAMETERS) -> Work:
        """Count the work of a forward pass, given the arguments of `forward`."""
        if inputs.get("labels") is not None:
            inputs = {**inputs, **self._reads_once(inputs["labels"], inputs.get("shift_labels"))}
        return work_with_head(self, inputs, measure)

    def _reads_once(self, labels: torch.Tensor, shift_labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        # CODEPATH: Algorithm 1 of the paper reads windows with labels once; generation has no such difference
        return {} if self.config.sleep_over_labels else {"reads_once": _predicts(labels, shift_labels)}


_classifiers = make_classifiers(SleepModel, SleepPreTrainedModel)
SleepForSequenceClassification, SleepForTokenClassification = _classifiers


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
