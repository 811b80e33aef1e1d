"""Halo attention: the queries of a block of pixels share one window of keys, the block and a halo around it.

The operator of HaloNet (arXiv:2103.12731, section 3), with relative position logits, strided queries for
attention that down-samples, and maps of any size.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from gatework.checks import check_choice, check_divides, check_number, check_per_axis, check_shape
from gatework.ops.vision.halo_blocks import Axis, halo_blocks, runs

_Queries = Float[Tensor, "batch heads q_height q_width head_dim"]
_Keys = Float[Tensor, "batch heads height width head_dim"]
_Values = Float[Tensor, "batch heads height width value_dim"]
_Outputs = Float[Tensor, "batch heads q_height q_width value_dim"]
_RowTable = Float[Tensor, "row_offsets head_dim"]
_ColumnTable = Float[Tensor, "column_offsets head_dim"]

#: Share of the windows' cells that lies on the map, below which padding is summed up instead of computed.
_MOSTLY_PADDING = 0.5

#: Stands for minus infinity where that would make NaN of a sum or a gradient.
_LOWEST = -1e30


def halo_attention_reference(
    q: _Queries,
    k: _Keys,
    v: _Values,
    *,
    block_size: int | tuple[int, int],
    halo_size: int | tuple[int, int],
    rel_height: _RowTable | None = None,
    rel_width: _ColumnTable | None = None,
    scale: float | None = None,
    scale_pos_embed: bool = False,
    padding_mode: Literal["zeros", "mask"] = "zeros",
    stride: int = 1,
) -> _Outputs:
    """The definition, block by block, in the inputs' precision; see :func:`halo_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    down, across = _axes(block_size, halo_size, stride)
    y = v.new_zeros(*q.shape[:4], v.shape[-1])
    k, v, real = (_padded(x, down, across) for x in (k, v, torch.ones_like(k[:1, :1, :, :, :1])))
    for top in range(0, q.shape[2], down.queries):
        for left in range(0, q.shape[3], across.queries):
            queries = q[:, :, top : top + down.queries, left : left + across.queries]
            row, column = top // down.queries * down.block, left // across.queries * across.block
            window = (..., slice(row, row + down.window), slice(column, column + across.window), slice(None))
            content = torch.einsum("bnyxd,bnjid->bnyxji", queries, k[window])
            position = torch.zeros_like(content)
            if rel_height is not None:
                terms = _by_offset(rel_height, queries.shape[2], down)
                position = position + torch.einsum("bnyxd,yjd->bnyxj", queries, terms)[..., None]
            if rel_width is not None:
                terms = _by_offset(rel_width, queries.shape[3], across)
                position = position + torch.einsum("bnyxd,xid->bnyxi", queries, terms)[..., None, :]
            logits = (content + position) * scale if scale_pos_embed else content * scale + position
            if padding_mode == "mask":
                logits = logits.masked_fill(real[window][:, :, None, None, ..., 0] == 0, -torch.inf)
            weights = logits.flatten(4).softmax(-1).view_as(logits)
            mixed = torch.einsum("bnyxji,bnjid->bnyxd", weights, v[window])
            y[:, :, top : top + down.queries, left : left + across.queries] = mixed
    return y


