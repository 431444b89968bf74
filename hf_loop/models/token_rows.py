# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a batch are run together, when every row has a block grid of its own.

Blocks are counted over a row's real tokens: padding does not shift them, and a cache may have left the rows at
different places of their blocks. A batch is therefore run in *rounds*: in each, every row gives the tokens up to the
end of its open block, or as many as it has left. Rows that start together stay together, so that without padding or
with padding on either side a round is a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenRows:
    """The real tokens of a batch, row by row from the left.

    Args:
        lengths (`list[int]`): tokens of each row.
        index (`torch.LongTensor` of shape `[R, N]`, *optional*): which of the `B * T` tokens of the batch is token `n`
            of row `r`; anything beyond the row's length. `None` where the rows are the batch itself.
        order (`list[int]`): the row of the batch, or the document in it, that each row is.
    """

    lengths: list[int]
    index: torch.Tensor | None
    order: list[int]

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """The rows `[R, N, ...]` of a batch `[B, T, ...]`."""
        return states if self.index is None else states.flatten(0, 1)[self.index]


@dataclass(frozen=True)
class Round:
    """What each row gives to one round.

    Args:
        starts (`list[int]`): the first token of every row, counted in what this forward pass was given.
        counts (`list[int]`): the number of tokens of every row.
        seen (`list[int]`): the tokens of every row before those, in this forward pass or an earlier one.
    """

    starts: list[int]
    counts: list[int]
    seen: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row that gives most."""
        return max(self.counts)

    @property
    def ends(self) -> list[int]:
        """The tokens of every row up to the end of the round."""
        return [seen + count for seen, count in zip(self.seen, self.counts)]

    @property
    def is_aligned(self) -> bool:
        """Whether all rows give the same tokens of their blocks."""
        return len(set(zip(self.starts, self.counts, self.seen))) == 1

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """The tokens `[R, n, ...]` of this round, out of all rows' `[R, N, ...]`; anything where a row has fewer."""
        num_rows, num_tokens = len(self.starts), self.num_tokens
        if len(set(self.starts)) == 1:
            taken = states[:num_rows, self.starts[0] : self.starts[0] + num_tokens]
            if taken.shape[1] == num_tokens:
                return taken
        index = torch.tensor(self.starts)[:, None] + torch.arange(num_tokens)
        index = index.clamp(max=states.shape[1] - 1).to(states.device)
        return states[torch.arange(num_rows, device=states.device)[:, None], index]


def plan_rounds(lengths: list[int], seen: list[int], block_size: int, keep_rows: bool) -> Iterator[Round]:
    """The rounds of one forward pass.

    Args:
        lengths (`list[int]`): tokens that each row is given.
        seen (`list[int]`): tokens that each row has had before.
        block_size (`int`): tokens in a block.
        keep_rows (`bool`): whether rows that have run out stay in the batch, as a cache needs it. Otherwise the rows
            must come longest first, and the batch becomes shorter.
    """
    starts = [0] * len(lengths)
    while any(start < length for start, length in zip(starts, lengths)):
        counts = [
            min(length - start, block_size - (past + start) % block_size)
            for length, start, past in zip(lengths, starts, seen)
        ]
        num_rows = len(counts) if keep_rows else sum(count > 0 for count in counts)
        before = [past + start for past, start in zip(seen, starts)]
        yield Round(starts[:num_rows], counts[:num_rows], before[:num_rows])
        starts = [start + count for start, count in zip(starts, counts)]


def arrange_rows(
    batch_size: int,
    length: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    has_cache: bool,
) -> TokenRows:
    """The rows of one forward pass.

    Args:
        batch_size (`int`): B.
        length (`int`): T.
        attention_mask (`torch.Tensor` of shape `[B, >= T]`, *optional*): 0 at padding; the last `T` columns are those
            of this forward pass.
        position_ids (`torch.LongTensor` of shape `[B or 1, T]`, *optional*): which start anew at every document of a
            packed row, where there is neither mask nor cache.
        has_cache (`bool`): whether the rows stay those of a cache, in its order.

    Raises:
        ValueError: the mask is not one of padding, or is shorter than the tokens.
    """
    if attention_mask is not None:
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
            raise ValueError("`attention_mask` must be one of padding, of shape (batch_size, sequence_length)")
        if attention_mask.shape[0] != batch_size or attention_mask.shape[1] < length:
            raise ValueError(
                f"`attention_mask` must cover {batch_size} rows of {length} tokens, got {tuple(attention_mask.shape)}"
            )
        return padded_rows(attention_mask[:, -length:], sort=not has_cache)
    if position_ids is not None and not has_cache:
        return packed_rows(position_ids.expand(batch_size, -1))
    return batch_rows(batch_size, length)


