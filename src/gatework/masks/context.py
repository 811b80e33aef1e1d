"""Masks over one sequence in which some tokens see more than the past: prefixes, global tokens, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gatework.checks import check_compat, check_int
from gatework.masks.algebra import Allowed, Classes, Cuts, Edges, Index, Mask
from gatework.masks.blocks import refined, states, uniform_edges
from gatework.masks.sequence import Causal, SlidingWindow
from gatework.masks.values import keep


@dataclass(frozen=True, init=False)
class PrefixLM(Mask):
    """Causal but for a prefix that all see: ``j <= i`` or ``j < prefix`` (arXiv:1910.10683, section 3.2.1).

    Attributes:
        prefix: Tokens of the prefix.

    Raises:
        TypeError: If the prefix is no integer.
        ValueError: If it is negative, or ``compat`` is unknown.
    """

    prefix: int

    def __init__(self, prefix: int, *, compat: Literal["official"] | None = None) -> None:
        """Build the mask.

        Args:
            prefix: Tokens of the prefix.
            compat: ``"official"`` takes one token more, as the predicate of arXiv:2510.17896's authors does.
        """
        prefix = check_int("prefix", prefix, at_least=0) + check_compat(compat)
        keep(self, prefix=prefix)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The key is no later than the query, or in the prefix."""
        return (kv_idx <= q_idx) | (kv_idx < self.prefix)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where the prefix ends, for keys."""
        return None, torch.tensor([0, min(self.prefix, kv_length), kv_length]).unique()

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Causal, or in the prefix."""

        def either(q_edges: Tensor, kv_edges: Tensor) -> Tensor:
            # Also from the first key on, which in part of a sequence is not the first of all.
            prefix = states(kv_edges[:-1] >= self.prefix, kv_edges[1:] <= self.prefix)
            return torch.maximum(Causal().classify(q_edges, kv_edges), prefix)

        return refined(either, q_edges, kv_edges, None, torch.tensor([self.prefix]))


@dataclass(frozen=True, init=False)
class GlobalWindow(Mask):
    """A sliding window, and first tokens that see all and are seen by all (arXiv:2004.05150, section 3.1).

    Allowed is ``|i - j| <= window`` or ``i < num_global`` or ``j < num_global``.

    Attributes:
        window: Number of keys on either side.
        num_global: Number of global tokens at the start; as many as ``window`` by default, which is the
            pattern of arXiv:2510.17896.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If one is negative, ``compat`` is unknown, or given with ``num_global``.
    """

    window: int
    num_global: int

    def __init__(
        self, window: int, num_global: int | None = None, *, compat: Literal["official"] | None = None
    ) -> None:
        """Build the mask.

        Args:
            window: Number of keys on either side.
            num_global: Number of global tokens.
            compat: ``"official"`` has ``2 * window`` global tokens, as the predicate of the authors of
                arXiv:2510.17896.
        """
        window = check_int("window", window, at_least=0)
        if check_compat(compat) and num_global is not None:
            raise ValueError(f'num_global must be left out with compat="official", got {num_global}')
        if num_global is None:
            num_global = 2 * window if check_compat(compat) else window
        keep(self, window=window, num_global=check_int("num_global", num_global, at_least=0))

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The key is near the query, or one of them is global."""
        near = (kv_idx - q_idx).abs() <= self.window
        return near | (q_idx < self.num_global) | (kv_idx < self.num_global)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where the global tokens end."""
        q_cuts, kv_cuts = (
            torch.tensor([0, min(self.num_global, length), length]).unique()
            for length in (q_length, kv_length)
        )
        return q_cuts, kv_cuts

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """In the window, or one of them global."""

        def either(q_edges: Tensor, kv_edges: Tensor) -> Tensor:
            rows, columns = (
                states(edges[:-1] >= self.num_global, edges[1:] <= self.num_global)
                for edges in (q_edges, kv_edges)
            )
            near = SlidingWindow(self.window, self.window).classify(q_edges, kv_edges)
            return torch.maximum(near, torch.maximum(rows[:, None], columns))

        cuts = torch.tensor([self.num_global])
        return refined(either, q_edges, kv_edges, cuts, cuts)


@dataclass(frozen=True)
class BlockCausal(Mask):
    """Blocks of tokens that attend to themselves and to the earlier blocks: ``j < (i // block + 1) * block``.

    Attributes:
        block: Tokens of a block.

    Raises:
        TypeError: If the block is no integer.
        ValueError: If it is less than 1.
    """

    block: int

    def __post_init__(self) -> None:
        check_int("block", self.block, at_least=1)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The key's block is no later than the query's."""
        return kv_idx < (q_idx // self.block + 1) * self.block

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where blocks begin."""
        return uniform_edges(q_length, self.block), uniform_edges(kv_length, self.block)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By where the blocks of the first and the last query end."""
        first, last = (
            ((at // self.block + 1) * self.block)[:, None] for at in (q_edges[:-1], q_edges[1:] - 1)
        )
        return states(kv_edges[:-1] >= last, kv_edges[1:] <= first)
