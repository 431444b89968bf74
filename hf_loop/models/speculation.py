# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Self-speculation: the first loops draft some tokens, and the remaining loops go on from their states, all at once.

    draft    for each of k tokens: prelude, loops 1 to d, coda and head give the next token
    verify   loops d + 1 to R and the coda run once, on the states of the last token and of all drafted ones together
    keep     the drafted tokens before the first that the full model would not choose, and the full model's own there

The keys and values of a loop depend on that loop's states of earlier tokens only, so those that drafting writes in
loops 1 to d are those of the full model. Only the coda runs twice. The tokens are those of the full model, or have its
distribution if they are sampled (https://huggingface.co/papers/2211.17192). All rows of a batch keep as many tokens as
the row that keeps the fewest.
"""

from typing import Any, NamedTuple

import torch
from transformers import SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation import GenerationMode

from .checks import check_count
from .decoding_seams import pad_token_of, prefill
from .drafted_text import DraftedText, choose
from .loop_cache import check_attention_cache, crop_slots, parse_policy
from .modeling_recurrent import ForwardPass, ModelInputs
from .outputs import SpeculationOutput
from .transformers_seams import CACHE_NAME, is_prompted, named_cache


# arguments of `generate` that stay in its configuration: `forward` does not know them
DRAFT_NAMES = ("draft_loops", "num_draft_tokens")
NUM_DRAFT_TOKENS = 4
# these run the model or count their calls, and would take drafts for tokens of the text
_WITH_STATE = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)


def check_drafting(generation_config: Any, model_kwargs: dict[str, Any], num_loops: int) -> None:
    """Check the settings of a call to `generate`, and fill in the default number of drafted tokens.

    Args:
        generation_config (`GenerationConfig`): the configuration of the call.
        model_kwargs (`dict`): the arguments of the forward pass.
        num_loops (`int`): number of loops of the call.

    Raises:
        ValueError: if a number is not a positive integer, `draft_loops` is not less than `num_loops`, or another
            setting contradicts drafts.
    """
    draft_loops, num_draft_tokens = (getattr(generation_config, name, None) for name in DRAFT_NAMES)
    if draft_loops is None:
        if num_draft_tokens is not None:
            raise ValueError(
                f"`num_draft_tokens` needs `draft_loops`, got num_draft_tokens={num_draft_tokens!r} alone"
            )
        return
    if check_count("draft_loops", draft_loops) >= num_loops:
        raise ValueError(f"`draft_loops` must be less than num_loops={num_loops}, got {draft_loops!r}")
    num_draft_tokens = check_count(
        "num_draft_tokens", NUM_DRAFT_TOKENS if num_draft_tokens is None else num_draft_tokens
    )
    generation_config.draft_loops, generation_config.num_draft_tokens = int(draft_loops), num_draft_tokens
    given = {**vars(generation_config), **model_kwargs}
    allowed: dict[str, tuple[Any, ...]] = {
        "num_beams": (None, 1),
        "use_cache": (None, True),
        "cache_implementation": (None, "dynamic"),
        "cache_policy": (None, "own"),
        "exit_criterion": (None,),
        "contrast_loop": (None,),
        "prompt_lookup_num_tokens": (None,),
        "assistant_early_exit": (None,),
        "output_attentions": (None, False),
        "output_hidden_states": (None, False),
    }
    for name, values in allowed.items():
        if not any(given.get(name) is value or given.get(name) == value for value in values):
            raise ValueError(f"`{name}` must be {values[-1]!r} with `draft_loops`, got {given[name]!r}")
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"`draft_loops` works with greedy search and sampling, got {mode.value}")


def check_call(model: Any, cache: Any, logits_processor: Any, synced_gpus: bool) -> None:
    """Check what `generate` has prepared for a call with drafts.

    Raises:
        ValueError: if the cache, a processor of logits or the way the model is run does not work with drafts.
    """
    check_attention_cache(cache, "draft_loops")
    policy = getattr(cache, "policy", parse_policy(None))
    if policy.name != "own":
        raise ValueError(f"`cache` must have the policy 'own' with `draft_loops`, got {str(policy)!r}")
    for processor in logits_processor:
        if isinstance(processor, _WITH_STATE):
            raise ValueError(
                f"`draft_loops` works with logits processors without state, got {type(processor).__name__}"
            )
    if synced_gpus:
        raise ValueError(f"`synced_gpus` must be False with `draft_loops`, got {synced_gpus!r}")
    if is_prompted(model):
        raise ValueError("`draft_loops` does not work with PEFT's prompts and prefixes, which are added in `forward`")


class Drafts(NamedTuple):
    """The last token of a text and the drafted tokens after it, all in the state after the loops of drafting.

    Args:
        tokens (`torch.LongTensor` of shape `[B, k]`): the drafted tokens.
        scores (`list[torch.Tensor]`): the scores that each was chosen by, k of `[B, V]`.
        state (`torch.Tensor` of shape `[B, k + 1, D]`): the state of the last token and of the drafted ones.
        encoded (`torch.Tensor` of shape `[B, k + 1, D]`): the prelude's output.
        verification (`ForwardPass`): the inputs of the remaining layer calls.
    """

    tokens: torch.Tensor
    scores: list[torch.Tensor]
    state: torch.Tensor
    encoded: torch.Tensor
    verification: ForwardPass


class SelfSpeculation:
    """The drafts and verifications of one call of `generate`.

    Args:
        model (`LoopedForCausalLM`): the model.
        generation_config (`GenerationConfig`): the configuration of the call, with `draft_loops` and
            `num_draft_tokens`.
        num_loops (`int`, *optional*): number of loops, by default the model's.
        cache (`DynamicCache`): the cache.
    """

    def __init__(self, model: Any, generation_config: Any, num_loops: int | None, cache: Any):
        self.model, self.cache = model, cache
        self.draft_loops: int = generation_config.draft_loops
        self.num_draft_tokens: int = generation_config.num_draft_tokens
        self.depth = model.model.depth_arguments(num_loops=num_loops)

    def draft(self, text: DraftedText, model_kwargs: dict[str, Any]) -> Drafts:
        """Draft tokens after a text of which the cache holds all but the last token.

        Args:
            text (`DraftedText`): the text.
            model_kwargs (`dict`): the arguments of the forward pass for the last token.
        """
        tokens, states, scores = text.tokens, [], []
        inputs, forward_pass = self.start_pass(tokens[:, -1:], 0, model_kwargs)
        num_drafts = self.count_drafts(text, forward_pass)
        # prepared now, while no slot holds a drafted token
        _, verification = self.start_pass(tokens[:, -1:].expand(-1, num_drafts + 1), 0, model_kwargs)
        for index in range(num_drafts + 1):
            if index > 0:
                inputs, forward_pass = self.start_pass(tokens[:, -1:], index, model_kwargs)
            state, encoded, expected = self.run_first_loops(inputs, forward_pass)
            states.append((state, encoded))
            if index < num_drafts:
                logits = self.run_coda(expected, forward_pass)[:, -1]
                scores.append(text.process(tokens, logits))
                tokens = torch.cat([tokens, text.fill(choose(scores[-1], text.do_sample))[:, None]], dim=1)
        crop_slots(self.cache, [call.slot for call in forward_pass.backbone.depth.coda_calls()], num_drafts)
        # CODEPATH: the layers of Parcae embed tokens themselves
        if verification.backbone.spec.layers_take_token_ids:
            verification.inputs.kwargs["token_ids"] = tokens[:, -num_drafts - 1 :].to(self.model.device)
        state, encoded = (torch.cat(parts, dim=1) for parts in zip(*states))
        return Drafts(tokens[:, text.tokens.shape[1] :], scores, state, encoded, verification)

    def count_drafts(self, text: DraftedText, forward_pass: ForwardPass) -> int:
        """Return how many tokens to draft."""
        backbone = forward_pass.backbone
        num_drafts = min(self.num_draft_tokens, text.num_wanted - 1)
        if backbone.spec.has_position_table and backbone.num_positions is not None:
            # the text may end before the table does
            num_drafts = min(num_drafts, backbone.num_positions - self.cache.get_seq_length() - 1)
        return max(num_drafts, 0)

    def start_pass(
        self, tokens: torch.Tensor, index: int, model_kwargs: dict[str, Any]
    ) -> tuple[ModelInputs, ForwardPass]:
        """Prepare a pass over tokens `[B, T]`, of which the first comes `index` places after the text's last token."""
        device, num_tokens = self.model.device, tokens.shape[1]
        mask, positions = model_kwargs.get("attention_mask"), model_kwargs["position_ids"].to(device)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], index + num_tokens - 1)], dim=1).to(device)
        positions = positions[..., -1:] + torch.arange(index, index + num_tokens, device=device)
        inputs = ModelInputs(tokens.to(device), mask, positions, self.cache, None, True)
        return inputs, self.model.model.start_pass(inputs, self.depth)

    def run_first_loops(self, inputs: ModelInputs, forward_pass: ForwardPass) -> tuple[torch.Tensor, ...]:
        """Run the prelude and the loops of drafting.

        Returns:
            `tuple[torch.Tensor, ...]`: the state after these loops, the prelude's output, and what the state is
            expected to be after all loops, each `[B, T, D]`.
        """
        schedule, run_call, num_loops = forward_pass.backbone.depth, forward_pass.run_call, self.depth["num_loops"]
        encoded = schedule.run_prelude(forward_pass.hidden_states, run_call)
        first = state = self.model.model.first_state(encoded, inputs, forward_pass.inputs.position_ids)
        for loop in range(self.draft_loops):
            state = schedule.run_loop(loop, state, encoded, run_call, num_loops)
        # CODEPATH: by default a damped loop goes one of `num_loops` equal parts of the way, and the rest is much alike
        if self.model.config.loop_update == "damped" and self.model.config.loop_step is None:
            return state, encoded, first + (state - first) * (num_loops / self.draft_loops)
        return state, encoded, state

    def run_coda(self, state: torch.Tensor, forward_pass: ForwardPass) -> torch.Tensor:
        """Return the logits `[B, T, V]` that the coda and the head give of the state after some loop, `[B, T, D]`."""
        schedule = forward_pass.backbone.depth
        return self.model.read_logits(schedule.finish(schedule.run_coda(state, forward_pass.run_call)))

    def verify(self, drafts: Drafts) -> torch.Tensor:
        """Run the remaining loops, and return the full model's logits `[B, k + 1, V]` after each of the tokens."""
        forward_pass = drafts.verification
        state = forward_pass.backbone.depth.run_loops(
            drafts.state, drafts.encoded, forward_pass.run_call, **self.depth, first_loop=self.draft_loops
        )
        return self.run_coda(state, forward_pass)