def batch_rows(batch_size: int, length: int) -> TokenRows:
    """The rows of a batch in which every token is real."""
    return TokenRows([length] * batch_size, None, list(range(batch_size)))


def padded_rows(attention_mask: torch.Tensor, sort: bool) -> TokenRows:
    """The rows of a padded batch.

    Args:
        attention_mask (`torch.Tensor` of shape `[B, T]`): 0 at padding, which may be anywhere.
        sort (`bool`): whether the longest row comes first.
    """
    is_real = attention_mask != 0
    batch_size, length = attention_mask.shape
    # the schedule is decided on the host: one synchronisation per forward pass, as flash attention's unpadding has
    lengths: list[int] = is_real.sum(-1).tolist()
    if min(lengths) == length:
        return batch_rows(batch_size, length)
    columns = torch.argsort((~is_real).to(torch.int8), dim=-1, stable=True)[:, : max(max(lengths), 1)]
    index = columns + length * torch.arange(batch_size, device=columns.device)[:, None]
    return _longest_first(lengths, index) if sort else TokenRows(lengths, index, list(range(batch_size)))


def packed_rows(position_ids: torch.Tensor) -> TokenRows:
    """The documents of packed rows: one starts wherever a position does not follow the one before.

    Args:
        position_ids (`torch.LongTensor` of shape `[B, T]`): positions within the documents.
    """
    batch_size, length = position_ids.shape
    is_first = torch.ones_like(position_ids, dtype=torch.bool)
    is_first[:, 1:] = position_ids.diff(dim=-1) != 1
    firsts: list[int] = is_first.flatten().nonzero()[:, 0].tolist()
    if len(firsts) == batch_size:
        return batch_rows(batch_size, length)
    lengths = [end - first for first, end in zip(firsts, [*firsts[1:], batch_size * length])]
    index = torch.tensor(firsts)[:, None] + torch.arange(max(lengths))
    return _longest_first(lengths, index.clamp(max=batch_size * length - 1).to(position_ids.device))


def _longest_first(lengths: list[int], index: torch.Tensor) -> TokenRows:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return TokenRows([lengths[row] for row in order], index[torch.tensor(order, device=index.device)], order)


def gather_outputs(rounds: list[Round], outputs: list[torch.Tensor], rows: TokenRows, shape: torch.Size):
    """Put the outputs of the rounds back where their tokens are in the batch.

    Args:
        rounds (`list[Round]`): the rounds.
        outputs (`list[torch.Tensor]`): of each round, the states `[R, n, D]` of its tokens.
        rows (`TokenRows`): the rows that were run.
        shape (`torch.Size`): the shape `[B, T, D]` of the batch.

    Returns:
        `torch.Tensor` of shape `[B, T, D]`, zero at padding.
    """
    if rows.index is None and all(round_.is_aligned for round_ in rounds):
        return torch.cat(outputs, dim=1)
    batch_size, length, hidden_size = shape
    device = outputs[0].device
    places = []
    for round_, output in zip(rounds, outputs):
        num_rows, num_tokens = output.shape[:2]
        token = torch.arange(num_tokens)
        start = torch.tensor(round_.starts)[:, None]
        is_token = (token < torch.tensor(round_.counts)[:, None]).to(device)
        row_index = (start + token).to(device)
        if rows.index is None:
            place = row_index + length * torch.arange(num_rows, device=device)[:, None]
        else:
            place = rows.index[:num_rows].gather(1, row_index.clamp(max=rows.index.shape[1] - 1))
        # what is no token goes to a place that is cut off
        places.append(torch.where(is_token, place, batch_size * length).flatten())
    values = torch.cat([output.flatten(0, 1) for output in outputs])
    gathered = values.new_zeros(batch_size * length + 1, hidden_size)
    return gathered.index_copy(0, torch.cat(places), values)[:-1].view(batch_size, length, hidden_size)
