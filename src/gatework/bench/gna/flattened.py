"""Single-dimensional tiling: tiles are runs of tokens in the order of the flattened grid.

Source: arXiv:2504.16922, section 3 (why kernels for sequences waste work on planes and volumes).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gatework.bench.gna.axis import AxisRule, axis_tiles
from gatework.bench.gna.simulator import Visits, axis_rules
from gatework.masks import Neighborhood

_Numbers = NDArray[np.int64]

#: Intervals of keys that are looked at together, which bounds the memory.
_CHUNK = 1 << 18


def simulate_flattened(mask: Neighborhood, q_tokens: int, kv_tokens: int) -> Visits:
    """Count the key tiles with a key that a tile of queries needs, tiles being runs of the flattened grid.

    With dilation each class is flattened by itself, as in
    :func:`~gatework.bench.gna.simulator.simulate`; visits without a mask are not counted.

    Args:
        mask: Who attends to whom.
        q_tokens: Queries of a tile.
        kv_tokens: Keys of a tile.
    """
    worst = visited = q_tiles = 0
    for rules, classes in _classes(mask).items():
        counts = _visits(rules, q_tokens, kv_tokens)
        worst = max(worst, int(counts.max()))
        visited += classes * int(counts.sum())
        q_tiles += classes * len(counts)
    dense = [-(-mask.q_size // size) for size in (q_tokens, kv_tokens)]
    return Visits(q_tiles, worst, visited, None, *dense)


def num_intervals(mask: Neighborhood) -> int:
    """About how many intervals of keys :func:`simulate_flattened` looks at: its cost."""
    return math.prod(size * window for size, window in zip(mask.shape[:-1], mask.window[:-1], strict=True))


def _classes(mask: Neighborhood) -> Counter[tuple[AxisRule, ...]]:
    """The grids of the dilation classes, each with its number: classes of an axis have one of two lengths."""
    axes = []
    for rule in axis_rules(mask):
        lengths = Counter((rule.length - 1 - kind) // rule.dilation + 1 for kind in range(rule.dilation))
        axes.append(
            [
                (AxisRule(length, rule.window, rule.stride, 1, rule.is_causal), number)
                for length, number in lengths.items()
            ]
        )
    found: Counter[tuple[AxisRule, ...]] = Counter()
    for combination in itertools.product(*axes):
        found[tuple(rule for rule, _ in combination)] += math.prod(number for _, number in combination)
    return found


def _visits(rules: Sequence[AxisRule], q_tokens: int, kv_tokens: int) -> _Numbers:
    """Key tiles that each tile of queries of one class visits."""
    tokens = math.prod(rule.length for rule in rules)
    kv_tiles = -(-tokens // kv_tokens)
    counts = np.zeros(-(-tokens // q_tokens), dtype=np.int64)
    for tile, low, high in _intervals(rules, q_tokens, kv_tiles):
        first, tiles = int(tile[0]), int(tile[-1]) - int(tile[0]) + 1
        place = (tile - first) * (kv_tiles + 1)
        # How many intervals begin at a key tile, less those that ended before it: visited if one is open.
        begin, end = (
            np.bincount(place + key_tile, minlength=tiles * (kv_tiles + 1))
            for key_tile in (low // kv_tokens, (high - 1) // kv_tokens + 1)
        )
        opened = (begin - end).reshape(tiles, kv_tiles + 1).cumsum(1)
        counts[first : first + tiles] = (opened > 0).sum(1)
    return counts


def _intervals(
    rules: Sequence[AxisRule], q_tokens: int, kv_tiles: int
) -> Iterator[tuple[_Numbers, _Numbers, _Numbers]]:
    """Intervals of flattened keys, each with its tile of queries; all those of a tile come together.

    A tile of queries is cut at the ends of rows. The queries of such a piece differ on the last axis alone,
    and their windows there leave no gap: in every row of keys that they see they need one interval.
    """
    windows = [_windows(rule) for rule in rules]
    width = rules[-1].length
    rows = math.prod(rule.length for rule in rules[:-1])
    edges = np.unique(np.concatenate([np.arange(0, rows * width, size) for size in (q_tokens, width)]))
    ends = np.append(edges[1:], rows * width) - 1
    tile, row = edges // q_tokens, edges // width
    low, high = windows[-1][0][edges % width], windows[-1][1][ends % width]
    per_tile = (q_tokens // width + 2) * math.prod(rule.window for rule in rules[:-1])
    step = max(1, _CHUNK // max(per_tile, kv_tiles)) * q_tokens
    for start in range(0, rows * width, step):
        piece = slice(*np.searchsorted(edges, [start, start + step]))
        keys, which = _key_rows(row[piece], windows[:-1], rules[:-1])
        base = keys * width
        yield tile[piece][which], base + low[piece][which], base + high[piece][which]


def _windows(rule: AxisRule) -> tuple[_Numbers, _Numbers]:
    """Beginning and end of the window of each token of an axis without dilation."""
    windows = axis_tiles(rule, 1)
    return windows.low.numpy(), windows.high.numpy()


def _key_rows(
    row: _Numbers, windows: Sequence[tuple[_Numbers, _Numbers]], rules: Sequence[AxisRule]
) -> tuple[_Numbers, _Numbers]:
    """Rows of keys that rows of queries see, and the place in ``row`` that each belongs to."""
    which, keys = np.arange(len(row)), np.zeros_like(row)
    behind = math.prod(rule.length for rule in rules)
    for (low, high), rule in zip(windows, rules, strict=True):
        behind //= rule.length
        place = row[which] // behind % rule.length
        size = high[place] - low[place]
        first = size.cumsum() - size
        which = which.repeat(size)
        keys = (keys * rule.length + low[place] - first).repeat(size) + np.arange(len(which))
    return keys, which
