"""What a model with a time schedule still reads of a text, token by token, and what it knows through memory alone."""

from dataclasses import dataclass
from typing import Any


@dataclass
class MemoryView:
    """A text as a feedback or sleep model has it before it reads the next token.

    Args:
        unit (`str`): `"block"` or `"window"`.
        size (`int`): tokens of each.
        blocks (`list[int]`): of every token, the block it is in, from 0.
        is_read (`list[bool]`): whether the next token attends to it.
        remembers (`bool`): whether the model keeps anything else of the tokens that are no longer read.
        memory (`str`): what keeps it, in words.
    """

    unit: str
    size: int
    blocks: list[int]
    is_read: list[bool]
    remembers: bool
    memory: str

    @property
    def num_read(self) -> int:
        """Number of tokens that the next one attends to."""
        return sum(self.is_read)


def memory_view(config: Any, num_tokens: int, num_loops: int | None = None) -> MemoryView | None:
    """Say what a model keeps of a text.

    Args:
        config (`PreTrainedConfig`): the model's configuration.
        num_tokens (`int`): number of tokens read, the last included.
        num_loops (`int`, *optional*): loops of its backbone, by default those of the configuration.

    Returns:
        `MemoryView` or `None`: `None` of a model without a time schedule.
    """
    if config.model_type == "feedback_lm":
        depth = {} if num_loops is None else {"num_loops": num_loops}
        return _of_blocks(config, num_tokens, config.num_slots(**depth))
    return _of_windows(config, num_tokens) if config.model_type == "sleep_lm" else None


def _of_blocks(config: Any, num_tokens: int, num_calls: int) -> MemoryView:
    size, kept, length = config.block_size, config.num_memory_segments, config.feedback_length
    # the block that the next token belongs to
    block = num_tokens // size
    first = 0 if kept is None else max(0, (block - kept) * size)
    memory = f"{length} vectors in each of {num_calls} layer calls" if length else "no memory (feedback_length is 0)"
    return _view("block", size, first, num_tokens, length > 0, memory)


def _of_windows(config: Any, num_tokens: int) -> MemoryView:
    size = config.sleep_window
    first = num_tokens // size * size
    if config.eviction == "sliding":
        # kept beyond the border of a window, so that the next token reads as many as inside of one
        first = max(0, num_tokens - (size - 1))
    return _view("window", size, first, num_tokens, True, "fast weights, written while it read them and in its sleep")


def _view(unit: str, size: int, first: int, num_tokens: int, remembers: bool, memory: str) -> MemoryView:
    positions = range(num_tokens)
    blocks, is_read = [index // size for index in positions], [index >= first for index in positions]
    return MemoryView(unit, size, blocks, is_read, remembers, memory)


__all__ = ["MemoryView", "memory_view"]
