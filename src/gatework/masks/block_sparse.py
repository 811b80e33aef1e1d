"""Block-sparse masks: a map that says which blocks of queries see which blocks of keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatework.checks import check_dtype, check_int, check_number, check_per_axis
from gatework.masks.algebra import Allowed, Classes, Cuts, Edges, Index, Mask
from gatework.masks.blocks import states, uniform_edges
from gatework.masks.values import Table, keep

#: Tokens of every block, or of every block of queries and of every block of keys.
BlockSize = int | tuple[int, int]


@dataclass(frozen=True, init=False)
class BlockSparse(Mask):
    """Query ``i`` may attend to key ``j`` iff the map allows the blocks that they are in.

    Build it from a map (:meth:`from_map`), from the kept blocks of each row (:meth:`from_indices`), from
    scores of which the highest are kept (:meth:`from_scores`), or at :meth:`random`. The constructor itself
    takes blocks of any sizes, also different ones for each head or sequence.

    A map of rank 2 holds for all, of rank 3 it has ``(heads, q_blocks, kv_blocks)``, of rank 4 ``(batch,
    heads, q_blocks, kv_blocks)``. The sizes are of rank 1, or have a row for each head, or sequence and head.

    Attributes:
        blocks: The map, of rank 4.
        q_edges: Where blocks of queries begin, with the end, ``(batch or 1, heads or 1, q_blocks + 1)``.
        kv_edges: Where blocks of keys begin.
        group_size: Query heads that share a head of the map: query head ``h`` has ``h // group_size``.

    Raises:
        TypeError: If the map is not boolean.
        ValueError: If ranks or shapes do not fit, a size is less than 1, or sizes differ in their sum.
    """

    blocks: Table
    q_edges: Table
    kv_edges: Table
    group_size: int
    _q_block: Table = field(init=False, repr=False, compare=False)
    _kv_block: Table = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        block_map: Bool[Tensor, "*entries q_blocks kv_blocks"],
        q_sizes: Int[Tensor, "*q_entries q_blocks"],
        kv_sizes: Int[Tensor, "*kv_entries kv_blocks"],
        *,
        group_size: int = 1,
    ) -> None:
        shape = _map_shape(block_map)
        q_edges = _edges("q_sizes", q_sizes, shape[:2], shape[2])
        kv_edges = _edges("kv_sizes", kv_sizes, shape[:2], shape[3])
        keep(self, blocks=Table(block_map.reshape(shape)), q_edges=Table(q_edges), kv_edges=Table(kv_edges))
        keep(self, group_size=check_int("group_size", group_size, at_least=1))
        keep(self, _q_block=Table(_block_of(q_edges)), _kv_block=Table(_block_of(kv_edges)))

    @classmethod
    def from_map(
        cls,
        block_map: Bool[Tensor, "*entries q_blocks kv_blocks"],
        block_size: BlockSize,
        *,
        q_length: int | None = None,
        kv_length: int | None = None,
        group_size: int = 1,
    ) -> BlockSparse:
        """Build the mask from a map of blocks of equal size.

        Args:
            block_map: True where a block is kept.
            block_size: Tokens of a block.
            q_length: Number of queries, if the last block is smaller than the others.
            kv_length: Number of keys; likewise.
            group_size: Query heads that share a head of the map.

        Raises:
            ValueError: If a size is less than 1, or a length does not have this number of blocks.
        """
        _map_shape(block_map)
        sizes = check_per_axis("block_size", block_size, 2)
        lengths = (q_length, kv_length)
        tokens = []
        for name, count, size, length in zip(("q", "kv"), block_map.shape[-2:], sizes, lengths, strict=True):
            length = count * size if length is None else check_int(f"{name}_length", length, at_least=0)
            if -(-length // size) != count:
                raise ValueError(f"{name}_length must have {count} blocks of {size}, got {length}")
            tokens.append(uniform_edges(length, size).diff())
        return cls(block_map, *tokens, group_size=group_size)

    @classmethod
    def from_indices(
        cls,
        indices: Int[Tensor, "*entries q_blocks kept"],
        block_size: BlockSize,
        *,
        q_length: int,
        kv_length: int,
        counts: Int[Tensor, "*entries q_blocks"] | None = None,
        group_size: int = 1,
    ) -> BlockSparse:
        """Build the mask from the kept blocks of keys of each block of queries.

        Args:
            indices: Indices of blocks of keys, in any order; negative ones are none.
            block_size: Tokens of a block; the last may be smaller.
            q_length: Number of queries.
            kv_length: Number of keys.
            counts: How many indices of each row count; by default all that are not negative.
            group_size: Query heads that share a head of the indices.

        Raises:
            ValueError: If an index is beyond the last block, or a shape does not fit.
        """
        _, size = check_per_axis("block_size", block_size, 2)
        check_int("kv_length", kv_length, at_least=0)
        num_blocks = -(-kv_length // size)
        kept = indices >= 0
        if counts is not None:
            kept = kept & (torch.arange(indices.shape[-1], device=indices.device) < counts[..., None])
        if indices.numel() and bool((indices.where(kept, 0) >= max(num_blocks, 1)).any()):
            raise ValueError(f"indices must be less than the {num_blocks} blocks, got {int(indices.max())}")
        # One column more than there are blocks, for what is none.
        block_map = indices.new_zeros(*indices.shape[:-1], num_blocks + 1, dtype=torch.bool)
        block_map.scatter_(-1, indices.where(kept, num_blocks).long(), value=True)
        return cls.from_map(
            block_map[..., :-1], block_size, q_length=q_length, kv_length=kv_length, group_size=group_size
        )

    @classmethod
    def from_scores(
        cls,
        scores: Float[Tensor, "*entries q_blocks kv_blocks"],
        ratio: float,
        block_size: BlockSize,
        *,
        q_length: int | None = None,
        kv_length: int | None = None,
        group_size: int = 1,
    ) -> BlockSparse:
        """Keep the highest scores of each row, ``int(ratio * kv_blocks)`` of them but at least 1.

        Args:
            scores: One score for each block.
            ratio: Share of the blocks that is kept, called sparsity ratio in arXiv:2510.17896.
            block_size: Tokens of a block.
            q_length: Number of queries, if the last block is smaller than the others.
            kv_length: Number of keys; likewise.
            group_size: Query heads that share a head of the scores.

        Raises:
            ValueError: If ``ratio`` is not between 0 and 1.
        """
        check_number("ratio", ratio, at_least=0, at_most=1)
        num_blocks = scores.shape[-1]
        kept = scores.topk(min(max(1, int(ratio * num_blocks)), num_blocks), -1).indices
        block_map = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        block_map.scatter_(-1, kept, value=True)
        return cls.from_map(
            block_map, block_size, q_length=q_length, kv_length=kv_length, group_size=group_size
        )

    @classmethod
    def random(
        cls,
        q_length: int,
        kv_length: int,
        block_size: BlockSize,
        ratio: float,
        *,
        batch: int | None = None,
        heads: int | None = None,
        group_size: int = 1,
        seed: int = 0,
    ) -> BlockSparse:
        """Keep random blocks of keys, equally many for each block of queries (arXiv:2510.17896, section 3.1).

        Args:
            q_length: Number of queries.
            kv_length: Number of keys.
            block_size: Tokens of a block; the last may be smaller.
            ratio: Share of the blocks that is kept.
            batch: Number of sequences with blocks of their own; by default they have the same.
            heads: Number of heads with blocks of their own, those of keys if ``group_size`` is not 1.
            group_size: Query heads that share blocks.
            seed: What the random numbers begin with.

        Raises:
            ValueError: If a size is negative, or ``ratio`` is not between 0 and 1.
        """
        sizes = check_per_axis("block_size", block_size, 2)
        counts = [
            -(-check_int(name, length, at_least=0) // size)
            for name, length, size in zip(
                ("q_length", "kv_length"), (q_length, kv_length), sizes, strict=True
            )
        ]
        entries = [] if batch is None and heads is None else [heads or 1]
        entries = entries if batch is None else [batch, *entries]
        scores = torch.rand(*entries, *counts, generator=torch.Generator().manual_seed(seed))
        return cls.from_scores(
            scores, ratio, block_size, q_length=q_length, kv_length=kv_length, group_size=group_size
        )

    @property
    def batch_size(self) -> int | None:
        """Sequences with maps of their own."""
        return _told_apart(self.blocks.tensor.shape[0])

    @property
    def num_heads(self) -> int | None:
        """Query heads, if there is more than one map for them."""
        heads = _told_apart(self.blocks.tensor.shape[1])
        return None if heads is None else heads * self.group_size

    @property
    def q_size(self) -> int:
        """Tokens of all blocks of queries."""
        return int(self.q_edges.tensor[0, 0, -1])

    @property
    def kv_size(self) -> int:
        """Tokens of all blocks of keys."""
        return int(self.kv_edges.tensor[0, 0, -1])

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The map allows the two blocks."""
        blocks = self.blocks.on(q_idx.device)
        entry = (batch, head // self.group_size)
        rows, columns = (
            table.on(q_idx.device)[
                (*_own(entry, table.tensor.shape), index.clamp(0, table.tensor.shape[2] - 1))
            ]
            for table, index in ((self._q_block, q_idx), (self._kv_block, kv_idx))
        )
        return blocks[(*_own(entry, blocks.shape), rows, columns)]

    def at(self, batch: int, head: int) -> Mask:
        """Return the mask of one sequence and query head."""
        if self.batch_size is None and self.num_heads is None:
            return self
        tensors = (table.tensor for table in (self.blocks, self.q_edges, self.kv_edges))
        block_map, q_edges, kv_edges = (
            tensor[min(batch, tensor.shape[0] - 1), min(head // self.group_size, tensor.shape[1] - 1)]
            for tensor in tensors
        )
        return BlockSparse(block_map, q_edges.diff(), kv_edges.diff())

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where blocks begin, those of all heads together."""
        return self.q_edges.tensor.unique(), self.kv_edges.tensor.unique()

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By sums over rectangles of the map, exactly."""
        if self.batch_size is not None or self.num_heads is not None:
            return super().classify(q_edges, kv_edges)
        sums = self.blocks.tensor[0, 0].to(torch.int32).cumsum(0).cumsum(1)
        sums = torch.nn.functional.pad(sums, (1, 0, 1, 0))
        (top, bottom), (left, right) = (
            (blocks[edges[:-1]], blocks[edges[1:] - 1] + 1)
            for blocks, edges in (
                (self._q_block.tensor[0, 0], q_edges),
                (self._kv_block.tensor[0, 0], kv_edges),
            )
        )
        rows = sums[bottom] - sums[top]
        count = rows[:, right] - rows[:, left]
        return states(count == 0, count == (bottom - top)[:, None] * (right - left))

    def _count(self, q_length: int, kv_length: int) -> int:
        q_sizes, kv_sizes = self.q_edges.tensor[0, 0].diff(), self.kv_edges.tensor[0, 0].diff()
        return int((self.blocks.tensor[0, 0] * q_sizes[:, None] * kv_sizes).sum())

    def to_indices(self) -> tuple[Int[Tensor, "*entries q_blocks kept"], Int[Tensor, "*entries q_blocks"]]:
        """Return the kept blocks of each row, increasing and padded with -1, and how many they are.

        Int32 tensors of shape ``(batch or 1, heads or 1, q_blocks, most)`` and ``(..., q_blocks)``, the
        encoding of block-sparse kernels; the one by blocks of keys is that of the transposed map.
        """
        blocks = self.blocks.tensor
        counts = blocks.sum(-1)
        most = int(counts.max()) if counts.numel() else 0
        order = (~blocks).to(torch.int8).argsort(dim=-1, stable=True)[..., :most]
        return order.where(torch.arange(most) < counts[..., None], -1).int(), counts.int()


def _map_shape(block_map: Tensor) -> tuple[int, ...]:
    """Shape of the checked map with an axis for sequences and one for heads."""
    check_dtype("block_map", block_map, torch.bool, "boolean")
    if not 2 <= block_map.ndim <= 4:
        raise ValueError(f"block_map must have rank 2, 3 or 4, got shape {tuple(block_map.shape)}")
    shape = (*(1, 1, 1, 1)[block_map.ndim :], *block_map.shape)
    if min(shape[:2]) < 1:
        raise ValueError(f"block_map must have a head and a sequence, got shape {tuple(block_map.shape)}")
    return shape


def _told_apart(count: int) -> int | None:
    return None if count == 1 else count


def _own(entry: Sequence[Tensor], shape: torch.Size) -> tuple[Tensor, ...]:
    """Indices of sequence and head in a table that may have only one of either."""
    return tuple(
        torch.zeros_like(index) if size == 1 else index for index, size in zip(entry, shape[:2], strict=True)
    )


def _edges(name: str, sizes: Tensor, entries: tuple[int, ...], count: int) -> Tensor:
    """Edges of blocks from their checked sizes, of rank 3."""
    if sizes.is_floating_point() or sizes.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {sizes.dtype}")
    own = (*(1, 1, 1)[sizes.ndim :], *sizes.shape)
    if len(own) != 3 or own[2] != count or any(a not in (1, b) for a, b in zip(own, entries, strict=False)):
        raise ValueError(
            f"{name} must have {count} numbers, or so many for each head, or sequence and head, of the map, "
            f"got shape {tuple(sizes.shape)}"
        )
    if bool((sizes < 1).any()):
        raise ValueError(f"{name} must be at least 1, got {int(sizes.min())}")
    edges = torch.nn.functional.pad(sizes.reshape(own).to("cpu", torch.int64).cumsum(-1), (1, 0))
    if bool((edges[..., -1] != edges[0, 0, -1]).any()):
        raise ValueError(f"{name} must have one sum for all heads, got {edges[..., -1].unique().tolist()}")
    return edges


def _block_of(edges: Tensor) -> Tensor:
    """The block of every position, for each sequence and head."""
    position = torch.arange(int(edges[0, 0, -1]))
    return torch.searchsorted(edges, position.expand(*edges.shape[:2], -1).contiguous(), right=True).sub_(1)