def halo_attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    *,
    block_size: int | tuple[int, int],
    halo_size: int | tuple[int, int],
    rel_height: _RowTable | None = None,
    rel_width: _ColumnTable | None = None,
    scale: float | None = None,
    scale_pos_embed: bool = False,
    padding_mode: Literal["zeros", "mask"] = "zeros",
    stride: int = 1,
) -> _Outputs:
    r"""Softmax attention of each block of queries to the block and the halo around it.

    Query ``(y, x)`` of a block, counted from the block's corner, gives key ``(j, i)`` of its window the logit
    ``scale * q . k_ji + q . (rel_height[j - y + h - 1] + rel_width[i - x + w - 1])``, where ``h`` and ``w``
    are the window's sizes, block + 2 * halo. Computes what :func:`halo_attention_reference` defines, in
    O(height * width * h * w) time and O(height * width) memory, gradients included; in float32 at least.

    Maps have the heads first, as sequences have in :func:`gatework.ops.attention`. Blocks start in the top
    left corner; a map that is no multiple of the block is padded at the bottom and on the right, and the
    outputs of padding are cropped. It is padding like that of the halo.

    Args:
        q: Queries; one for each ``stride``-th pixel of the map, the first one included.
        k: Keys of all pixels.
        v: Values of all pixels.
        block_size: Height and width of a block, in pixels; a number for both.
        halo_size: How far the window reaches beyond the block, up and down, left and right.
        rel_height: Position vectors of the ``2 * h - 1`` vertical offsets from query to key, shared by the
            heads; none by default.
        rel_width: The same of the ``2 * w - 1`` horizontal offsets.
        scale: Factor on ``q . k``, ``head_dim ** -0.5`` by default.
        scale_pos_embed: Whether ``scale`` multiplies the position logits too.
        padding_mode: ``"zeros"``: pixels beyond the map are keys and values of zeros, and take part in the
            softmax with their position logit, as in the released networks. ``"mask"``: they take no part.
        stride: Pixels between neighbouring queries; divides the block. Offsets count the queries of a
            block, not their pixels: ``y`` is 0, 1, 2 for any stride, as in the released weights.

    Returns:
        One output per query; in memory the heads of a pixel lie together.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If shapes, dtypes, sizes or the padding mode do not fit.
    """
    down, across = _axes(block_size, halo_size, stride)
    _check(q, k, v, (down, across), (rel_height, rel_width), padding_mode)
    scale = q.shape[-1] ** -0.5 if scale is None else float(check_number("scale", scale))
    dtype = torch.promote_types(q.dtype, torch.float32)
    factor = scale if scale_pos_embed else 1.0
    with torch.autocast(q.device.type, enabled=False):
        wide = q.to(dtype)
        vertical = None if rel_height is None else _logits(wide, rel_height.to(dtype) * factor, 2, down)
        horizontal = None if rel_width is None else _logits(wide, rel_width.to(dtype) * factor, 3, across)
        maps = wide, k.to(dtype), v.to(dtype)
        y = _over_blocks(maps, (vertical, horizontal), (down, across), scale, zeros=padding_mode == "zeros")
    return y.to(v.dtype)


def _over_blocks(
    maps: tuple[Tensor, Tensor, Tensor],
    positions: tuple[Tensor | None, Tensor | None],
    axes: tuple[Axis, Axis],
    scale: float,
    *,
    zeros: bool,
) -> Tensor:
    """Attention over the windows of blocks; beyond the map are ``zeros``, or nothing."""
    q, k, v = maps
    down, across = axes
    padding = None
    if zeros and _coverage(q, k, down, across) < _MOSTLY_PADDING:
        padding = _padding_logit(q, k, *positions, axes)
    elif zeros:
        k, v = _padded(k, down, across), _padded(v, down, across)
        down, across = down._replace(origin=0), across._replace(origin=0)
    y: Tensor = halo_blocks(q, k, v, *positions, padding, scale, [*down, *across])[0]
    return y


