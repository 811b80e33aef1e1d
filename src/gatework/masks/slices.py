"""A mask painted from rectangles of queries and keys, each full, causal, inverse causal or both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gatework.checks import check_int
from gatework.masks.algebra import EMPTY, Allowed, Classes, Cuts, Edges, Index, Mask
from gatework.masks.blocks import refined, states
from gatework.masks.values import Table, keep

Ranges = Sequence[Sequence[int]] | Tensor

#: Kinds of slices, in the order of the numbers that benchmarks and kernels give them.
KINDS = ("full", "causal", "inverse_causal", "bicausal")

#: Further than any difference of positions.
_FAR = 1 << 40


class Slice(NamedTuple):
    """Queries ``q_start ... q_stop - 1`` and some or all of the keys ``kv_start ... kv_stop - 1``.

    With ``d = j - i``, a causal slice has the pairs with ``d <= kv_stop - q_stop``: its last query sees all
    of its keys, the one before all but the last. An inverse causal one has those with
    ``d >= kv_start - q_start``: its first query sees all, the next all but the first. A bicausal one has
    those with both.
    """

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    kind: str = "full"

    @property
    def least(self) -> int:
        """Least difference of key and query position."""
        return self.kv_start - self.q_start if self.kind in ("inverse_causal", "bicausal") else -_FAR

    @property
    def most(self) -> int:
        """Greatest difference of key and query position."""
        return self.kv_stop - self.q_stop if self.kind in ("causal", "bicausal") else _FAR


@dataclass(frozen=True, init=False)
class Slices(Mask):
    """Allowed is what at least one slice allows; slices may overlap.

    Finding a pair's answer takes a table of as many intervals of keys for each query as slices share one.

    Attributes:
        slices: The slices, each as ``(q_start, q_stop, kv_start, kv_stop, kind)``, with kinds ``"full"``,
            ``"causal"``, ``"inverse_causal"`` and ``"bicausal"``, or their numbers 0 to 3.

    Raises:
        TypeError: If a bound is no integer.
        ValueError: If a range is negative or ends before it starts, or a kind is unknown.
    """

    slices: tuple[Slice, ...]
    _low: Table = field(init=False, repr=False, compare=False)
    _high: Table = field(init=False, repr=False, compare=False)

    def __init__(self, slices: Iterable[Sequence[int | str]]) -> None:
        checked = tuple(_checked(each) for each in slices)
        low, high = _intervals(checked)
        keep(self, slices=checked, _low=Table(low.T), _high=Table(high.T))

    @classmethod
    def from_ranges(
        cls, q_ranges: Ranges, kv_ranges: Ranges, kinds: Sequence[int | str] | Tensor | None = None
    ) -> Slices:
        """Build the mask from ranges ``(slices, 2)``, ends excluded, and a kind for each; all full if none.

        Raises:
            ValueError: If there are not as many ranges of queries as of keys and as kinds.
        """
        queries, keys = _listed(q_ranges), _listed(kv_ranges)
        names = ["full"] * len(queries) if kinds is None else _listed(kinds)
        if not len(queries) == len(keys) == len(names):
            raise ValueError(
                f"q_ranges, kv_ranges and kinds must be equally many, got {len(queries)}, {len(keys)} and "
                f"{len(names)}"
            )
        return cls((*q, *kv, kind) for q, kv, kind in zip(queries, keys, names, strict=True))

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The key lies in one of the query's intervals."""
        size = self._low.tensor.shape[1] - 1
        query = torch.where((q_idx >= 0) & (q_idx < size), q_idx, size)
        low, high = self._low.on(q_idx.device), self._high.on(q_idx.device)
        allowed = kv_idx < 0
        for start, stop in zip(low.unbind(), high.unbind(), strict=True):
            allowed = allowed | ((kv_idx >= start[query]) & (kv_idx < stop[query]))
        return allowed

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where slices begin and end."""
        bounds = torch.tensor([each[:4] for each in self.slices], dtype=torch.int64).reshape(-1, 2, 2)
        q_cuts, kv_cuts = (
            torch.cat([side.reshape(-1).clamp(max=length), side.new_tensor([0, length])]).unique()
            for side, length in zip(bounds.unbind(1), (q_length, kv_length), strict=True)
        )
        return q_cuts, kv_cuts

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By slices, each of which looks only at the blocks that it reaches."""
        cuts = self.edges(int(q_edges[-1]), int(kv_edges[-1]))
        return refined(self._paint, q_edges, kv_edges, *cuts)

    def _paint(self, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
        classes = torch.full((len(q_edges) - 1, len(kv_edges) - 1), EMPTY, dtype=torch.int8)
        for each in self.slices:
            rows = _reached(q_edges, each.q_start, each.q_stop)
            columns = _reached(kv_edges, each.kv_start, each.kv_stop)
            # A bicausal slice of more queries than keys has no pair at all.
            if rows.start >= rows.stop or columns.start >= columns.stop or each.least > each.most:
                continue
            queries = q_edges[rows.start : rows.stop + 1].clamp(each.q_start, each.q_stop)[:, None]
            keys = kv_edges[columns.start : columns.stop + 1].clamp(each.kv_start, each.kv_stop)
            least, most = keys[:-1] - (queries[1:] - 1), (keys[1:] - 1) - queries[:-1]
            whole = _whole(q_edges, rows, each.q_start, each.q_stop)[:, None]
            whole = whole & _whole(kv_edges, columns, each.kv_start, each.kv_stop)
            painted = states(
                (most < each.least) | (least > each.most), whole & (least >= each.least) & (most <= each.most)
            )
            part = classes[rows, columns]
            torch.maximum(part, painted, out=part)
        return classes

    def _count(self, q_length: int, kv_length: int) -> int:
        low, high = (
            table.tensor[:, :-1][:, :q_length].clamp(max=kv_length) for table in (self._low, self._high)
        )
        return int((high - low).sum())


def _checked(values: Sequence[int | str]) -> Slice:
    """One slice, its kind by name."""
    if len(values) not in (4, 5):
        raise ValueError(f"slices must be (q_start, q_stop, kv_start, kv_stop[, kind]), got {values!r}")
    *bounds, kind = (*values, "full")[:5]
    if isinstance(kind, int) and 0 <= kind < len(KINDS):
        kind = KINDS[kind]
    if kind not in KINDS:
        raise ValueError(f"slices must be of a kind among {KINDS} or its number, got {kind!r}")
    q_start, q_stop, kv_start, kv_stop = (check_int("bounds of slices", bound) for bound in bounds)
    if not (0 <= q_start <= q_stop and 0 <= kv_start <= kv_stop):
        raise ValueError(f"slices must have ranges of 0 <= start <= stop, got {values!r}")
    return Slice(q_start, q_stop, kv_start, kv_stop, str(kind))


def _listed(values: Sequence[Any] | Tensor) -> Sequence[Any]:
    listed: Sequence[Any] = values.tolist() if isinstance(values, Tensor) else values
    return listed


def _intervals(slices: tuple[Slice, ...]) -> tuple[Tensor, Tensor]:
    """For each query the disjoint intervals of its keys, ``(queries + 1, most)``; the last row is empty."""
    size = max((each.q_stop for each in slices), default=0)
    shared = np.zeros(size + 1, dtype=np.int64)
    for each in slices:
        shared[each.q_start : each.q_stop] += 1
    low = np.full((size + 1, max(1, shared.max())), _FAR)
    high = low.copy()
    used = np.zeros_like(shared)
    for each in slices:
        queries = np.arange(each.q_start, each.q_stop)
        low[queries, used[queries]] = np.maximum(each.kv_start, np.minimum(queries + each.least, _FAR))
        high[queries, used[queries]] = np.minimum(each.kv_stop, queries + each.most + 1)
        used[queries] += 1
    high = np.maximum(low, high)
    order = low.argsort(1)
    low, high = np.take_along_axis(low, order, 1), np.take_along_axis(high, order, 1)
    for column in range(1, low.shape[1]):
        # What an earlier interval has already is taken from the later one.
        low[:, column] = np.maximum(low[:, column], high[:, column - 1])
        high[:, column] = np.maximum(high[:, column], low[:, column])
    return torch.from_numpy(low), torch.from_numpy(high)


def _reached(edges: Tensor, start: int, stop: int) -> slice:
    """Which blocks have positions in ``start ... stop - 1``."""
    first = int(torch.searchsorted(edges, start, right=True)) - 1
    last = int(torch.searchsorted(edges, stop))
    return slice(max(first, 0), min(last, len(edges) - 1) if start < stop else 0)


def _whole(edges: Tensor, reached: slice, start: int, stop: int) -> Tensor:
    """Which of the reached blocks lie inside as a whole."""
    inside: Tensor = (edges[reached] >= start) & (edges[reached.start + 1 : reached.stop + 1] <= stop)
    return inside
