"""The scores of a chunk: scaled products, soft cap, bias, ALiBi, mask; in base 2.

``log2(e)`` is multiplied into the queries, or into the cap, so that the softmax can use powers of two.
"""

from __future__ import annotations

from typing import Any

import numba

from gatework.ops.attention.kernels import layout as at
from gatework.ops.attention.kernels.chunks import matmul_qk
from gatework.ops.cpu.machine import exp2, floats, indices, integers, jit, octets


@jit
def apply_softcap(p: Any, w: Any, keep: int) -> None:
    """``tanh`` of the scores, times the cap; ``tanh`` itself is kept at the address ``keep``, if not 0."""
    cap = floats(p[at.SCALARS])[at.CAP]
    # Cephes, tanhf: a polynomial near 0, where the other form loses digits.
    for r in range(w[at.ROWS]):
        score = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r)
        for c in range(w[at.COLUMNS]):
            x = score[c]
            size = abs(x)
            # exp2(29) is far beyond where tanh rounds to 1, and NaN stays NaN.
            power = exp2(numba.float32(29.0) if size > numba.float32(10.0) else at.TWO * at.LOG2E * size)
            far = at.ONE - at.TWO / (power + at.ONE)
            z = x * x
            near = numba.float32(-5.70498872745e-3) * z + numba.float32(2.06390887954e-2)
            near = (near * z - numba.float32(5.37397155531e-2)) * z + numba.float32(1.33314422036e-1)
            near = (near * z - numba.float32(3.33332819422e-1)) * z * x + x
            score[c] = near if size < numba.float32(0.625) else (far if x > 0 else -far)
        if keep:
            kept = floats(keep + 4 * w[at.STEP] * r)
            for c in range(w[at.COLUMNS]):
                kept[c] = score[c]
        for c in range(w[at.COLUMNS]):
            score[c] *= cap


@jit
def add_bias(p: Any, w: Any) -> None:
    """Add the bias and what ALiBi takes off for distance."""
    segments, keys, positions = (
        integers(p[at.SEGMENTS]),
        indices(p[at.KEYS]),
        floats(p[at.KEYS] + 4 * p[at.MAX_COLUMNS]),
    )
    c = 0
    for segment in range(w[at.NUM_SEGMENTS]):
        for i in range(segments[at.SEGMENT * segment + at.LENGTH]):
            keys[c] = segments[at.SEGMENT * segment + at.START] + i
            positions[c] = keys[c]
            c += 1
    query = indices(p[at.QUERY] + 4 * (indices(p[at.TILE_QUERY])[w[at.TILE]] + w[at.FIRST]))
    for r in range(w[at.ROWS]):
        head, i = w[at.HEAD] + r // w[at.NUM_QUERIES], query[r % w[at.NUM_QUERIES]]
        score = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r)
        if p[at.BIAS]:
            start = w[at.SEQUENCE] * p[at.BIAS_BATCH] + head * p[at.BIAS_HEAD] + i * p[at.BIAS_ROW]
            bias = floats(p[at.BIAS] + 4 * start)
            for c in range(w[at.COLUMNS]):
                moved = score[c] + bias[keys[c]] * at.LOG2E
                score[c] = at.MASKED if moved < at.MASKED else moved
        if p[at.SLOPES]:
            slope = floats(p[at.SLOPES])[w[at.SEQUENCE] * p[at.HEADS] + head] * at.LOG2E
            here = numba.float32(i + p[at.OFFSET])
            for c in range(w[at.COLUMNS]):
                score[c] -= slope * abs(here - positions[c])


@jit
def apply_mask(p: Any, w: Any, column: int) -> None:
    """Mask the columns of a chunk that begins at a column of the tile."""
    last = indices(p[at.TILE_PIECE])[w[at.TILE] + 1]
    starts, widths, masks = (
        indices(p[at.PIECE_COLUMN]),
        indices(p[at.PIECE_WIDTH]),
        integers(p[at.PIECE_MASK]),
    )
    end = column + w[at.COLUMNS]
    while w[at.PIECE] < last and starts[w[at.PIECE]] < end:
        piece = w[at.PIECE]
        start, width = starts[piece], widths[piece]
        first, stop = max(start, column), min(start + width, end)
        for r in range(w[at.ROWS]):
            score = floats(p[at.S_BUFFER] + 4 * (w[at.STEP] * r + first - column))
            row = masks[piece] + (w[at.FIRST] + r % w[at.NUM_QUERIES]) * width + first - start
            allowed = octets(p[at.POOL] + row)
            for c in range(stop - first):
                score[c] = score[c] if allowed[c] != 0 else at.MASKED
        if start + width > end:
            break  # the rest belongs to the next chunk
        w[at.PIECE] += 1


@jit
def score_chunk(p: Any, w: Any, k: int, column: int, keep: int) -> None:
    """Fill the score buffer: scaled products, cap, bias, ALiBi, mask."""
    matmul_qk(p, w, p[at.S_BUFFER], p[at.Q_BUFFER], p[at.DIM], k, p[at.K_ROW], p[at.K_BUFFER])
    if floats(p[at.SCALARS])[at.CAP] != 0:
        apply_softcap(p, w, keep)
    if p[at.BIAS] or p[at.SLOPES]:
        add_bias(p, w)
    apply_mask(p, w, column)
    for r in range(w[at.ROWS]):  # loops over rows are whole numbers of vectors, and add nothing there
        score = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r)
        for c in range(w[at.COLUMNS], w[at.PADDED]):
            score[c] = at.MASKED
