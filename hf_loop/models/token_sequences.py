# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Splits the tokens of a batch into chunks, the steps of a time schedule.

Each sequence has its own grid of blocks, counted over its real tokens: padding does not shift it, and a cache may hold
sequences at different positions within their blocks. A batch is therefore run in *chunks*: each takes from every
sequence the tokens up to the end of its current block. Sequences that start together stay together, so without a cache
a chunk is one block of every sequence, whatever the padding.

Shapes: R sequences, of up to N tokens; n tokens of a chunk; B, T and D as in the batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSequences:
    """The real tokens of a batch, by sequence.

    Args:
        lengths (`list[int]`): number of tokens of each sequence.
        index (`torch.LongTensor` of shape `[R, N]`, *optional*): position of each token among the `B * T` of the
            batch, arbitrary beyond a sequence's length. `None` if the sequences are the rows of the batch.
        order (`list[int]`): index of each sequence in the batch, or among the documents of a packed batch.
    """

    lengths: list[int]
    index: torch.Tensor | None
    order: list[int]

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Gather the sequences `[R, N, ...]` from a batch `[B, T, ...]`."""
        return states if self.index is None else states.flatten(0, 1)[self.index]


@dataclass(frozen=True)
class Chunk:
    """The tokens of each sequence that are run together.

    Args:
        starts (`list[int]`): index of each sequence's first token in this forward pass.
        counts (`list[int]`): number of tokens of each sequence.
        seen (`list[int]`): number of tokens of each sequence before the chunk, those of earlier forward passes
            included.
    """

    starts: list[int]
    counts: list[int]
    seen: list[int]

    @property
    def num_tokens(self) -> int:
        """The largest number of tokens of a sequence."""
        return max(self.counts)

    @property
    def ends(self) -> list[int]:
        """Number of tokens of each sequence up to the end of the chunk."""
        return [seen + count for seen, count in zip(self.seen, self.counts)]

    @property
    def is_aligned(self) -> bool:
        """Whether all sequences have the same tokens of their blocks."""
        return len(set(zip(self.starts, self.counts, self.seen))) == 1

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Gather the chunk `[R, n, ...]` from the sequences `[R, N, ...]`, arbitrary beyond a sequence's count."""
        num_sequences, num_tokens = len(self.starts), self.num_tokens
        if len(set(self.starts)) == 1:
            gathered = states[:num_sequences, self.starts[0] : self.starts[0] + num_tokens]
            if gathered.shape[1] == num_tokens:
                return gathered
        index = torch.tensor(self.starts)[:, None] + torch.arange(num_tokens)
        index = index.clamp(max=states.shape[1] - 1).to(states.device)
        return states[torch.arange(num_sequences, device=states.device)[:, None], index]


def plan_chunks(lengths: list[int], seen: list[int], block_size: int, keep_all: bool) -> Iterator[Chunk]:
    """Yield the chunks of one forward pass.

    Args:
        lengths (`list[int]`): number of tokens of each sequence in this forward pass.
        seen (`list[int]`): number of tokens of each sequence in earlier ones.
        block_size (`int`): tokens in a block.
        keep_all (`bool`): whether sequences that have ended stay in the batch, as a cache needs it. Otherwise they are
            dropped, and `lengths` must be in descending order.
    """
    starts = [0] * len(lengths)
    while any(start < length for start, length in zip(starts, lengths)):
        counts = [
            min(length - start, block_size - (past + start) % block_size)
            for length, start, past in zip(lengths, starts, seen)
        ]
        num_sequences = len(counts) if keep_all else sum(count > 0 for count in counts)
        before = [past + start for past, start in zip(seen, starts)]
        yield Chunk(starts[:num_sequences], counts[:num_sequences], before[:num_sequences])
        starts = [start + count for start, count in zip(starts, counts)]


def arrange_sequences(
    batch_size: int,
    length: int,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    has_cache: bool,
) -> TokenSequences:
    """Find the sequences of one forward pass.

    Args:
        batch_size (`int`): B.
        length (`int`): T.
        attention_mask (`torch.Tensor` of shape `[B, >= T]`, *optional*): 0 at padding; the last `T` columns belong to
            this forward pass.
        position_ids (`torch.LongTensor` of shape `[B or 1, T]`, *optional*): without a mask and a cache, a new
            document starts where they do not increase by one.
        has_cache (`bool`): whether the sequences must stay in the order of a cache.

    Raises:
        ValueError: if the mask is not a padding mask, or is shorter than the tokens.
    """
    if attention_mask is not None:
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
            found = getattr(attention_mask, "shape", type(attention_mask).__name__)
            raise ValueError(f"`attention_mask` must be a padding mask (batch_size, sequence_length), got {found}")
        if attention_mask.shape[0] != batch_size or attention_mask.shape[1] < length:
            raise ValueError(
                f"`attention_mask` must cover {batch_size} rows of {length} tokens, got {tuple(attention_mask.shape)}"
            )
        return padded_sequences(attention_mask[:, -length:], sort=not has_cache)
    if position_ids is not None and not has_cache:
        return packed_sequences(position_ids.expand(batch_size, -1))
    return unpadded_sequences(batch_size, length)


