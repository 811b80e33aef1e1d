"""Work items and the chunks of keys that they are done in: what is copied, and the matrix products.

``p`` are the integers of a call and ``w`` is the workspace of a thread, see ``layout``. Other integers of the
names of matrices are addresses, in bytes, and steps are in elements.
"""

from __future__ import annotations

from typing import Any

from gatework.ops.attention.kernels import layout as at
from gatework.ops.cpu.machine import call_blas, floats, indices, integers, jit, octets

#: Keys in runs that are shorter than this on average are copied together; longer ones are used in place.
LEAST_DIRECT = 96
#: Keys of a stretch from which masked rows are left out; items with no more queries are not worth it.
MOST_TRIMMED = 64


@jit
def gemm(
    p: Any, w: Any, ta: int, tb: int, m: int, n: int, k: int, alpha: Any,
    a: int, lda: int, b: int, ldb: int, beta: Any, c: int, ldc: int,
) -> None:  # fmt: skip
    """Column-major ``C[m, n] = alpha * op(A)[m, k] @ op(B)[k, n] + beta * C``; addresses of floats."""
    w[at.M_ARG], w[at.N_ARG], w[at.K_ARG] = m, n, k
    w[at.A_STEP], w[at.B_STEP], w[at.C_STEP] = lda, ldb, ldc
    workspace = p[at.WORKSPACE]
    factors = floats(workspace + 8 * at.ALPHA_BETA)
    factors[0] = alpha
    factors[1] = beta
    flags = workspace + 8 * at.TRANS_FLAGS
    # The integers are of 64 bits: a routine with 32-bit arguments reads their lower halves.
    call_blas(
        p[at.BLAS], flags + ta, flags + tb,
        workspace + 8 * at.M_ARG, workspace + 8 * at.N_ARG, workspace + 8 * at.K_ARG,
        workspace + 8 * at.ALPHA_BETA, a, workspace + 8 * at.A_STEP, b, workspace + 8 * at.B_STEP,
        workspace + 8 * at.ALPHA_BETA + 4, c, workspace + 8 * at.C_STEP,
    )  # fmt: skip


@jit
def thread_params(params: int, scratch: int) -> Any:
    """Copy a call's integers to the thread's scratch memory, and give its buffers their addresses."""
    shared, p = integers(params), integers(scratch)
    for field in range(at.END):
        p[field] = shared[field]
    for field in range(at.WORKSPACE, at.END):
        p[field] += scratch
    p[at.SCALARS] = scratch + 8 * at.FACTORS
    p[at.COUNTER] = params + 8 * at.COUNTER  # the one that all threads share
    flags = octets(p[at.WORKSPACE] + 8 * at.TRANS_FLAGS)
    flags[0], flags[1] = 78, 84  # "N" and "T"
    return p


@jit
def clear(target: int, count: int) -> None:
    """Fill with zeros."""
    zeros = floats(target)
    for i in range(count):
        zeros[i] = 0


