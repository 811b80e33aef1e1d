"""Masks over blocks of earlier tokens: some drawn at random, or all of them as one key each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatework.checks import check_int
from gatework.masks.algebra import Allowed, Classes, Cuts, Edges, Index, Mask
from gatework.masks.blocks import states, uniform_edges

_LOW_BITS = 0xFFFFFFFF


def hashed(seed: int, *numbers: Index) -> Index:
    """Return a random-looking integer in ``0 ... 2^32 - 1`` for each tuple of whole numbers.

    It depends on the numbers and the seed alone, so that what is drawn for a position is the same whatever
    else is computed beside it: for a whole sequence, a part of it, or one token.
    """
    mixed = torch.full_like(numbers[0], seed & _LOW_BITS)
    for number in numbers:
        mixed = (mixed ^ (number & _LOW_BITS)) + 0x9E3779B9 & _LOW_BITS
        # Two rounds of multiply and xor-shift; products wrap around, of which the low bits are kept.
        mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & _LOW_BITS
        mixed = ((mixed ^ (mixed >> 15)) * 0x846CA68B) & _LOW_BITS
        mixed = mixed ^ (mixed >> 16)
    return mixed


@dataclass(frozen=True)
class RandomBlocks(Mask):
    """Queries of each block see ``num_random`` earlier blocks of keys, drawn at random (arXiv:2007.14062).

    Blocks are drawn with replacement from those before the query's own, by a hash of the seed and the
    query's block: the first block has none, and longer sequences change nothing in shorter ones.

    Attributes:
        block: Tokens of a block.
        num_random: Blocks that are drawn for each block of queries.
        seed: What the random numbers begin with.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If ``block`` is less than 1, or another number negative.
    """

    block: int
    num_random: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("block", self.block, at_least=1)
        check_int("num_random", self.num_random, at_least=0)
        check_int("seed", self.seed, at_least=0)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The key's block is one of those drawn for the query's."""
        row, column = q_idx // self.block, kv_idx // self.block
        allowed = torch.zeros_like(row + column, dtype=torch.bool)
        for draw in range(self.num_random):
            allowed = allowed | (column == self._drawn(row, draw))
        return allowed

    def _drawn(self, row: Tensor, draw: int) -> Tensor:
        """The ``draw``-th block for each block of queries, -1 where there is none before it."""
        drawn = hashed(self.seed, row, torch.full_like(row, draw)) % row.clamp(min=1)
        return torch.where(row > 0, drawn, -1)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where blocks begin."""
        return uniform_edges(q_length, self.block), uniform_edges(kv_length, self.block)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By counting the pairs of each drawn block, exactly."""
        counts = torch.zeros(len(q_edges) - 1, len(kv_edges) - 1, dtype=torch.int64)
        if counts.numel() == 0:
            return counts.to(torch.int8)
        first = int(q_edges[0]) // self.block * self.block + self.block
        cuts = torch.arange(first, max(first, int(q_edges[-1])), self.block)
        pieces = torch.cat([q_edges, cuts]).unique()
        pieces, sizes = pieces[:-1], pieces.diff()
        row, drawn = pieces // self.block, [torch.full_like(pieces, -1)]
        for draw in range(self.num_random):
            column = self._drawn(row, draw)
            column = torch.where((torch.stack(drawn) == column).any(0), -1, column)
            drawn.append(column)
            start = (column * self.block)[:, None]
            shared = (start + self.block).minimum(kv_edges[1:]) - start.maximum(kv_edges[:-1])
            shared = torch.where(start < 0, 0, shared.clamp(min=0)) * sizes[:, None]
            counts.index_add_(0, torch.searchsorted(q_edges, pieces, right=True) - 1, shared)
        return states(counts == 0, counts == q_edges.diff()[:, None] * kv_edges.diff())


@dataclass(frozen=True)
class CompressedBlocks(Mask):
    """Keys stand for whole blocks of tokens, and a query sees those that ended before it (arXiv:2502.11089).

    The first ``num_first`` keys are seen by all; key ``num_first + b`` stands for the tokens
    ``b * block ... (b + 1) * block - 1`` and is seen from position ``(b + 1) * block`` on.

    Attributes:
        block: Tokens of a block.
        num_first: Keys in front that stand for no block.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If ``block`` is less than 1, or ``num_first`` negative.
    """

    block: int
    num_first: int = 0

    def __post_init__(self) -> None:
        check_int("block", self.block, at_least=1)
        check_int("num_first", self.num_first, at_least=0)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The query comes after the key's block, or the key has none."""
        return (kv_idx < self.num_first) | (q_idx >= (kv_idx - self.num_first + 1) * self.block)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where blocks begin, for queries."""
        return uniform_edges(q_length, self.block), None

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By the positions from which the first and the last key of a block are seen."""
        always = torch.iinfo(torch.int64).min
        from_first, from_last = (
            torch.where(key < self.num_first, always, (key - self.num_first + 1) * self.block)
            for key in (kv_edges[:-1], kv_edges[1:] - 1)
        )
        return states(q_edges[1:, None] - 1 < from_first, q_edges[:-1, None] >= from_last)
