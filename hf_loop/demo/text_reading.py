"""Everything that the page shows of one prompt: continuations at several depths, the lens, exits, and the memory."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..analysis.inspection import inspect_prompt, show_token
from ..analysis.inspection_results import Inspection
from ..evaluation.running import default_generation
from ..models.evaluation_mode import evaluation_mode
from ..models.exits import RULES
from ..tokenizing import check_token_ids, encode_prompt
from .depth import DepthSlider, depth_slider
from .memory_view import MemoryView, memory_view


# tokens that the lens shows, and how many of them are of the continuation
LENS_TOKENS, LENS_NEW_TOKENS = 24, 16
# tokens that the memory shows, from the end of the text
MEMORY_TOKENS = 512


@dataclass
class ExitView:
    """Where tokens leave the loop under a rule, at the tokens of the lens.

    Args:
        criterion (`str`): the rule.
        threshold (`float`): its threshold.
        num_loops (`int`): the largest number of loops.
        loops (`list[int]`): of every token, the loops after which it left.
        is_same (`list[bool]`): of every token, whether the most probable next token is that after all loops.
    """

    criterion: str
    threshold: float
    num_loops: int
    loops: list[int]
    is_same: list[bool]

    @property
    def share_skipped(self) -> float:
        """The share of loops that the tokens skip."""
        return 1 - sum(self.loops) / (self.num_loops * len(self.loops))


@dataclass
class TextReading:
    """What the page shows of a prompt.

    Args:
        prompt (`str`): the prompt.
        depth (`int`, *optional*): the depth that was chosen; `None` of a model that has one depth alone.
        continuations (`dict[int | None, str]`): the text after the prompt, by depth.
        inspection (`Inspection`, *optional*): the answer after every loop at the last tokens of the prompt and the
            first of the continuation; `None` of a model without loops.
        num_new (`int`): how many tokens of the inspection are of the continuation.
        exits (`ExitView`, *optional*): where these tokens leave the loop, if a rule was chosen.
        tokens (`list[str]`): the tokens of prompt and continuation, the last of them.
        memory (`MemoryView`, *optional*): what a feedback or sleep model keeps of all tokens.
    """

    prompt: str
    depth: int | None
    continuations: dict[int | None, str]
    inspection: Inspection | None
    num_new: int
    exits: ExitView | None
    tokens: list[str]
    memory: MemoryView | None


class TextReader:
    """Reads prompts for the page. One call at a time: the lens watches the layers of the model.

    Args:
        model (`PreTrainedModel`): a causal language model of any family.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        name (`str`): what to call the model.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, name: str):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    @property
    def slider(self) -> DepthSlider | None:
        """The depths to choose from."""
        return depth_slider(self.model.config)

    @property
    def rules(self) -> dict[str, float]:
        """The exit rules that the model can follow, each with its default threshold."""
        config = self.model.config
        if config.model_type != "looped_lm":
            return {}
        return {
            name: rule.default_threshold for name, rule in RULES.items() if config.exit_gate or not rule.needs_gate
        }

    def read(
        self,
        prompt: str,
        depth: int | None = None,
        max_new_tokens: int = 16,
        criterion: str | None = None,
        threshold: float | None = None,
    ) -> TextReading:
        """Continue a prompt, greedily, and look inside.

        Args:
            prompt (`str`): the text.
            depth (`int`, *optional*): loops or passes, by default those of the configuration.
            max_new_tokens (`int`, *optional*, defaults to 16): length of every continuation.
            criterion (`str`, *optional*): the rule by which tokens exit, one of [`~TextReader.rules`].
            threshold (`float`, *optional*): its threshold, by default the rule's own.

        Raises:
            ValueError: if the prompt is empty or too long, or an argument does not fit the model.
        """
        slider = self.slider
        if slider is not None and depth is None:
            depth = slider.trained
        input_ids, _ = encode_prompt(self.tokenizer, prompt)
        check_token_ids(input_ids, self.model.config, self.name)
        input_ids = input_ids.to(self.model.device)
        depths: list[int | None] = [None] if slider is None or depth is None else [*slider.beside(depth)]
        new_tokens = {count: self._continue(input_ids, count, max_new_tokens) for count in depths}
        texts = {count: self._text(tokens) for count, tokens in new_tokens.items()}
        tokens = input_ids[0].tolist() + new_tokens[depth]
        num_new = min(len(new_tokens[depth]), LENS_NEW_TOKENS)
        shown = tokens[: input_ids.shape[1] + num_new]
        inspection = exits = None
        loops = depth if self.model.config.has_loops else None
        if self.model.config.has_loops:
            options: dict[str, Any] = {"num_loops": loops, "last": LENS_TOKENS, "label": self.name}
            inspection = inspect_prompt(self.model, self.tokenizer, shown, **options)
            if criterion is not None:
                exits = self._exits(shown, inspection.num_loops, criterion, threshold)
        memory = memory_view(self.model.config, len(tokens), loops)
        last = [show_token(self.tokenizer, index) for index in tokens[-MEMORY_TOKENS:]] if memory else []
        return TextReading(prompt, depth, texts, inspection, num_new, exits, last, memory)

    def _continue(self, input_ids: torch.Tensor, depth: int | None, max_new_tokens: int) -> list[int]:
        given = {} if self.slider is None else {self.slider.argument: depth}
        # a column of so many loops runs them, whatever exits the model's own settings have, and writes the tokens that
        # the lens has as most probable
        with default_generation(self.model):
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **given,
            )
        return output[0, input_ids.shape[1] :].tolist()

    def _text(self, tokens: list[int]) -> str:
        """Return tokens as text without the one that ends it. Other special tokens are shown: a model writes them."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        # an answer may end a text, too, as in the quickstart
        if tokens and tokens[-1] in ends and tokens[-1] == self.tokenizer.eos_token_id:
            tokens = tokens[:-1]
        return str(self.tokenizer.decode(tokens))

    def _exits(self, tokens: list[int], num_loops: int, criterion: str, threshold: float | None) -> ExitView:
        rules = self.rules
        if criterion not in rules:
            raise ValueError(f"the exit rule must be one of {', '.join(rules) or 'none'}, got {criterion!r}")
        threshold = rules[criterion] if threshold is None else threshold
        inputs: dict[str, Any] = {"input_ids": torch.tensor([tokens], device=self.model.device), "use_cache": False}
        inputs |= {"num_loops": num_loops, "logits_to_keep": LENS_TOKENS}
        with evaluation_mode(self.model):
            full = self.model(**inputs)
            early = self.model(**inputs, exit_criterion=criterion, exit_threshold=threshold)
        is_same = full.logits.argmax(dim=-1) == early.logits.argmax(dim=-1)
        loops = early.exit_loops[0, -LENS_TOKENS:].tolist()
        return ExitView(criterion, threshold, num_loops, loops, is_same[0].tolist())


__all__ = ["ExitView", "TextReader", "TextReading"]