def decode_with_drafts(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    **model_kwargs,
) -> Any:
    """Generate with drafts; the arguments are those that `generate` prepares for greedy search and sampling.

    Returns:
        `torch.LongTensor` of shape `[B, T]`, or [`SpeculationOutput`] with `return_dict_in_generate`: the text.

    Raises:
        ValueError: if the cache, a processor of logits or the way the model is run does not work with drafts.
    """
    cache: Any = model_kwargs.get(CACHE_NAME)
    check_call(model, cache, logits_processor, synced_gpus)
    pad_token = pad_token_of(generation_config, input_ids.device)
    text = DraftedText(input_ids, logits_processor, stopping_criteria, generation_config, pad_token, streamer)
    speculation = SelfSpeculation(model, generation_config, model_kwargs.get("num_loops"), cache)
    outputs = prefill(model, input_ids, generation_config, model_kwargs)
    # the prompt is read: what leaves a sliding window from here on is kept until it is sure to leave
    cache.activate_past_recording()
    num_added = text.append(outputs.logits[:, -1:])
    counts = []
    while not text.is_finished:
        model_kwargs = model.next_model_kwargs(outputs, model_kwargs, num_new_tokens=num_added)
        drafts = speculation.draft(text, model_kwargs)
        num_added = text.append(speculation.verify(drafts), drafts.tokens, drafts.scores)
        crop_slots(cache, range(len(cache.layers)), drafts.state.shape[1] - num_added)
        counts.append(num_added)
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return text.tokens
    return SpeculationOutput(
        sequences=text.tokens,
        **text.records(),
        **named_cache(cache),
        tokens_per_verification=torch.tensor(counts, dtype=torch.long),
    )


__all__ = ["DRAFT_NAMES", "Drafts", "SelfSpeculation", "check_call", "check_drafting", "decode_with_drafts"]
