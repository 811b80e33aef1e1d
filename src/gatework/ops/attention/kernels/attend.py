"""The forward pass: softmax with a running maximum (online softmax, arXiv:1805.02867)."""

from __future__ import annotations

import math
from typing import Any

from gatework.ops.attention.kernels import layout as at
from gatework.ops.attention.kernels.chunks import gather, mix, next_chunk, open_item, pack, private
from gatework.ops.attention.kernels.scores import score_chunk
from gatework.ops.cpu.machine import exp2, fetch_add, floats, indices, integers, jit, larger


@jit
def soften(p: Any, w: Any, first: bool) -> None:
    """Turn scores into ``exp2(score - maximum so far)``; rescale sums and outputs if the maximum grew."""
    maxima, sums, dim = floats(p[at.M_BUFFER]), floats(p[at.L_BUFFER]), p[at.VALUE_DIM]
    for r in range(w[at.ROWS]):
        score = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r)
        before = at.NOTHING if first else maxima[r]
        top = before
        for c in range(w[at.PADDED]):
            top = larger(score[c], top)
        total = at.ZERO
        for c in range(w[at.PADDED]):
            weight = exp2(score[c] - top)
            score[c] = weight
            total += weight
        maxima[r] = top
        if first:
            sums[r] = total
        else:
            shrink = exp2(before - top)
            sums[r] = sums[r] * shrink + total
            if shrink != 1:
                output = floats(p[at.O_BUFFER] + 4 * dim * r)
                for d in range(dim):
                    output[d] *= shrink


@jit
def close_item(p: Any, w: Any, first: bool) -> None:
    """Divide by the sums, and write outputs and log-sum-exp to their places."""
    maxima, sums, dim, n = floats(p[at.M_BUFFER]), floats(p[at.L_BUFFER]), p[at.VALUE_DIM], w[at.NUM_QUERIES]
    query = indices(p[at.QUERY] + 4 * (indices(p[at.TILE_QUERY])[w[at.TILE]] + w[at.FIRST]))
    for r in range(w[at.ROWS]):
        head = w[at.SEQUENCE] * p[at.HEADS] + w[at.HEAD] + r // n
        place = head * p[at.Q_LENGTH] + query[r % n]
        output, row = floats(p[at.OUT] + 4 * dim * place), floats(p[at.O_BUFFER] + 4 * dim * r)
        if first or sums[r] == 0:
            floats(p[at.LSE])[place] = -math.inf
            for d in range(dim):
                output[d] = 0
        else:
            floats(p[at.LSE])[place] = (maxima[r] + math.log2(sums[r])) * at.LN2
            inverse = at.ONE / sums[r]
            for d in range(dim):
                output[d] = row[d] * inverse


@jit
def forward_item(p: Any, w: Any, item: int) -> None:
    """Attend with some queries: chunk by chunk of their keys, with a running maximum."""
    open_item(p, w, item)
    kv_head = w[at.HEAD] // (p[at.HEADS] // p[at.KV_HEADS])
    k = p[at.K] + 4 * (w[at.SEQUENCE] * p[at.K_BATCH] + kv_head * p[at.K_HEAD])
    v = p[at.V] + 4 * (w[at.SEQUENCE] * p[at.V_BATCH] + kv_head * p[at.V_HEAD])
    scale, dim = floats(p[at.SCALARS])[at.Q_SCALE], p[at.VALUE_DIM]
    gather(p, w, p[at.Q_BUFFER], p[at.Q], p[at.Q_BATCH], p[at.Q_HEAD], p[at.Q_ROW], p[at.DIM], scale)
    column = 0
    while next_chunk(p, w):
        if not w[at.DIRECT]:
            pack(p, w, p[at.K_BUFFER], k, p[at.K_ROW], p[at.DIM])
            pack(p, w, p[at.V_BUFFER], v, p[at.V_ROW], dim)
        score_chunk(p, w, k, column, 0)
        soften(p, w, column == 0)
        beta = at.ZERO if column == 0 else at.ONE
        mix(p, w, p[at.O_BUFFER], p[at.S_BUFFER], v, p[at.V_ROW], p[at.V_BUFFER], dim, at.ONE, beta)
        column += w[at.COLUMNS]
    close_item(p, w, column == 0)


def forward(params: int, scratch: int) -> None:
    """Take work items until none is left."""
    p = private(params, scratch)
    w = integers(p[at.DESK])
    item = fetch_add(p[at.COUNTER])
    while item < p[at.COUNT]:
        forward_item(p, w, p[at.COUNT] - 1 - item)  # a causal mask's largest items are a head's last
        item = fetch_add(p[at.COUNTER])
