"""Masks over one axis of positions: full, causal, sliding window."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gatework.checks import check_counts
from gatework.masks.algebra import FULL, Allowed, Classes, Edges, Index, Mask
from gatework.masks.blocks import states


class _Relative(Mask):
    """A mask that looks at the difference of positions only."""

    @property
    def is_relative(self) -> bool:
        """Always true."""
        return True


@dataclass(frozen=True)
class Full(_Relative):
    """Every query may attend to every key."""

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Always true."""
        return torch.ones_like(q_idx + kv_idx, dtype=torch.bool)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Full, all of them."""
        return torch.full((len(q_edges) - 1, len(kv_edges) - 1), FULL, dtype=torch.int8)


@dataclass(frozen=True)
class Causal(_Relative):
    """Query ``i`` may attend to keys ``0..i``: itself and the past."""

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """``kv_idx <= q_idx``."""
        return kv_idx <= q_idx

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Full where the last key is no later than the first query."""
        first, last = q_edges[:-1, None], q_edges[1:, None] - 1
        return states(kv_edges[:-1] > last, kv_edges[1:] - 1 <= first)


@dataclass(frozen=True)
class SlidingWindow(_Relative):
    """Query ``i`` may attend to keys ``i - left .. i + right``, both ends included.

    ``SlidingWindow(w, 0)`` is the causal window of language models (arXiv:2004.05150): ``w + 1`` keys.

    Attributes:
        left: Number of keys before the query's own position.
        right: Number of keys after it.

    Raises:
        TypeError: If a side is not an integer.
        ValueError: If a side is negative.
    """

    left: int
    right: int

    def __post_init__(self) -> None:
        check_counts(left=self.left, right=self.right)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """``-left <= kv_idx - q_idx <= right``."""
        distance = kv_idx - q_idx
        return (distance >= -self.left) & (distance <= self.right)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By the least and the greatest difference of positions in a block."""
        least = kv_edges[:-1] - (q_edges[1:, None] - 1)
        most = (kv_edges[1:] - 1) - q_edges[:-1, None]
        empty = (most < -self.left) | (least > self.right)
        return states(empty, (least >= -self.left) & (most <= self.right))
