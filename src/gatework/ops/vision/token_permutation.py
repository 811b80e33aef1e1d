"""Token permutation: a grid laid out tile by tile, so that a kernel for sequences sees tiles of the grid.

Source: arXiv:2504.16922, section 3.3 (the multi-dimensional tiling of fused neighbourhood attention, as a
change of layout).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad

_Grid = Shaped[Tensor, "batch *grid heads head_dim"]
_Sequences = Shaped[Tensor, "groups tokens heads head_dim"]


def token_permute(
    tensor: _Grid,
    tile_shape: Sequence[int],
    dilation: Sequence[int] | None = None,
    flip_tiled_dims: bool = True,
) -> tuple[_Sequences, tuple[int, ...], tuple[int, ...]]:
    """Lay a grid of tokens out as sequences of tiles, one sequence for each dilation class.

    Every axis is filled up with zeros to a multiple of ``tile * dilation`` and read as ``(rest, tile,
    dilation)``; the result is ordered by batch and dilation class, then by tile, then within the tile.
    Without padding, tiles of one axis and dilation 1 this changes nothing.

    Args:
        tensor: Tokens of a grid with one to three axes, heads last.
        tile_shape: Tokens of a tile along each axis.
        dilation: Number of classes of each axis; 1 by default.
        flip_tiled_dims: Whether, within classes, tiles and tokens of a tile, the first axis changes fastest
            (as the CuTe library counts) instead of the last.

    Returns:
        The sequences, ``(batch * prod(dilation), prod(padded / dilation), heads, head_dim)``; the size of
        the grid; and the size of the padded grid of one class.

    Raises:
        ValueError: If the tensor has no grid of one to three axes, or a size is not positive or missing.
    """
    if not 4 <= tensor.ndim <= 6:
        raise ValueError(
            "tensor must have shape (batch, *grid, heads, head_dim) with one to three axes, "
            f"got {tuple(tensor.shape)}"
        )
    batch, *grid, heads, dim = tensor.shape
    tile, gaps = _tiling(len(grid), tile_shape, dilation)
    units = [size * gap for size, gap in zip(tile, gaps, strict=True)]
    ends = [-length % unit for length, unit in zip(grid, units, strict=True)]
    padded = pad(tensor, (0, 0, 0, 0, *(n for end in reversed(ends) for n in (0, end))))
    split = [
        size
        for length, end, unit, *rest in zip(grid, ends, units, tile, gaps, strict=True)
        for size in ((length + end) // unit, *rest)
    ]
    order = _order(len(grid), flip_tiled_dims)
    tiled = padded.reshape(batch, *split, heads, dim).permute(0, *order, -2, -1)
    layout = tuple((n + end) // gap for n, end, gap in zip(grid, ends, gaps, strict=True))
    return tiled.reshape(batch * math.prod(gaps), math.prod(layout), heads, dim), tuple(grid), layout


def token_unpermute(
    tensor: _Sequences,
    grid: Sequence[int],
    tile_shape: Sequence[int],
    dilation: Sequence[int] | None = None,
    flip_tiled_dims: bool = True,
) -> _Grid:
    """Undo :func:`token_permute`, without the padding.

    Args:
        tensor: What :func:`token_permute` returned first, or an output in that layout.
        grid: Size of the grid, which it returned second.
        tile_shape: As given to it, like the other arguments.
        dilation: See ``tile_shape``.
        flip_tiled_dims: See ``tile_shape``.

    Raises:
        ValueError: If the tensor has not the size that these arguments lead to.
    """
    tile, gaps = _tiling(len(grid), tile_shape, dilation)
    rests = [-(-n // (size * gap)) for n, size, gap in zip(grid, tile, gaps, strict=True)]
    classes, tokens = math.prod(gaps), math.prod(rests) * math.prod(tile)
    if tensor.ndim != 4 or tensor.shape[0] % classes or tensor.shape[1] != tokens:
        raise ValueError(
            f"tensor must have shape (batch * {classes}, {tokens}, heads, head_dim) for grid={tuple(grid)}, "
            f"tile_shape={tuple(tile)}, dilation={tuple(gaps)}, got {tuple(tensor.shape)}"
        )
    heads, dim = tensor.shape[2:]
    parts = (gaps, rests, tile)
    split = [size for part in parts for size in (reversed(part) if flip_tiled_dims else part)]
    order = _order(len(grid), flip_tiled_dims)
    back = [1 + order.index(place) for place in range(1, len(order) + 1)]
    batch = tensor.shape[0] // classes
    tiled = tensor.reshape(batch, *split, heads, dim).permute(0, *back, -2, -1)
    padded = [math.prod(sizes) for sizes in zip(rests, tile, gaps, strict=True)]
    whole = tiled.reshape(batch, *padded, heads, dim)
    return whole[(slice(None), *(slice(length) for length in grid))].contiguous()


def _tiling(
    num_axes: int, tile_shape: Sequence[int], dilation: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tile and dilation of every axis, checked."""
    if not 1 <= num_axes <= 3:
        raise ValueError(f"grid must have one to three axes, got {num_axes}")
    gaps = (1,) * num_axes if dilation is None else tuple(dilation)
    for name, sizes in (("tile_shape", tuple(tile_shape)), ("dilation", gaps)):
        if len(sizes) != num_axes or any(size < 1 for size in sizes):
            raise ValueError(
                f"{name} must be {num_axes} numbers of at least 1, one for each axis, got {sizes}"
            )
    return tuple(tile_shape), gaps


def _order(num_axes: int, flip: bool) -> list[int]:
    """Where the parts (dilations, rests, tiles) are in ``batch, (rest, tile, dilation) of each axis``."""
    axes = range(num_axes - 1, -1, -1) if flip else range(num_axes)
    return [1 + 3 * axis + part for part in (2, 0, 1) for axis in axes]
