# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A batch of texts that grow by drafted tokens, of which the full model's own choice decides."""

from typing import Any

import torch


class DraftedText:
    """The texts of one call of `generate`.

    Args:
        tokens (`torch.LongTensor` of shape `[B, T]`): the prompts.
        logits_processor (`LogitsProcessorList`): changes logits to the scores by which a token is chosen.
        stopping_criteria (`StoppingCriteriaList`): tells after every token which rows are finished.
        generation_config (`GenerationConfig`): the configuration of the call.
        pad_token (`torch.Tensor`, *optional*): what finished rows are filled with.
        streamer (`BaseStreamer`, *optional*): gets every token.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        pad_token: torch.Tensor | None = None,
        streamer: Any = None,
    ):
        self.tokens: Any = tokens
        self.logits_processor, self.stopping_criteria, self.streamer = logits_processor, stopping_criteria, streamer
        self.do_sample: bool = generation_config.do_sample
        self.max_length: int = generation_config.max_length
        self.unfinished = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        # without an end-of-text token, rows go on until all stop
        has_end = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        self.pad_token = pad_token if has_end else None
        recorded = generation_config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if recorded and generation_config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if recorded and generation_config.output_logits else None

    @property
    def is_finished(self) -> bool:
        """Whether all rows are finished."""
        return not self.unfinished.any()

    @property
    def num_wanted(self) -> int:
        """The largest number of tokens that are still to be generated."""
        return self.max_length - self.tokens.shape[1]

    def process(self, tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores `[B, V]` of the token after `tokens` `[B, T]`, given its logits `[B, V]`."""
        # a copy, since processors may write into it
        return self.logits_processor(tokens, logits.to(tokens.device, torch.float32, copy=True))

    def fill(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return next tokens `[B]`, with padding in finished rows."""
        return tokens if self.pad_token is None else torch.where(self.unfinished, tokens, self.pad_token)

    def append(
        self, logits: torch.Tensor, drafted: torch.Tensor | None = None, draft_scores: list[torch.Tensor] | None = None
    ) -> int:
        """Append tokens until one differs from its draft.

        Args:
            logits (`torch.Tensor` of shape `[B, k + 1, V]`): the full model's logits after the text's last token and
                after each drafted one.
            drafted (`torch.LongTensor` of shape `[B, k]`, *optional*): the drafted tokens.
            draft_scores (`list[torch.Tensor]`, *optional*): the scores that each was chosen by, k of `[B, V]`.

        Returns:
            `int`: the number of tokens that were appended, from 1 to k + 1.
        """
        num_drafts = 0 if drafted is None else drafted.shape[1]
        for index in range(num_drafts + 1):
            scores = self.process(self.tokens, logits[:, index])
            if drafted is None or draft_scores is None or index == num_drafts:
                self.add(choose(scores, self.do_sample), scores, logits[:, index])
                continue
            draft = drafted[:, index]
            if self.do_sample:
                tokens = sample_verified(scores, draft_scores[index], draft)
            else:
                tokens = choose(scores, do_sample=False)
            # the padding of a row that has ended in this block differs, too
            differs = (self.fill(tokens) != draft).any()
            self.add(tokens, scores, logits[:, index])
            if differs or self.is_finished:
                return index + 1
        return num_drafts + 1

    def add(self, tokens: torch.Tensor, scores: torch.Tensor, logits: torch.Tensor) -> None:
        """Add one token to every row, chosen by scores `[B, V]` of logits `[B, V]`."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits.to(scores.device, torch.float32, copy=True))
        tokens = self.fill(tokens)
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        self.unfinished = self.unfinished & ~self.stopping_criteria(self.tokens, self.scores)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())

    def records(self) -> dict[str, Any]:
        """Return the scores and the logits of every token, as far as they were asked for."""
        records = {"scores": self.scores, "logits": self.logits}
        return {name: None if tensors is None else tuple(tensors) for name, tensors in records.items()}


def choose(scores: torch.Tensor, do_sample: bool) -> torch.Tensor:
    """Choose tokens `[B]` by scores `[B, V]`."""
    if not do_sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)


def sample_verified(scores: torch.Tensor, draft_scores: torch.Tensor, drafted: torch.Tensor) -> torch.Tensor:
    """Sample tokens `[B]` of the full model, which are the drafted ones as often as possible.

    This is algorithm 1 of https://huggingface.co/papers/2211.17192. A token of probability p that was drafted with
    probability q stays with probability min(1, p / q); otherwise one is sampled in proportion to max(0, p - q). So
    every token comes with probability p.

    Args:
        scores (`torch.Tensor` of shape `[B, V]`): the full model's scores.
        draft_scores (`torch.Tensor` of shape `[B, V]`): the scores that the drafted tokens were sampled by.
        drafted (`torch.LongTensor` of shape `[B]`): the drafted tokens.
    """
    target, draft = scores.softmax(dim=-1), draft_scores.softmax(dim=-1)
    p, q = (probabilities.gather(1, drafted[:, None]).squeeze(1) for probabilities in (target, draft))
    rest = (target - draft).clamp(min=0)
    # without a rest, only rounding refuses a draft
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, target)
    others = torch.multinomial(rest, num_samples=1).squeeze(1)
    return torch.where(torch.rand_like(q) * q < p, drafted, others)


__all__ = ["DraftedText", "choose", "sample_verified"]