def _axes(
    block_size: int | tuple[int, int], halo_size: int | tuple[int, int], stride: int
) -> tuple[Axis, Axis]:
    """How height and width are cut, if block, halo and stride can be."""
    blocks = check_per_axis("block_size", block_size, 2)
    halos = check_per_axis("halo_size", halo_size, 2, at_least=0)
    for block in blocks:
        check_divides("stride", stride, "block_size", block)
    down, across = (
        Axis(block, block // stride, block + 2 * halo, -halo)
        for block, halo in zip(blocks, halos, strict=True)
    )
    return down, across


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axes: tuple[Axis, Axis],
    tables: tuple[Tensor | None, Tensor | None],
    padding_mode: str,
) -> None:
    """Refuse maps and tables that do not belong together."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(
                f"{name} must have shape (batch, heads, height, width, dim), got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.dtype != q.dtype:
            raise ValueError(f"q, k and v must share a floating dtype, got {name} of {tensor.dtype}")
    if k.shape[:4] != v.shape[:4]:
        raise ValueError(f"k and v must be maps of one size, got {tuple(k.shape)} and {tuple(v.shape)}")
    sizes = [-(-size // (axis.block // axis.queries)) for size, axis in zip(k.shape[2:4], axes, strict=True)]
    wanted = (*k.shape[:2], *sizes, k.shape[4])
    if q.shape != wanted:
        raise ValueError(f"q must have shape {wanted} to match k and the stride, got {tuple(q.shape)}")
    for name, table, axis in zip(("rel_height", "rel_width"), tables, axes, strict=True):
        if table is not None:
            check_shape(name, table, (2 * axis.window - 1, q.shape[-1]), "(2 * window - 1, head_dim)")
    check_choice("padding_mode", padding_mode, ("zeros", "mask"))


def _padded(tensor: Tensor, down: Axis, across: Axis) -> Tensor:
    """A map with zeros around it, so that every window lies on it."""
    sides = []
    for axis, size in ((across, tensor.shape[3]), (down, tensor.shape[2])):
        halo = (axis.window - axis.block) // 2
        sides += [halo, halo + -size % axis.block]
    return pad(tensor, (0, 0, *sides))


def _by_offset(table: Tensor, queries: int, axis: Axis) -> Tensor:
    """The vectors of a table for ``queries`` queries along an axis and the keys of their windows."""
    steps = torch.arange(queries, device=table.device) % axis.queries
    offsets = torch.arange(axis.window, device=table.device) - steps[:, None]
    return table[offsets + axis.window - 1]


def _logits(q: Tensor, table: Tensor, dim: int, axis: Axis) -> Tensor:
    """``q . table[offset]`` for every query and every row (``dim`` 2) or column (3) of its window."""
    terms = _by_offset(table, q.shape[dim], axis)
    return torch.einsum("bnyxd,yjd->bnyxj" if dim == 2 else "bnyxd,xjd->bnyxj", q, terms)


def _coverage(q: Tensor, k: Tensor, down: Axis, across: Axis) -> float:
    """The share of the windows' cells that lies on the map."""
    share = 1.0
    for dim, axis in ((2, down), (3, across)):
        found = runs(axis, q.shape[dim], k.shape[dim])
        real = sum(run.blocks * (run.high - run.low) for run in found)
        share *= real / max(1, sum(run.blocks for run in found) * axis.window)
    return share


def _padding_logit(
    q: Tensor, k: Tensor, vertical: Tensor | None, horizontal: Tensor | None, axes: tuple[Axis, Axis]
) -> Tensor:
    """The logarithm of what all padding adds to each softmax.

    The logits of padding are sums of a term of its row and one of its column. Padding is the rows that
    leave the map, in all columns, and the other rows in the columns that leave it:
    ``sum_out(rows) * sum(columns) + sum_in(rows) * sum_out(columns)``.
    """
    inside: list[Tensor] = []
    outside: list[Tensor] = []
    for logits, dim, axis in ((vertical, 2, axes[0]), (horizontal, 3, axes[1])):
        if logits is None:
            logits = q.new_zeros(1, 1, 1, 1, axis.window)
        for part, parts in zip(_log_sums(logits, _on_map(q, k, dim, axis)), (inside, outside), strict=True):
            parts.append(part)
    columns = torch.logaddexp(inside[1], outside[1])
    padding = torch.logaddexp(outside[0] + columns, inside[0] + outside[1])
    return padding.expand(q.shape[:4])


def _on_map(q: Tensor, k: Tensor, dim: int, axis: Axis) -> Tensor:
    """Which rows (``dim`` 2) or columns (3) of its window a query finds on the map, (..., window)."""
    blocks = torch.arange(q.shape[dim], device=q.device) // axis.queries
    positions = (blocks * axis.block + axis.origin)[:, None] + torch.arange(axis.window, device=q.device)
    on_map = (positions >= 0) & (positions < k.shape[dim])
    return on_map[:, None] if dim == 2 else on_map


def _log_sums(logits: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the last axis of the entries that are True, and of the others.

    Of no entries it is a number so low that nothing is left of it in a softmax, but finite, as sums and
    gradients of it must be. Every entry is exponentiated once, relative to the highest of its own kind.
    """
    kinds = (where, ~where)
    highest = [torch.where(kind, logits.detach(), _LOWEST).amax(-1, keepdim=True) for kind in kinds]
    powers = torch.exp(logits - torch.where(where, highest[0], highest[1]))
    sums = (torch.where(kind, powers, 0.0).sum(-1) + ~kind.any(-1) for kind in kinds)
    inside, outside = (total.log() + high[..., 0] for total, high in zip(sums, highest, strict=True))
    return inside, outside
