"""One axis of a grid: the window of each query coordinate, and what windows say of ranges of coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gatework.masks.blocks import states

#: Axes with at most so many pairs of coordinates are classified by a table of all of them.
_TABLE = 1 << 21


class AxisWindows(NamedTuple):
    """Query coordinate ``i`` may attend to key coordinate ``j`` iff ``j`` is of its class and in its window.

    That is, iff ``j % dilation == q_class[i]`` and ``low[i] <= j // dilation < high[i]``. Windows hold
    existing keys only, so that query ``i`` has ``high[i] - low[i]`` keys.

    Attributes:
        q_class: Class of each query coordinate, int64.
        low: First place of its window.
        high: End of its window.
        dilation: Number of classes of keys.
    """

    q_class: Tensor
    low: Tensor
    high: Tensor
    dilation: int


def axis_classes(windows: AxisWindows, kv_length: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Classify ranges of coordinates: EMPTY, PARTIAL or FULL, ``(q_ranges, kv_ranges)``.

    Exact for short axes, and for windows that move in one direction; else EMPTY and FULL stay promises.

    Args:
        windows: The windows of the axis.
        kv_length: Number of key coordinates.
        queries: First and last query coordinate of each range, ``(2, q_ranges)``.
        keys: First and last key coordinate, ``(2, kv_ranges)``.
    """
    if len(windows.low) * kv_length <= _TABLE:
        return _by_table(windows, kv_length, queries, keys)
    some = torch.zeros(queries.shape[1], keys.shape[1], dtype=torch.bool)
    full = torch.zeros_like(some)
    for kind in range(min(windows.dilation, kv_length)):
        of_kind = _by_class(windows, kind, queries, keys)
        some |= of_kind[0]
        full |= of_kind[1]
    return states(~some, full)


def _by_table(windows: AxisWindows, kv_length: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Sums over rectangles of the table of all pairs."""
    key = torch.arange(kv_length)
    place = key // windows.dilation
    allowed = (place >= windows.low[:, None]) & (place < windows.high[:, None])
    allowed &= key % windows.dilation == windows.q_class[:, None]
    sums = torch.nn.functional.pad(allowed.to(torch.int32).cumsum(0).cumsum(1), (1, 0, 1, 0))
    top, bottom, left, right = queries[0][:, None], queries[1][:, None] + 1, keys[0], keys[1] + 1
    count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return states(count == 0, count == (bottom - top) * (right - left))


def _by_class(windows: AxisWindows, kind: int, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Whether queries of one class have some of its keys in a range, and whether they have all of the range.

    Along the queries of a class the bounds of windows do not decrease, or are replaced by ones that do not
    and promise less. Those that begin early enough then come first, those that end late enough last.
    """
    dilation = windows.dilation
    mine = ((windows.q_class == kind) & (windows.low < windows.high)).nonzero()[:, 0]
    if len(mine) == 0:
        nothing = torch.zeros(queries.shape[1], keys.shape[1], dtype=torch.bool)
        return nothing, nothing
    low, high = windows.low[mine], windows.high[mine]
    first = torch.searchsorted(mine, queries[0].contiguous())[:, None]
    stop = torch.searchsorted(mine, queries[1].contiguous(), right=True)[:, None]
    key_low = -((kind - keys[0]) // dilation)
    key_high = (keys[1] - kind) // dilation

    early = torch.searchsorted(_rising_from_end(low), key_high, right=True)
    late = torch.searchsorted(high.cummax(0).values, key_low, right=True)
    some = (torch.maximum(first, late) < torch.minimum(stop, early)) & (key_low <= key_high)

    greatest_low = low.cummax(0).values[(stop - 1).clamp(min=0)]
    least_high = _rising_from_end(high)[first.clamp(max=len(mine) - 1)]
    only_mine = (stop - first == (queries[1] - queries[0] + 1)[:, None]) & (
        key_high - key_low == keys[1] - keys[0]
    )
    return some, only_mine & (greatest_low <= key_low) & (least_high > key_high)


def _rising_from_end(values: Tensor) -> Tensor:
    """For each place the least value from there on."""
    return values.flip(0).cummin(0).values.flip(0)