@jit
def load_item(p: Any, w: Any, item: int) -> None:
    """Load a work item into the workspace: some heads of one sequence, and some queries of one tile."""
    fields = indices(p[at.ITEMS] + 24 * item)
    w[at.SEQUENCE], w[at.HEAD], w[at.NUM_HEADS], w[at.TILE] = fields[0], fields[1], fields[2], fields[3]
    w[at.FIRST] = fields[4]
    w[at.NUM_QUERIES] = fields[5] - fields[4]
    w[at.ROWS] = w[at.NUM_HEADS] * w[at.NUM_QUERIES]
    tile = w[at.TILE]
    first, last = indices(p[at.TILE_RUN])[tile], indices(p[at.TILE_RUN])[tile + 1]
    length = indices(p[at.RUN_LENGTH])
    keys = 0
    for run in range(first, last):
        keys += length[run]
    w[at.RUN], w[at.WITHIN], w[at.COLUMNS], w[at.DONE] = first, 0, 0, 0
    w[at.PIECE] = indices(p[at.TILE_PIECE])[tile]
    w[at.DIRECT] = 1 if keys >= LEAST_DIRECT * (last - first) else 0
    limit = min(p[at.MAX_COLUMNS], max(128, (p[at.MAX_SCORES] // w[at.ROWS]) // 32 * 32))
    chunks = (keys + limit - 1) // limit
    if chunks > 1 and (last - first == 1 or not w[at.DIRECT]):
        limit = (keys + chunks - 1) // chunks  # equal chunks: no short one at the end
    w[at.LIMIT] = limit
    w[at.STEP] = (min(limit, keys) + 31) // 32 * 32 + 16  # not a power of two, whose rows share cache lines


@jit
def next_chunk(p: Any, w: Any) -> int:
    """List the stretches of keys of the next chunk of columns; return how many columns, 0 at the end."""
    last = indices(p[at.TILE_RUN])[w[at.TILE] + 1]
    start, length = indices(p[at.RUN_START]), indices(p[at.RUN_LENGTH])
    w[at.DONE] += w[at.COLUMNS]
    columns = 0
    count = 0
    limit = w[at.LIMIT]
    while w[at.RUN] < last and columns < limit:
        run = w[at.RUN]
        left = length[run] - w[at.WITHIN]
        taken = min(left, limit - columns)
        if taken < left <= limit and columns > 0 and w[at.DIRECT]:
            break  # a run that fits into a chunk is not cut in two
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * count)
        segment[at.LOW], segment[at.HIGH] = 0, w[at.ROWS]
        if w[at.NUM_QUERIES] > MOST_TRIMMED and w[at.NUM_HEADS] == 1 and w[at.DIRECT]:
            taken = trim_masked_rows(p, w, segment, w[at.DONE] + columns, taken)
        segment[at.START] = start[run] + w[at.WITHIN]
        segment[at.LENGTH] = taken
        count += 1
        columns += taken
        if taken == left:
            w[at.RUN], w[at.WITHIN] = run + 1, 0
        else:
            w[at.WITHIN] += taken
    w[at.NUM_SEGMENTS], w[at.COLUMNS], w[at.PADDED] = count, columns, (columns + 31) // 32 * 32
    return columns


@jit
def trim_masked_rows(p: Any, w: Any, segment: Any, column: int, taken: Any) -> Any:
    """Cut a stretch so that few of its rows are masked throughout, and leave those out; return its length.

    Where a tile has many queries, as under a causal mask, else half of what is computed would be masked.
    """
    last = indices(p[at.TILE_PIECE])[w[at.TILE] + 1]
    starts, widths = indices(p[at.PIECE_COLUMN]), indices(p[at.PIECE_WIDTH])
    piece = w[at.PIECE]
    while piece < last and starts[piece] + widths[piece] <= column:
        piece += 1
    if piece == last or starts[piece] >= column + taken:
        return taken
    if starts[piece] > column:
        return starts[piece] - column
    within, width = column - starts[piece], widths[piece]
    taken = min(taken, width - within, MOST_TRIMMED - within % MOST_TRIMMED)
    mask = p[at.POOL] + integers(p[at.PIECE_MASK])[piece] + w[at.FIRST] * width + within
    low, high = 0, w[at.ROWS]
    while low < high and not any_allowed(mask + low * width, taken):
        low += 1
    while low < high and not any_allowed(mask + (high - 1) * width, taken):
        high -= 1
    segment[at.LOW], segment[at.HIGH] = low, high
    return taken


@jit
def any_allowed(mask: int, count: int) -> bool:
    """Whether one row of a mask allows any of some keys."""
    allowed = octets(mask)
    found = 0
    for c in range(count):
        found |= allowed[c]
    return found != 0


@jit
def gather_queries(
    p: Any, w: Any, target: int, source: int, sequence_step: int, head_step: int, row_step: int, dim: int,
    factor: Any,
) -> None:  # fmt: skip
    """Copy the rows of the item's queries, head after head, multiplied by a number."""
    n = w[at.NUM_QUERIES]
    query = indices(p[at.QUERY] + 4 * (indices(p[at.TILE_QUERY])[w[at.TILE]] + w[at.FIRST]))
    for head in range(w[at.NUM_HEADS]):
        base = source + 4 * (w[at.SEQUENCE] * sequence_step + (w[at.HEAD] + head) * head_step)
        for i in range(n):
            row, copy = floats(base + 4 * row_step * query[i]), floats(target + 4 * dim * (head * n + i))
            for d in range(dim):
                copy[d] = row[d] * factor


@jit
def scatter_queries(p: Any, w: Any, target: int, source: int, dim: int) -> None:
    """Write rows of the item's queries, head after head, to their places in a contiguous tensor."""
    n = w[at.NUM_QUERIES]
    query = indices(p[at.QUERY] + 4 * (indices(p[at.TILE_QUERY])[w[at.TILE]] + w[at.FIRST]))
    for head in range(w[at.NUM_HEADS]):
        base = (w[at.SEQUENCE] * p[at.HEADS] + w[at.HEAD] + head) * p[at.Q_LENGTH]
        for i in range(n):
            row, place = (
                floats(source + 4 * dim * (head * n + i)),
                floats(target + 4 * dim * (base + query[i])),
            )
            for d in range(dim):
                place[d] = row[d]


@jit
def gather_keys(p: Any, w: Any, target: int, source: int, row_step: int, dim: int) -> None:
    """Copy the rows of a chunk's keys, one stretch after the other."""
    for number in range(w[at.NUM_SEGMENTS]):
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * number)
        start, count = segment[at.START], segment[at.LENGTH]
        width = dim
        if row_step == dim:  # all at once: short loops are slow
            count, width = 1, count * dim
        for i in range(count):
            row, copy = floats(source + 4 * row_step * (start + i)), floats(target)
            for d in range(width):
                copy[d] = row[d]
            target += 4 * width


@jit
def scatter_add_keys(p: Any, w: Any, target: int, source: int, dim: int) -> None:
    """Add a chunk's gradients to the rows that :func:`gather_keys` copied."""
    for number in range(w[at.NUM_SEGMENTS]):
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * number)
        start, count = segment[at.START], segment[at.LENGTH]
        row, total = floats(source), floats(target + 4 * dim * start)
        for d in range(count * dim):
            total[d] += row[d]
        source += 4 * dim * count


