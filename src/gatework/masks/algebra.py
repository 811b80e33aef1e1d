"""What every mask is, and how masks combine: a predicate over (query, key) pairs that is also a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int, Int8
from torch import Tensor

from gatework.checks import check_int, check_per_axis
from gatework.masks import blocks

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

EMPTY, PARTIAL, FULL = blocks.EMPTY, blocks.PARTIAL, blocks.FULL

#: Indices of batch, head, query or key, and what a mask says of them; all four broadcast together.
Index = Int[Tensor, "..."]
Allowed = Bool[Tensor, "..."]

#: Increasing positions at which blocks begin, and the end of the last one.
Edges = Int[Tensor, "..."]
Cuts = tuple[Edges | None, Edges | None]
Classes = Int8[Tensor, "q_blocks kv_blocks"]


class Mask(ABC):
    """A set of allowed (query, key) pairs, True where attention is allowed.

    Masks are immutable values: equal when built alike, hashable, printed as the code that builds them.
    A mask is also a function with the signature that ``torch.nn.attention.flex_attention`` expects of a
    ``mask_mod``, so it can be passed to ``create_block_mask`` and ``create_mask`` as it is;
    :meth:`block_mask` builds the same from the mask's formula, without evaluating pairs.

    Query ``i`` and key ``j`` of the tensors have positions ``i`` and ``j``, both counted from 0, also
    where there are more keys than queries (as in FlexAttention, and as ``is_causal`` of PyTorch's
    ``scaled_dot_product_attention``). In decoding the queries are later tokens than the first keys:
    say so with :meth:`with_query_offset`, for instance ``Causal().with_query_offset(len(past))``.

    A mask of your own needs nothing but ``__call__``. If it looks at ``batch`` or ``head``, it must say so
    by :attr:`batch_size` and :attr:`num_heads`; if it is made for tensors of one length, by
    :attr:`q_size` and :attr:`kv_size`. :meth:`classify` may be overridden by a formula.
    """

    #: For vmap, which asks functions for their names and else prints them, also where a compiler looks on.
    __name__ = "mask"

    @abstractmethod
    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Say which pairs are allowed.

        Args:
            batch: Index of the sequence in the batch; indices broadcast against each other.
            head: Index of the query head.
            q_idx: Position of the query.
            kv_idx: Position of the key.
        """

    @property
    def batch_size(self) -> int | None:
        """How many sequences of a batch the mask tells apart; ``None`` if it is the same for all."""
        return self._of_parts("batch_size")

    @property
    def num_heads(self) -> int | None:
        """How many query heads the mask tells apart; ``None`` if it is the same for all."""
        return self._of_parts("num_heads")

    @property
    def q_size(self) -> int | None:
        """How many queries the mask is made for; ``None`` if it goes with any number."""
        return self._of_parts("q_size")

    @property
    def kv_size(self) -> int | None:
        """How many keys the mask is made for; ``None`` if it goes with any number."""
        return self._of_parts("kv_size")

    @property
    def is_relative(self) -> bool:
        """Whether a pair is allowed or not by the difference ``kv_idx - q_idx`` alone."""
        parts = tuple(self._parts())
        return bool(parts) and all(part.is_relative for part in parts)

    def _parts(self) -> Iterator[Mask]:
        """The masks that this one is made of: it has their sizes."""
        return iter(())

    def _of_parts(self, name: str) -> int | None:
        sizes = (getattr(part, name) for part in self._parts())
        return next((size for size in sizes if size is not None), None)

    def __and__(self, other: Mask) -> Mask:
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> Mask:
        return Not(self)

    def with_query_offset(self, offset: int) -> Mask:
        """Return the same mask for queries of which the first stands at position ``offset``."""
        return QueryOffset(self, offset) if offset else self

    def at(self, batch: int, head: int) -> Mask:
        """Return the mask of one sequence of the batch and one query head; itself if all have the same."""
        if self.batch_size is None and self.num_heads is None:
            return self
        return Entry(self, batch, head)

    def check(
        self, q_length: int, kv_length: int, *, batch: int | None = None, heads: int | None = None
    ) -> None:
        """Make sure that the mask is made for tensors of these sizes.

        Raises:
            ValueError: If a length, ``batch`` or ``heads`` is negative or another one than the mask's.
        """
        for name, value, own in (
            ("q_length", q_length, self.q_size),
            ("kv_length", kv_length, self.kv_size),
            ("batch", batch, self.batch_size),
            ("heads", heads, self.num_heads),
        ):
            if value is None:
                continue
            check_int(name, value, at_least=0)
            if own is not None and value != own:
                raise ValueError(
                    f"{name} must be {own}, which the mask {self!r:.200} is made for, got {value}"
                )
        for part in self._parts():
            part.check(q_length, kv_length, batch=batch, heads=heads)

    def to_dense(
        self, q_length: int, kv_length: int, *, device: torch.device | str | None = None
    ) -> Bool[Tensor, "*entries q_length kv_length"]:
        """Evaluate every pair: ``dense[i, j]`` says whether query ``i`` may attend to key ``j``.

        Masks that tell sequences or heads apart give them a batch axis and a head axis in front.

        Raises:
            ValueError: If a length is negative, or not the one that the mask is made for.
        """
        self.check(q_length, kv_length)
        return self.pairs(torch.arange(q_length, device=device), torch.arange(kv_length, device=device))

    def pairs(
        self, q_idx: Int[Tensor, " q_length"], kv_idx: Int[Tensor, " kv_length"]
    ) -> Bool[Tensor, "*entries q_length kv_length"]:
        """Evaluate every pair of the query positions ``q_idx`` and the key positions ``kv_idx``."""
        shape = (q_idx.shape[0], kv_idx.shape[0])
        if self.batch_size is None and self.num_heads is None:
            first = q_idx.new_zeros(())
            return self(first, first, q_idx[:, None], kv_idx[None, :]).expand(shape)
        batch, heads = (
            torch.arange(1 if size is None else size, device=q_idx.device)
            for size in (self.batch_size, self.num_heads)
        )
        allowed = self(batch[:, None, None, None], heads[:, None, None], q_idx[:, None], kv_idx[None, :])
        return allowed.expand(len(batch), len(heads), *shape)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Say of whole blocks of pairs whether they are EMPTY, PARTIAL or FULL.

        Block ``(a, b)`` has the queries ``q_edges[a] ... q_edges[a + 1] - 1`` and the keys
        ``kv_edges[b] ... kv_edges[b + 1] - 1``; edges are strictly increasing positions, int64 on the CPU.
        EMPTY and FULL are promises, a PARTIAL block may turn out to be either. The masks of this package
        take time by the number of blocks; this default evaluates every pair, in bounded memory.

        Raises:
            ValueError: If the mask tells sequences or heads apart: classify its :meth:`at` instead.
        """
        if self.batch_size is not None or self.num_heads is not None:
            raise ValueError(
                f"mask tells sequences or heads apart, classify mask.at(batch, head): {self!r:.200}"
            )
        if self.is_relative:
            return blocks.classify_diagonals(self, q_edges, kv_edges)
        return blocks.classify_pairs(self, q_edges, kv_edges)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where the pattern itself changes along queries and keys, with 0 and the lengths; or ``None``."""
        return None, None

    def count(self, q_length: int, kv_length: int) -> int:
        """Count the allowed pairs, summed over the sequences and heads that the mask tells apart.

        Raises:
            ValueError: If a length is negative, or not the one that the mask is made for.
        """
        self.check(q_length, kv_length)
        return sum(entry._count(q_length, kv_length) for entry in self._entries())

    def density(self, q_length: int, kv_length: int) -> float:
        """Return the share of all pairs that is allowed, exactly; 0 if there are no pairs.

        Raises:
            ValueError: If a length is negative, or not the one that the mask is made for.
        """
        pairs = q_length * kv_length * (self.batch_size or 1) * (self.num_heads or 1)
        return self.count(q_length, kv_length) / max(pairs, 1)

    def _entries(self) -> list[Mask]:
        """The masks of all sequences and heads that the mask tells apart, head after head."""
        sizes = [1 if size is None else size for size in (self.batch_size, self.num_heads)]
        return [self.at(batch, head) for batch in range(sizes[0]) for head in range(sizes[1])]

    def _count(self, q_length: int, kv_length: int) -> int:
        """Count the pairs of a mask that tells neither sequences nor heads apart."""
        count = blocks.count_diagonals if self.is_relative else blocks.count_blocks
        return count(self, q_length, kv_length)

    def block_mask(
        self,
        q_length: int,
        kv_length: int,
        *,
        block_size: int | tuple[int, int] = 128,
        batch: int | None = None,
        heads: int | None = None,
        device: torch.device | str | None = None,
    ) -> BlockMask:
        """Build what ``torch.nn.attention.flex_attention`` takes, in O(number of blocks).

        The same as ``create_block_mask(mask, batch, heads, q_length, kv_length, BLOCK_SIZE=block_size)``
        up to blocks that :meth:`classify` cannot tell from partial ones.

        Args:
            q_length: Number of queries.
            kv_length: Number of keys.
            block_size: Positions in a block, or those of queries and of keys.
            batch: Number of sequences; by default as many as the mask tells apart, at least 1.
            heads: Number of query heads, likewise.
            device: Where the result lives; the CPU by default.

        Raises:
            ValueError: If a size is negative, or not the one that the mask is made for, or a block empty.
        """
        self.check(q_length, kv_length, batch=batch, heads=heads)
        q_block, kv_block = check_per_axis("block_size", block_size, 2)
        sizes = (q_block, kv_block)
        own = self.batch_size or 1, self.num_heads or 1
        shape = own[0] if batch is None else batch, own[1] if heads is None else heads
        classes = blocks.uniform_classes(self._entries(), (q_length, kv_length), sizes).unflatten(0, own)
        classes = classes.expand(*shape, -1, -1)
        return blocks.to_block_mask(self, classes, (q_length, kv_length), sizes, device)

    def plot(self, q_length: int, kv_length: int, *, batch: int = 0, head: int = 0) -> Any:
        """Draw the mask: a plotly figure, queries downward, keys to the right.

        Short sequences show every pair, long ones blocks that are empty, partial or full.
        ``batch`` and ``head`` choose what to draw if the mask tells them apart.

        Raises:
            ValueError: If a length is negative, or not the one that the mask is made for.
        """
        from gatework.masks.picture import picture

        self.check(q_length, kv_length)
        return picture(self.at(batch, head), q_length, kv_length, title=repr(self))


