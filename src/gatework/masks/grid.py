"""Masks over grids of one to three axes: neighbourhoods, halo blocks, windows and grids.

Tokens of a grid are numbered row by row. Each mask is a product over the axes, so that what it allows on one
axis, :meth:`GridMask.axis`, describes it completely.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gatework.checks import check_flag_per_axis, check_int, check_per_axis
from gatework.masks import blocks
from gatework.masks.algebra import Allowed, Classes, Edges, Index, Mask
from gatework.masks.axes import AxisWindows, axis_classes
from gatework.masks.values import keep

__all__ = ["AxisWindows", "Grid", "GridMask", "Halo", "Neighborhood", "Windows"]

Sizes = int | Sequence[int]
Flags = bool | Sequence[bool]

#: Most axes of a grid.
_AXES = 3


class Rule(NamedTuple):
    """Class and window of queries at given coordinates, as in :class:`AxisWindows`."""

    q_class: Tensor
    low: Tensor
    high: Tensor


class GridMask(Mask):
    """A mask over a grid: allowed is what every axis allows.

    Query coordinate ``i`` may attend to key coordinate ``j`` of an axis iff ``j % dilation`` is the query's
    class and ``low <= j // dilation < high``.
    """

    @property
    @abstractmethod
    def q_shape(self) -> tuple[int, ...]:
        """Size of the grid of queries, one number per axis."""

    @property
    @abstractmethod
    def kv_shape(self) -> tuple[int, ...]:
        """Size of the grid of keys."""

    @property
    @abstractmethod
    def tile_hint(self) -> tuple[int, ...]:
        """How many successive queries of one class share a window, by axis; 1 where each has its own."""

    @abstractmethod
    def _dilation(self, axis: int) -> int:
        """Number of classes of an axis."""

    @abstractmethod
    def _rule(self, axis: int, query: Tensor) -> Rule:
        """Class and window of the queries at these coordinates of an axis."""

    @property
    def q_size(self) -> int:
        """Number of cells in the grid of queries."""
        return math.prod(self.q_shape)

    @property
    def kv_size(self) -> int:
        """Number of cells in the grid of keys."""
        return math.prod(self.kv_shape)

    def axis(self, axis: int) -> AxisWindows:
        """Return the windows of all query coordinates of an axis."""
        coordinate = torch.arange(self.q_shape[axis])
        q_class, low, high = (each.contiguous() for each in self._rule(axis, coordinate))
        return AxisWindows(q_class, low, high, self._dilation(axis))

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Every axis allows the pair."""
        pair = zip(_coordinates(q_idx, self.q_shape), _coordinates(kv_idx, self.kv_shape), strict=True)
        allowed: Tensor | None = None
        for axis, (query, key) in enumerate(pair):
            rule, dilation = self._rule(axis, query), self._dilation(axis)
            place = key if dilation == 1 else key // dilation
            inside = (place >= rule.low) & (place < rule.high)
            if dilation > 1:
                inside = inside & (key % dilation == rule.q_class)
            allowed = inside if allowed is None else allowed & inside
        assert allowed is not None, "a grid has at least one axis"
        return allowed

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By the boxes that hold the blocks; exact where cutting them at rows of the grid is cheap.

        Such a piece of a block is a box of the grid, and axes answer exactly for boxes.
        """
        cuts = [
            torch.arange(0, math.prod(shape) + 1, shape[-1]) if len(shape) > 1 else None
            for shape in (self.q_shape, self.kv_shape)
        ]
        return blocks.refined(self._classify_boxes, q_edges, kv_edges, *cuts)

    def _classify_boxes(self, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
        classes = torch.full((len(q_edges) - 1, len(kv_edges) - 1), blocks.FULL, dtype=torch.int8)
        boxes = zip(_boxes(q_edges, self.q_shape), _boxes(kv_edges, self.kv_shape), strict=True)
        for axis, (queries, keys) in enumerate(boxes):
            # Many blocks share a range of an axis: rows of tokens begin and end alike.
            queries, rows = queries.unique(dim=1, return_inverse=True)
            keys, columns = keys.unique(dim=1, return_inverse=True)
            table = axis_classes(self.axis(axis), self.kv_shape[axis], queries, keys)
            classes = torch.minimum(classes, table[rows].index_select(1, columns))
        return classes

    def _count(self, q_length: int, kv_length: int) -> int:
        windows = [self.axis(axis) for axis in range(len(self.q_shape))]
        return math.prod(int((each.high - each.low).sum()) for each in windows)


@dataclass(frozen=True, init=False)
class Neighborhood(GridMask):
    """Generalised neighbourhood attention (arXiv:2504.16922): windows of nearby tokens, groups that share.

    On every axis, with ``p = i // dilation`` the query's place in its class of ``n`` tokens, and the leader
    of its group ``a = min(stride * (p // stride) + stride // 2, n - 1)``, the window is the ``window``
    places from ``a - window // 2`` on, shifted inwards at the borders. On a causal axis the leader is the
    last of the group, ``a = min(stride * (p // stride) + stride - 1, n - 1)``, and the query sees the places
    from ``max(a - window + 1, 0)`` to its own.

    A number instead of a tuple holds for every axis.

    Attributes:
        shape: Size of the grid: one to three axes.
        window: Places in a window; the whole axis without gaps is full attention.
        stride: Neighbours in a group that shares its window: 1 is neighbourhood attention
            (arXiv:2204.07143), ``window`` is blocked attention.
        dilation: Distance of a window's places (arXiv:2209.15001).
        is_causal: Whether queries see no later tokens of the axis.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than 1, ``window * dilation`` exceeds the axis, ``stride`` exceeds
            ``window``, or the axes are more than three or differ in number.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]

    def __init__(
        self, shape: Sizes, window: Sizes, *, stride: Sizes = 1, dilation: Sizes = 1, is_causal: Flags = False
    ) -> None:
        shape = _shape(shape)
        axes = len(shape)
        window, stride, dilation = (
            check_per_axis(name, value, axes)
            for name, value in (("window", window), ("stride", stride), ("dilation", dilation))
        )
        for length, size, step, gap in zip(shape, window, stride, dilation, strict=True):
            if size * gap > length:
                raise ValueError(
                    f"window * dilation must fit the axis of {length}, got window {size} * dilation {gap}"
                )
            if step > size:
                raise ValueError(f"stride must be at most the window {size}, got {step}")
        keep(self, shape=shape, window=window, stride=stride, dilation=dilation)
        keep(self, is_causal=check_flag_per_axis("is_causal", is_causal, axes))

    @property
    def q_shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.shape

    @property
    def kv_shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.shape

    @property
    def tile_hint(self) -> tuple[int, ...]:
        """The stride."""
        return self.stride

    def _dilation(self, axis: int) -> int:
        return self.dilation[axis]

    def _rule(self, axis: int, query: Tensor) -> Rule:
        length, window = self.shape[axis], self.window[axis]
        stride, dilation = self.stride[axis], self.dilation[axis]
        q_class, place = query % dilation, query // dilation
        last = (length - 1 - q_class) // dilation
        group = place // stride * stride
        if self.is_causal[axis]:
            leader = torch.minimum(group + (stride - 1), last)
            return Rule(q_class, (leader - (window - 1)).clamp(min=0), place + 1)
        leader = torch.minimum(group + stride // 2, last)
        low = torch.minimum((leader - window // 2).clamp(min=0), last - (window - 1))
        return Rule(q_class, low, low + window)


@dataclass(frozen=True, init=False)
class Halo(GridMask):
    """Blocks of queries that share an enlarged window: the block and ``halo`` more on each side.

    Query ``i`` of an axis, which stands at ``i * query_stride``, belongs to block ``i * query_stride //
    block`` and sees keys ``block * b - halo ... block * (b + 1) + halo - 1``, as far as they exist
    (arXiv:2103.12731). The last block may be smaller.

    Attributes:
        shape: Size of the grid of keys: one to three axes.
        block: Tokens of a block along each axis.
        halo: Keys that the window has more on each side.
        query_stride: Every how many tokens there is a query.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is too small, ``block`` exceeds the axis or is no multiple of
            ``query_stride``, or the axes are more than three or differ in number.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    halo: tuple[int, ...]
    query_stride: tuple[int, ...]

    def __init__(self, shape: Sizes, block: Sizes, halo: Sizes, *, query_stride: Sizes = 1) -> None:
        shape = _shape(shape)
        block = check_per_axis("block", block, len(shape))
        halo = check_per_axis("halo", halo, len(shape), at_least=0)
        query_stride = check_per_axis("query_stride", query_stride, len(shape))
        _fits("block", block, shape)
        for size, step in zip(block, query_stride, strict=True):
            if size % step:
                raise ValueError(f"query_stride must divide the block {size}, got {step}")
        keep(self, shape=shape, block=block, halo=halo, query_stride=query_stride)

    @property
    def q_shape(self) -> tuple[int, ...]:
        """Size of the grid of queries, that of the keys divided by the stride and rounded up."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.query_stride, strict=True))

    @property
    def kv_shape(self) -> tuple[int, ...]:
        """Size of the grid of keys."""
        return self.shape

    @property
    def tile_hint(self) -> tuple[int, ...]:
        """Queries of a block."""
        return tuple(size // step for size, step in zip(self.block, self.query_stride, strict=True))

    def _dilation(self, axis: int) -> int:
        return 1

    def _rule(self, axis: int, query: Tensor) -> Rule:
        block, halo = self.block[axis], self.halo[axis]
        start = query // self.tile_hint[axis] * block
        low, high = (start - halo).clamp(min=0), (start + block + halo).clamp(max=self.shape[axis])
        return Rule(torch.zeros_like(query), low, high)


@dataclass(frozen=True, init=False)
class Windows(GridMask):
    """Windows that do not overlap, shifted or not (arXiv:2103.14030, section 3.2).

    Tokens ``i`` and ``j`` of an axis may attend to each other iff ``(i - shift) // window`` equals
    ``(j - shift) // window``. With a shift the first window of an axis has ``shift`` tokens: what a cyclic
    shift of the tokens does whose windows are masked where they wrap around. The last window may be smaller.

    Attributes:
        shape: Size of the grid: one to three axes.
        window: Tokens of a window along each axis.
        shift: By how much windows are moved, less than ``window``.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is too small, ``window`` exceeds the axis, ``shift`` is not less than
            ``window``, or the axes are more than three or differ in number.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]

    def __init__(self, shape: Sizes, window: Sizes, *, shift: Sizes = 0) -> None:
        shape = _shape(shape)
        window, shift = (
            check_per_axis("window", window, len(shape)),
            check_per_axis("shift", shift, len(shape), at_least=0),
        )
        _fits("window", window, shape)
        for size, offset in zip(window, shift, strict=True):
            if offset >= size:
                raise ValueError(f"shift must be less than the window {size}, got {offset}")
        keep(self, shape=shape, window=window, shift=shift)

    @property
    def q_shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.shape

    @property
    def kv_shape(self) -> tuple[int, ...]:
        """Size of the grid."""
        return self.shape

    @property
    def tile_hint(self) -> tuple[int, ...]:
        """The window."""
        return self.window

    def _dilation(self, axis: int) -> int:
        return 1

    def _rule(self, axis: int, query: Tensor) -> Rule:
        window, shift = self.window[axis], self.shift[axis]
        start = (query - shift) // window * window + shift
        low, high = start.clamp(min=0), (start + window).clamp(max=self.shape[axis])
        return Rule(torch.zeros_like(query), low, high)


@dataclass(frozen=True, init=False)
class Grid(GridMask):
    """Grid attention (arXiv:2204.01697, section 3.2): ``grid`` tokens of an axis, evenly spread over it.

    Tokens ``i`` and ``j`` of an axis may attend to each other iff they are equal modulo ``size / grid``.

    Attributes:
        shape: Size of the grid of tokens: one to three axes.
        grid: How many tokens of an axis attend to each other.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than 1, ``grid`` does not divide the axis, or the axes are more than
            three or differ in number.
    """

    shape: tuple[int, ...]
    grid: tuple[int, ...]

    def __init__(self, shape: Sizes, grid: Sizes) -> None:
        shape = _shape(shape)
        grid = check_per_axis("grid", grid, len(shape))
        for length, size in zip(shape, grid, strict=True):
            if length % size:
                raise ValueError(f"grid must divide the axis of {length}, got {size}")
        keep(self, shape=shape, grid=grid)

    @property
    def q_shape(self) -> tuple[int, ...]:
        """Size of the grid of tokens."""
        return self.shape

    @property
    def kv_shape(self) -> tuple[int, ...]:
        """Size of the grid of tokens."""
        return self.shape

    @property
    def tile_hint(self) -> tuple[int, ...]:
        """The grid: all tokens of a class."""
        return self.grid

    def _dilation(self, axis: int) -> int:
        return self.shape[axis] // self.grid[axis]

    def _rule(self, axis: int, query: Tensor) -> Rule:
        low = torch.zeros_like(query)
        return Rule(query % self._dilation(axis), low, low + self.grid[axis])


def _coordinates(index: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """Coordinates of cells from their numbers, row by row."""
    found = []
    for size in reversed(shape[1:]):
        found.append(index % size)
        index = index // size
    return [index, *reversed(found)]


def _boxes(edges: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """For each axis the first and the last coordinate, ``(2, blocks)``, of a box that holds the block."""
    ends = torch.stack([edges[:-1], edges[1:] - 1])
    found = []
    for axis, coordinate in enumerate(_coordinates(ends, shape)):
        # A block that goes on in another row, or plane, can have any coordinate.
        before = ends // math.prod(shape[axis:])
        whole = coordinate.new_tensor([[0], [shape[axis] - 1]])
        found.append(torch.where(before[0] == before[1], coordinate, whole))
    return found


def _shape(value: Sizes) -> tuple[int, ...]:
    """The checked size of a grid."""
    if not isinstance(value, list | tuple):
        return (check_int("shape", value, at_least=1),)
    shape = tuple(value)
    if not 1 <= len(shape) <= _AXES:
        raise ValueError(f"shape must have 1 to {_AXES} axes, got {value!r}")
    return check_per_axis("shape", shape, len(shape))


def _fits(name: str, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    for size, length in zip(sizes, shape, strict=True):
        if size > length:
            raise ValueError(f"{name} must be at most the axis of {length}, got {size}")
