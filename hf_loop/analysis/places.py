"""Where in a forward pass a layer call is: the block or window of a time schedule, the pass over it, and its tokens.

A depth schedule runs every call once, over all tokens. A feedback model runs it once for every block, with rows of
memory beside the tokens; a sleep model once for every window, and again in every pass of sleep.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..models.backbone import Backbone
from ..models.feedback_plan import memory_queries
from ..models.schedules import Call
from ..models.token_sequences import plan_chunks


class Place(NamedTuple):
    """Where a layer call is in a forward pass without a cache.

    Args:
        window (`int`): the block of a feedback model or the window of a sleep model, from 0; 0 in other models.
        sleep_pass (`int`): 0 when tokens are read; 1 and more in the passes of sleep that follow.
        start (`int`): position of the first token.
        num_tokens (`int`): number of tokens.
        num_lead (`int`): rows of memory before the tokens.
        num_tail (`int`): rows of memory after the tokens.
    """

    window: int
    sleep_pass: int
    start: int
    num_tokens: int
    num_lead: int = 0
    num_tail: int = 0

    @property
    def rows(self) -> slice:
        """The rows of the tokens among those of the call."""
        return slice(self.num_lead, self.num_lead + self.num_tokens)


class CallClock:
    """Tells the place of every layer call of one forward pass, from the order in which they run.

    Args:
        model (`PreTrainedModel`): a model of any family, with or without a head.
        num_tokens (`int`): tokens of every row of the batch; none is padding if the model has a time schedule.
        num_loops (`int`, *optional*): number of loops of the pass, by default that of the configuration.
        num_sleep_passes (`int`, *optional*): passes over a window of a sleep model, by default its configuration's.

    Attributes:
        calls (`list[Call]`): the layer calls of one pass over tokens.
    """

    def __init__(
        self, model: Any, num_tokens: int, num_loops: int | None = None, num_sleep_passes: int | None = None
    ) -> None:
        config = model.config
        depth = {} if num_loops is None else {"num_loops": num_loops}
        self.calls: list[Call] = Backbone(model.base_model).depth.calls(**depth)
        self.num_tokens = num_tokens
        self.places: dict[int, Iterator[Place]] = {}
        whole = [Place(0, 0, 0, num_tokens)]
        if config.model_type == "feedback_lm":
            whole = list(_block_places(config, num_tokens))
        num_passes: Any = None
        if config.model_type == "sleep_lm":
            num_passes = config.num_sleep_passes if num_sleep_passes is None else num_sleep_passes
        for index, call in enumerate(self.calls):
            places = whole
            if num_passes is not None:
                places = list(_window_places(config, num_tokens, _times_asleep(config, index, num_passes)))
            self.places[call.slot] = iter(places)

    def place(self, call: Call) -> Place:
        """Return the place of the next run of a layer call.

        Raises:
            RuntimeError: if a forward pass has no such run.
        """
        place = next(self.places[call.slot], None)
        if place is None:
            raise RuntimeError(f"{call} ran more often than a forward pass of {self.num_tokens} tokens has places")
        return place


def _block_places(config: Any, num_tokens: int) -> Iterator[Place]:
    has_memory = bool(config.feedback_length) and (config.feedback_source == "top" or config.feedback_init == "prefix")
    for window, chunk in enumerate(plan_chunks([num_tokens], [0], config.block_size, keep_all=False)):
        is_complete = chunk.num_tokens == config.block_size
        lead, tail = memory_queries(config, is_complete, has_memory)
        yield Place(window, 0, chunk.starts[0], chunk.num_tokens, lead, tail)
        has_memory = has_memory or is_complete


def _window_places(config: Any, num_tokens: int, times_asleep: int) -> Iterator[Place]:
    for window, start in enumerate(range(0, num_tokens, config.sleep_window)):
        length = min(config.sleep_window, num_tokens - start)
        yield Place(window, 0, start, length)
        # the last window is not slept over
        if start + length < num_tokens:
            yield from (Place(window, again, start, length) for again in range(1, times_asleep + 1))


def _times_asleep(config: Any, index: int, num_passes: int) -> int:
    """Return how often a call, the `index`-th of a pass, runs again over a window that is slept over."""
    if num_passes == 1:
        return 0
    if config.sleep_layers is None:
        return num_passes - 1
    start, end = config.sleep_range
    if index < start:
        return 0
    return num_passes - 1 if index < end else 1


__all__ = ["CallClock", "Place"]