@dataclass(frozen=True, repr=False)
class Entry(Mask):
    """The mask of one sequence of the batch and one query head; written ``mask.at(batch, head)``.

    Attributes:
        mask: A mask that tells sequences or heads apart.
        batch: Index of the sequence.
        head: Index of the query head.
    """

    mask: Mask
    batch: int
    head: int

    @property
    def q_size(self) -> int | None:
        """As many queries as the mask."""
        return self.mask.q_size

    @property
    def kv_size(self) -> int | None:
        """As many keys as the mask."""
        return self.mask.kv_size

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """What the mask says for this sequence and head, whichever is asked for."""
        own = torch.full_like(batch, self.batch), torch.full_like(head, self.head)
        return self.mask(*own, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"{self.mask!r}.at({self.batch}, {self.head})"


class _Pair(Mask):
    """What both combinations of two masks share; ``_join`` combines their classes."""

    left: Mask
    right: Mask

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_heads", "q_size", "kv_size"):
            left, right = getattr(self.left, name), getattr(self.right, name)
            if left is not None and right is not None and left != right:
                raise ValueError(
                    f"masks must agree in {name} to be combined, got {left} of {self.left!r:.200} "
                    f"and {right} of {self.right!r:.200}"
                )

    def _parts(self) -> Iterator[Mask]:
        return iter((self.left, self.right))

    def at(self, batch: int, head: int) -> Mask:
        """Return the combination for one sequence and head."""
        if self.batch_size is None and self.num_heads is None:
            return self
        return type(self)(self.left.at(batch, head), self.right.at(batch, head))  # type: ignore[call-arg]

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where either pattern changes."""
        cuts = zip(self.left.edges(q_length, kv_length), self.right.edges(q_length, kv_length), strict=True)
        q_cuts, kv_cuts = (blocks.merged_edges(*both) for both in cuts)
        return q_cuts, kv_cuts

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Combine what both say; exact where both are exact and one of them is constant on every piece."""
        if self.is_relative:
            return blocks.classify_diagonals(self, q_edges, kv_edges)
        cuts = self.edges(int(q_edges[-1]), int(kv_edges[-1]))
        return blocks.refined(self._classify_both, q_edges, kv_edges, *cuts)

    def _classify_both(self, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
        return self._join(self.left.classify(q_edges, kv_edges), self.right.classify(q_edges, kv_edges))

    @staticmethod
    @abstractmethod
    def _join(left: Tensor, right: Tensor) -> Tensor:
        """Combine two classes."""


@dataclass(frozen=True, repr=False)
class And(_Pair):
    """Pairs that both masks allow; written ``left & right``.

    Raises:
        ValueError: If the masks are made for tensors of different sizes.
    """

    left: Mask
    right: Mask

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both masks allow the pair."""
        return self.left(batch, head, q_idx, kv_idx) & self.right(batch, head, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"

    @staticmethod
    def _join(left: Tensor, right: Tensor) -> Tensor:
        return torch.minimum(left, right)


@dataclass(frozen=True, repr=False)
class Or(_Pair):
    """Pairs that one mask or the other allows; written ``left | right``.

    Raises:
        ValueError: If the masks are made for tensors of different sizes.
    """

    left: Mask
    right: Mask

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """At least one of the masks allows the pair."""
        return self.left(batch, head, q_idx, kv_idx) | self.right(batch, head, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"

    @staticmethod
    def _join(left: Tensor, right: Tensor) -> Tensor:
        return torch.maximum(left, right)


@dataclass(frozen=True, repr=False)
class Not(Mask):
    """Pairs that the mask does not allow; written ``~mask``."""

    mask: Mask

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The mask does not allow the pair."""
        return ~self.mask(batch, head, q_idx, kv_idx)

    def _parts(self) -> Iterator[Mask]:
        return iter((self.mask,))

    def at(self, batch: int, head: int) -> Mask:
        """Return what the mask of one sequence and head does not allow."""
        return Not(self.mask.at(batch, head))

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where the mask's pattern changes."""
        return self.mask.edges(q_length, kv_length)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Full where the mask is empty, and the other way round."""
        return FULL - self.mask.classify(q_edges, kv_edges)

    def _count(self, q_length: int, kv_length: int) -> int:
        return q_length * kv_length - self.mask._count(q_length, kv_length)

    def __invert__(self) -> Mask:
        return self.mask

    def __repr__(self) -> str:
        return f"~{self.mask!r}"


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
        check_int("offset", self.offset)

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The mask allows the pair after the query is moved by the offset."""
        return self.mask(batch, head, q_idx + self.offset, kv_idx)

    def with_query_offset(self, offset: int) -> Mask:
        """Return the mask with both offsets added."""
        return self.mask.with_query_offset(self.offset + offset)

    def _parts(self) -> Iterator[Mask]:
        return iter((self.mask,))

    @property
    def q_size(self) -> int | None:
        """Any number of queries, as long as they are some of the mask's."""
        return None

    def at(self, batch: int, head: int) -> Mask:
        """Return the mask of one sequence and head, with the same offset."""
        return QueryOffset(self.mask.at(batch, head), self.offset)

    def check(
        self, q_length: int, kv_length: int, *, batch: int | None = None, heads: int | None = None
    ) -> None:
        """Make sure that the queries are some of those that the mask is made for.

        Raises:
            ValueError: If they begin before its first or end after its last, or another size differs.
        """
        size = self.mask.q_size
        check_int("q_length", q_length, at_least=0)
        if size is not None and not (self.offset >= 0 and self.offset + q_length <= size):
            raise ValueError(
                f"q_length {q_length} at offset {self.offset} must lie within the {size} queries that the "
                f"mask {self.mask!r:.200} is made for"
            )
        positions = max(0, self.offset + q_length) if size is None else size
        self.mask.check(positions, kv_length, batch=batch, heads=heads)

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where the mask's pattern changes, counted from the first query."""
        q_cuts, kv_cuts = self.mask.edges(q_length + self.offset, kv_length)
        if q_cuts is None:
            return None, kv_cuts
        inside = q_cuts - self.offset
        inside = inside[(inside > 0) & (inside < q_length)]
        return torch.cat([inside.new_zeros(1), inside, inside.new_tensor([q_length])]), kv_cuts

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """What the mask says of the blocks moved by the offset."""
        return self.mask.classify(q_edges + self.offset, kv_edges)
