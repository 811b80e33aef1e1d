"""What every mask is, and how masks combine: a predicate over (query, key) pairs that is also a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

#: Indices of batch, head, query or key, and what a mask says of them; all four broadcast together.
Index = Int[Tensor, "..."]
Allowed = Bool[Tensor, "..."]


class Mask(ABC):
    """A set of allowed (query, key) pairs, True where attention is allowed.

    Masks are immutable values: equal when built alike, hashable, printed as the code that builds them.
    A mask is also a function with the signature that ``torch.nn.attention.flex_attention`` expects of a
    ``mask_mod``, so it can be passed to ``create_block_mask`` and ``create_mask`` as it is.

    Query ``i`` and key ``j`` of the tensors have positions ``i`` and ``j``, both counted from 0, also
    where there are more keys than queries (as in FlexAttention, and as ``is_causal`` of PyTorch's
    ``scaled_dot_product_attention``). In decoding the queries are later tokens than the first keys:
    say so with :meth:`with_query_offset`, for instance ``Causal().with_query_offset(len(past))``.
    """

    @abstractmethod
    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Say which pairs are allowed.

        Args:
            batch: Index of the sequence in the batch; indices broadcast against each other.
            head: Index of the query head.
            q_idx: Position of the query.
            kv_idx: Position of the key.
        """

    def __and__(self, other: Mask) -> Mask:
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def with_query_offset(self, offset: int) -> Mask:
        """Return the same mask for queries of which the first stands at position ``offset``."""
        return QueryOffset(self, offset) if offset else self

    def to_dense(
        self, q_length: int, kv_length: int, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "q_length kv_length"]:
        """Evaluate every pair: ``dense[i, j]`` says whether query ``i`` may attend to key ``j``.

        Raises:
            ValueError: If a length is negative.
        """
        for name, length in (("q_length", q_length), ("kv_length", kv_length)):
            if length < 0:
                raise ValueError(f"{name} must be at least 0, got {length}")
        return self.pairs(torch.arange(q_length, device=device), torch.arange(kv_length, device=device))

    def pairs(
        self, q_idx: Int[Tensor, " q_length"], kv_idx: Int[Tensor, " kv_length"]
    ) -> Bool[Tensor, "q_length kv_length"]:
        """Evaluate every pair of the query positions ``q_idx`` and the key positions ``kv_idx``."""
        first = q_idx.new_zeros(())
        allowed = self(first, first, q_idx[:, None], kv_idx[None, :])
        return allowed.expand(q_idx.shape[0], kv_idx.shape[0])


@dataclass(frozen=True)
class And(Mask):
    """Pairs that both masks allow; written ``left & right``."""

    left: Mask
    right: Mask

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both masks allow the pair."""
        return self.left(batch, head, q_idx, kv_idx) & self.right(batch, head, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@dataclass(frozen=True)
class Or(Mask):
    """Pairs that one mask or the other allows; written ``left | right``."""

    left: Mask
    right: Mask

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """At least one of the masks allows the pair."""
        return self.left(batch, head, q_idx, kv_idx) | self.right(batch, head, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclass(frozen=True)
class QueryOffset(Mask):
    """A mask whose query 0 stands at position ``offset``; written ``mask.with_query_offset(offset)``.

    Attributes:
        mask: The mask in terms of positions.
        offset: Position of the first query; negative if the queries begin before the first key.

    Raises:
        TypeError: If the offset is not an integer.
    """

    mask: Mask
    offset: int

    def __post_init__(self) -> None:
        if not isinstance(self.offset, (int, torch.SymInt)):
            raise TypeError(f"offset must be an integer position, got {self.offset!r}")

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The mask allows the pair after the query is moved by the offset."""
        return self.mask(batch, head, q_idx + self.offset, kv_idx)

    def with_query_offset(self, offset: int) -> Mask:
        """Return the mask with both offsets added."""
        return self.mask.with_query_offset(self.offset + offset)
