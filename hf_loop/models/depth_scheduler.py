# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Which sequences run next when sequences at different loops and tokens share one batch of the core.

A sequence is in one of two queues: it needs another loop of the core, or it is between two tokens, where the coda and
the head make a token and the prelude reads it. A call of few rows costs almost as much as one of many, so the longer
queue runs next, its first sequences first. With one sequence less than two batches in flight, one of the queues always
fills a batch: no call is made for few rows, and none waits for the slowest row.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class Step(NamedTuple):
    """What runs next.

    Args:
        is_loop (`bool`): whether the rows run one loop of the core; otherwise they go from a token to the next.
        rows (`list[int]`): rows of the block of caches.
    """

    is_loop: bool
    rows: list[int]


class DepthScheduler:
    """Chooses the rows of every call.

    Args:
        num_requests (`int`): prompts, numbered from 0, which are admitted in this order.
        max_batch_rows (`int`): most rows of a call.
        max_sequences (`int`): sequences in flight, each in a row of the block of caches.
    """

    def __init__(self, num_requests: int, max_batch_rows: int, max_sequences: int):
        self.max_batch_rows = max_batch_rows
        self.requests = deque(range(num_requests))
        self.free_rows = deque(range(max_sequences))
        # prompts are read some at a time: alone, a short one takes almost as long as several
        self.least_admitted = max(1, max_sequences // 4)
        self.in_loop: deque[int] = deque()
        self.between_tokens: deque[int] = deque()

    def admit(self) -> list[tuple[int, int]]:
        """Give free rows to the requests that wait, and return pairs of request and row; they are between tokens.

        There are none until a quarter of all rows is free, or a row for every request that is left.
        """
        admitted: list[tuple[int, int]] = []
        if len(self.free_rows) < min(self.least_admitted, len(self.requests)):
            return admitted
        while self.requests and self.free_rows:
            admitted.append((self.requests.popleft(), self.free_rows.popleft()))
            self.between_tokens.append(admitted[-1][1])
        return admitted

    def next_step(self) -> Step | None:
        """Take the rows that run next out of their queue; `None` if no sequence is in flight.

        The rows return by [`after_loop`] or [`after_token`].
        """
        # at equal length the token comes first: it gives the core more rows to choose from
        is_loop = self.num_rows(self.in_loop) > self.num_rows(self.between_tokens)
        queue = self.in_loop if is_loop else self.between_tokens
        rows = [queue.popleft() for _ in range(self.num_rows(queue))]
        return Step(is_loop, rows) if rows else None

    def num_rows(self, queue: deque[int]) -> int:
        """Return how many rows of a queue a call can take."""
        return min(len(queue), self.max_batch_rows)

    def after_loop(self, rows: Iterable[int], exits: Iterable[bool]) -> None:
        """Take back rows that have run a loop, and whether each has exited."""
        for row, has_exited in zip(rows, exits, strict=True):
            (self.between_tokens if has_exited else self.in_loop).append(row)

    def after_token(self, rows: Iterable[int], ends: Iterable[bool]) -> None:
        """Take back rows that went to their next token, and whether each sequence has ended instead."""
        for row, has_ended in zip(rows, ends, strict=True):
            (self.free_rows if has_ended else self.in_loop).append(row)


__all__ = ["DepthScheduler", "Step"]