def unpadded_sequences(batch_size: int, length: int) -> TokenSequences:
    """Return the sequences of a batch without padding."""
    return TokenSequences([length] * batch_size, None, list(range(batch_size)))


def padded_sequences(attention_mask: torch.Tensor, sort: bool) -> TokenSequences:
    """Find the sequences of a padded batch.

    Args:
        attention_mask (`torch.Tensor` of shape `[B, T]`): 0 at padding, which may be anywhere.
        sort (`bool`): whether to put the longest sequence first.
    """
    is_real = attention_mask != 0
    batch_size, length = attention_mask.shape
    # the schedule is decided on the host: one synchronisation per forward pass, as in flash attention's unpadding
    lengths: list[int] = is_real.sum(-1).tolist()
    if min(lengths) == length:
        return unpadded_sequences(batch_size, length)
    columns = torch.argsort((~is_real).to(torch.int8), dim=-1, stable=True)[:, : max(max(lengths), 1)]
    index = columns + length * torch.arange(batch_size, device=columns.device)[:, None]
    return _longest_first(lengths, index) if sort else TokenSequences(lengths, index, list(range(batch_size)))


def packed_sequences(position_ids: torch.Tensor) -> TokenSequences:
    """Find the documents of a packed batch: one starts wherever positions do not increase by one.

    Args:
        position_ids (`torch.LongTensor` of shape `[B, T]`): positions within the documents.
    """
    batch_size, length = position_ids.shape
    is_first = torch.ones_like(position_ids, dtype=torch.bool)
    is_first[:, 1:] = position_ids.diff(dim=-1) != 1
    firsts: list[int] = is_first.flatten().nonzero()[:, 0].tolist()
    if len(firsts) == batch_size:
        return unpadded_sequences(batch_size, length)
    lengths = [end - first for first, end in zip(firsts, [*firsts[1:], batch_size * length])]
    index = torch.tensor(firsts)[:, None] + torch.arange(max(lengths))
    return _longest_first(lengths, index.clamp(max=batch_size * length - 1).to(position_ids.device))


def _longest_first(lengths: list[int], index: torch.Tensor) -> TokenSequences:
    order = sorted(range(len(lengths)), key=lambda sequence: -lengths[sequence])
    index = index[torch.tensor(order, device=index.device)]
    return TokenSequences([lengths[sequence] for sequence in order], index, order)


def scatter_outputs(
    chunks: list[Chunk], outputs: list[torch.Tensor], sequences: TokenSequences, shape: torch.Size
) -> torch.Tensor:
    """Put the outputs of the chunks back to their tokens' positions in the batch.

    Args:
        chunks (`list[Chunk]`): the chunks.
        outputs (`list[torch.Tensor]`): the states `[R, n, D]` of each chunk's tokens.
        sequences (`TokenSequences`): the sequences that were run.
        shape (`torch.Size`): the shape `[B, T, D]` of the batch.

    Returns:
        `torch.Tensor` of shape `[B, T, D]`: the states, zero at padding.
    """
    if sequences.index is None and all(chunk.is_aligned for chunk in chunks):
        return torch.cat(outputs, dim=1)
    batch_size, length, hidden_size = shape
    device = outputs[0].device
    targets = []
    for chunk, output in zip(chunks, outputs):
        num_sequences, num_tokens = output.shape[:2]
        token = torch.arange(num_tokens)
        start = torch.tensor(chunk.starts)[:, None]
        is_token = (token < torch.tensor(chunk.counts)[:, None]).to(device)
        token_index = (start + token).to(device)
        if sequences.index is None:
            target = token_index + length * torch.arange(num_sequences, device=device)[:, None]
        else:
            target = sequences.index[:num_sequences].gather(1, token_index.clamp(max=sequences.index.shape[1] - 1))
        # outputs beyond a sequence's count go to an extra last row, which is cut off below
        targets.append(torch.where(is_token, target, batch_size * length).flatten())
    values = torch.cat([output.flatten(0, 1) for output in outputs])
    scattered = values.new_zeros(batch_size * length + 1, hidden_size)
    return scattered.index_copy(0, torch.cat(targets), values)[:-1].view(batch_size, length, hidden_size)