@jit
def matmul_qk(
    p: Any, w: Any, target: int, left: int, dim: int, right: int, row_step: int, packed: int
) -> None:
    """``target[query, column] = left[query] . right[key of the column]``: ``q k^T``, or ``grad_out v^T``."""
    if not w[at.DIRECT]:
        gemm(
            p, w, 1, 0, w[at.COLUMNS], w[at.ROWS], dim, at.ONE, packed, dim, left, dim,
            at.ZERO, target, w[at.STEP],
        )  # fmt: skip
        return
    for number in range(w[at.NUM_SEGMENTS]):
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * number)
        start, count = segment[at.START], segment[at.LENGTH]
        low, high, step = segment[at.LOW], segment[at.HIGH], w[at.STEP]
        for row in range(low):
            clear(target + 4 * step * row, count)
        for row in range(high, w[at.ROWS]):
            clear(target + 4 * step * row, count)
        gemm(
            p, w, 1, 0, count, high - low, dim, at.ONE, right + 4 * row_step * start, row_step,
            left + 4 * dim * low, dim, at.ZERO, target + 4 * step * low, step,
        )  # fmt: skip
        target += 4 * count


@jit
def matmul_pv(
    p: Any, w: Any, target: int, weights: int, right: int, row_step: int, packed: int, dim: int,
    factor: Any, beta: Any,
) -> None:  # fmt: skip
    """``target[query] = beta * target[query] + factor * sum_columns weights[query, column] right[key]``.

    That is ``p v`` in the forward pass, and ``ds k``, the gradient of the queries, in the backward pass.
    """
    if not w[at.DIRECT]:
        gemm(
            p, w, 0, 0, dim, w[at.ROWS], w[at.COLUMNS], factor, packed, dim, weights, w[at.STEP],
            beta, target, dim,
        )  # fmt: skip
        return
    for number in range(w[at.NUM_SEGMENTS]):
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * number)
        start, count = segment[at.START], segment[at.LENGTH]
        low, high = segment[at.LOW], segment[at.HIGH]
        if beta == at.ZERO and high - low < w[at.ROWS]:
            clear(target, dim * w[at.ROWS])
        gemm(
            p, w, 0, 0, dim, high - low, count, factor, right + 4 * row_step * start, row_step,
            weights + 4 * w[at.STEP] * low, w[at.STEP], beta, target + 4 * dim * low, dim,
        )  # fmt: skip
        beta = at.ONE
        weights += 4 * count


@jit
def accumulate_dkdv(
    p: Any, w: Any, target: int, weights: int, left: int, dim: int, factor: Any, packed: int
) -> None:
    """``target[key] += factor * sum_queries weights[query, column] left[query]``.

    That is ``ds^T q`` for the keys, and ``p^T grad_out`` for the values.
    """
    if not w[at.DIRECT]:
        gemm(
            p, w, 0, 1, dim, w[at.COLUMNS], w[at.ROWS], factor, left, dim, weights, w[at.STEP],
            at.ZERO, packed, dim,
        )  # fmt: skip
        scatter_add_keys(p, w, target, packed, dim)
        return
    for number in range(w[at.NUM_SEGMENTS]):
        segment = integers(p[at.SEGMENTS] + 8 * at.SEGMENT * number)
        start, count = segment[at.START], segment[at.LENGTH]
        low, high = segment[at.LOW], segment[at.HIGH]
        gemm(
            p, w, 0, 1, dim, count, high - low, factor, left + 4 * dim * low, dim,
            weights + 4 * w[at.STEP] * low, w[at.STEP], at.ONE, target + 4 * dim * start, dim,
        )  # fmt: skip
        weights += 4 * count
