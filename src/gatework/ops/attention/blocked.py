"""The blocked engine: only the tiles that a sliding window needs, in time and memory linear in the length."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gatework.masks import Mask, QueryOffset, SlidingWindow
from gatework.ops.attention.dense import dense
from gatework.ops.attention.options import Options, Result

#: Fewest and most queries in a tile; between them a tile is as long as the window, rounded up.
_TILE = (32, 256)


class Tiling(NamedTuple):
    """A sliding window cut into tiles of ``size`` queries and as many keys.

    Attributes:
        size: Queries in a tile.
        first: Query ``i`` may attend to keys ``i + first ... i + last``.
        last: See ``first``.
        near: Queries of tile ``t`` need the key tiles ``t + near ... t + far``.
        far: See ``near``.
    """

    size: int
    first: int
    last: int
    near: int
    far: int


def blocked(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute sliding-window attention in O(q_length * (window + tile)) time.

    Queries are cut into tiles. Those that have all of their keys see one and the same pattern, so one
    fused call serves them; the queries before and after them are computed densely over their keys.
    """
    tiling = tile(options.mask)
    assert tiling is not None, "refusal() lets only sliding windows in"
    start = max(0, -tiling.near)
    stop = min(q.shape[2] // tiling.size, k.shape[2] // tiling.size - tiling.far)
    if start >= stop:
        return dense(q, k, v, options)
    lengths = [start * tiling.size, (stop - start) * tiling.size, q.shape[2] - stop * tiling.size]
    before, inner, after = torch.split_with_sizes(q, lengths, 2)
    outputs = [_inner(inner, k, v, start, tiling, options)]
    if lengths[0]:
        outputs.insert(0, _outer(before, k, v, 0, tiling, options))
    if lengths[2]:
        outputs.append(_outer(after, k, v, stop * tiling.size, tiling, options))
    return torch.cat(outputs, 2), None


def refusal(options: Options) -> str | None:
    """Say what, of the options asked for, the blocked engine cannot do."""
    if tile(options.mask) is None:
        return f"computes sliding windows only, got mask={options.mask!r}"
    for name, value in (("bias", options.bias), ("softcap", options.softcap), ("sinks", options.sinks)):
        if value is not None:
            return f"takes no {name}"
    return "returns no log-sum-exp, got return_lse=True" if options.return_lse else None


def pays(kv_length: int, options: Options) -> bool:
    """Whether the blocked engine can do what is asked and is the faster one."""
    tiling = tile(options.mask)
    if tiling is None or refusal(options) is not None:
        return False
    # At twice as many keys as a tile needs both engines take as long, measured on CPU with gradients.
    return kv_length >= 3 * tiling.size * (tiling.far - tiling.near + 1)


def tile(mask: Mask | Tensor | None) -> Tiling | None:
    """Cut a sliding window into tiles; ``None`` if ``mask`` is anything else."""
    offset = 0
    if isinstance(mask, QueryOffset):
        offset = mask.offset
        mask = mask.mask
    if not isinstance(mask, SlidingWindow):
        return None
    size = _TILE[0]
    while size < min(mask.left + mask.right, _TILE[1]):
        size *= 2
    first, last = offset - mask.left, offset + mask.right
    return Tiling(size, first, last, near=first // size, far=(size - 1 + last) // size)


def _inner(q: Tensor, k: Tensor, v: Tensor, start: int, tiling: Tiling, options: Options) -> Tensor:
    """Tiles of queries that have all of their keys, from tile ``start`` on: the tiles become heads."""
    size, batch, heads, kv_heads = tiling.size, *q.shape[:2], k.shape[1]
    count, groups = q.shape[2] // size, heads // kv_heads
    queries = q.reshape(batch, kv_heads, groups, count, size, q.shape[3]).transpose(2, 3)
    offsets = range((start + tiling.near) * size, (start + tiling.far + 1) * size, size)
    y = scaled_dot_product_attention(
        queries.reshape(batch * kv_heads, count * groups, size, q.shape[3]),
        _joined(k, offsets, count, size),
        _joined(v, offsets, count, size),
        attn_mask=_pairs(options, (0, size), (tiling.near * size, (tiling.far + 1) * size), q.device),
        dropout_p=options.dropout_p,
        scale=options.scale,
        enable_gqa=groups > 1,
    )
    y = y.reshape(batch, kv_heads, count, groups, size, v.shape[3]).transpose(2, 3)
    return y.reshape(batch, heads, count * size, v.shape[3])


def _joined(tensor: Tensor, offsets: range, count: int, size: int) -> Tensor:
    """For each of ``count`` tiles, the pieces of ``size`` keys that begin at ``offsets`` from it, in a row.

    Slices joined by cat, not a view of overlapping windows: the backward of such a view is slow.
    """
    batch, kv_heads, _, dim = tensor.shape
    shape = (batch * kv_heads, count, size, dim)
    return torch.cat([tensor[:, :, low : low + count * size].reshape(shape) for low in offsets], 2)


def _outer(q: Tensor, k: Tensor, v: Tensor, start: int, tiling: Tiling, options: Options) -> Tensor:
    """Queries from position ``start`` on that lack some of their keys, over those that exist."""
    stop = start + q.shape[2]
    low = min(max(0, start + tiling.first), k.shape[2])
    high = min(max(low, stop + tiling.last), k.shape[2])
    mask = _pairs(options, (start, stop), (low, high), q.device)
    return dense(q, k[:, :, low:high], v[:, :, low:high], options._replace(mask=mask))[0]


def _pairs(options: Options, queries: tuple[int, int], keys: tuple[int, int], device: torch.device) -> Tensor:
    """The mask between two ranges of positions; a window is the same wherever it begins."""
    assert isinstance(options.mask, Mask), "refusal() lets only sliding windows in"
    return options.mask.pairs(torch.arange(*queries, device=device), torch.arange(*keys, device=device))
