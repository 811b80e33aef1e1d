"""How the work of a plan is divided: items for the forward pass, parts of heads for the backward pass."""

from __future__ import annotations

from typing import Any

#: Most rows of queries, of all heads of a group, that are compared with the keys at a time.
MOST_ROWS = 512


def list_items(
    pattern_of: Any, pattern_tile: Any, tile_query: Any, tile_run: Any, run_length: Any,
    batch: int, heads: int, kv_heads: int, items: Any, costs: Any, summary: Any,
) -> int:  # fmt: skip
    """List the work items, those of one key head together.

    Heads that share keys and a pattern are one item, as long as it has few enough rows; tiles of more
    queries are cut.

    Args:
        pattern_of: Pattern of each sequence and head, ``(1 or batch, 1 or heads)``; this and the next
            four are fields of :class:`~gatework.ops.attention.plan.Plan`.
        pattern_tile: Where the tiles of each pattern begin, and the end.
        tile_query: Where the queries of each tile begin, and the end.
        tile_run: Where the runs of keys of each tile begin, and the end.
        run_length: Number of keys of each run.
        batch: Number of sequences.
        heads: Number of query heads.
        kv_heads: Number of key heads.
        items: ``(items, 6)``, filled: sequence, head, heads, tile, first and last query of the tile. If it
            has no row, the items are only counted.
        costs: ``(items,)``, filled: pairs of queries and keys.
        summary: ``(2,)``, filled: the sum of the costs, and the most rows of queries of an item.

    Returns:
        The number of items.
    """
    count = 0
    group = heads // kv_heads
    summary[0], summary[1] = 0, 1
    for unit in range(batch * kv_heads):
        sequence, first = unit // kv_heads, unit % kv_heads * group
        row = pattern_of[sequence if pattern_of.shape[0] > 1 else 0]
        together = group
        if len(row) > 1:
            for head in range(first, first + group):
                if row[head] != row[first]:
                    together = 1
        for head in range(first, first + group, together):
            pattern = row[head if len(row) > 1 else 0]
            for tile in range(pattern_tile[pattern], pattern_tile[pattern + 1]):
                queries = tile_query[tile + 1] - tile_query[tile]
                slices = (queries + MOST_ROWS - 1) // MOST_ROWS
                for i in range(slices):
                    low, high = queries * i // slices, queries * (i + 1) // slices
                    step = min(together, max(1, MOST_ROWS // (high - low)))
                    for h in range(head, head + together, step):
                        if len(items) > 0:
                            taken = min(step, head + together - h)
                            rows = taken * (high - low)
                            keys = 0
                            for run in range(tile_run[tile], tile_run[tile + 1]):
                                keys += run_length[run]
                            item = items[count]
                            item[0], item[1], item[2], item[3] = sequence, h, taken, tile
                            item[4], item[5] = low, high
                            costs[count] = rows * keys
                            summary[0] += rows * keys
                            summary[1] = max(summary[1], rows)
                        count += 1
    return count


def list_parts(
    items: Any, costs: Any, tile_run: Any, run_start: Any, run_length: Any,
    kv_heads: int, group: int, slots: int, parts: Any,
) -> int:  # fmt: skip
    """Cut the items of every key head into parts of about the same cost.

    Args:
        items: ``(items, 6)``, from :func:`list_items`.
        costs: Pairs of queries and keys of each item.
        tile_run: Where the runs of keys of each tile begin, and the end.
        run_start: First key of each run.
        run_length: Number of keys of each run.
        kv_heads: Number of key heads.
        group: Query heads for each of them.
        slots: Parts for each key head of each sequence.
        parts: ``(units * slots, 8)``, filled: first and last item, unit, slot, first and last key, where the
            part's partial gradients begin, slots. The first part of a unit has no partial gradients.

    Returns:
        The number of rows of all partial gradients.
    """
    rows = 0
    item = 0
    for unit in range(len(parts) // slots):
        first = item
        total = 0
        while item < len(items) and items[item, 0] * kv_heads + items[item, 1] // group == unit:
            total += costs[item]
            item += 1
        last = first
        done = 0
        for slot in range(slots):
            start = last
            low, high = 2**31 - 1, 0
            while last < item and (slot == slots - 1 or done * slots < total * (slot + 1)):
                done += costs[last]
                tile = items[last, 3]
                for run in range(tile_run[tile], tile_run[tile + 1]):
                    low = min(low, run_start[run])
                    high = max(high, run_start[run] + run_length[run])
                last += 1
            low = min(low, high)
            part = parts[unit * slots + slot]
            part[0], part[1], part[2], part[3] = start, last, unit, slot
            part[4], part[5], part[6], part[7] = low, high, rows, slots
            if slot > 0:
                rows += high - low
    return rows
