"""The kernels of FlashSigmoid: outputs, gradients of the queries, gradients of keys and values.

All three go through tiles of pairs, ``ROWS`` queries by ``COLUMNS`` keys, and compute the weights of a
tile from its scores alone (arXiv:2409.04431, appendix F): sigmoids need no maximum and no sum of a row, so
nothing is kept for the backward pass, and nothing is rescaled. Which tiles there are the lists say, see
:mod:`gatework.ops.sigmoid_attention.flash.blocks`.

Queries and keys that a tile has beyond the ends of the sequences are read as zeros: whatever weight such a
pair gets, it is multiplied by a value, or by a gradient of an output, which is zero, or never written.

The arguments are named tuples of :mod:`gatework.ops.sigmoid_attention.flash.launch`; parts of them that are
``None`` are left out when a kernel is compiled.
"""

from __future__ import annotations

from typing import Any, no_type_check

try:
    import triton.language as tl
    from triton import jit
except ImportError:  # there is no Triton for macOS and Windows, where this module still can be imported

    def jit(kernel: Any) -> Any:
        """Leave a kernel that cannot be compiled here as it is."""
        return kernel


@jit
@no_type_check
def forward(
    q,
    k,
    v,
    out,
    scores,
    lists,
    sizes,
    HEAD_DIM: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the outputs of one block of queries: ``out = sigmoid(scores) v``."""
    block, head, batch = _place(sizes.q_length, sizes.heads, ROWS)
    kv_head = head // sizes.groups
    first_row = block * ROWS
    inside = _inside(first_row, sizes.q_length, ROWS)
    queries = _read(_at(q, batch, head, first_row), q.strides, inside, ROWS, HEAD_DIM, HEAD_WIDTH)
    keys, values = _at(k, batch, kv_head, 0), _at(v, batch, kv_head, 0)
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    row_bias, slope = _of_rows(scores, batch, head, first_row, rows, sizes.q_length)
    y = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    start, partial, stop = _range(lists, batch, head, block, sizes.q_length, sizes.kv_length, ROWS, COLUMNS)
    for masked in tl.static_range(1 if lists is None else 2):
        for at in range(partial if masked else start, stop if masked else partial):
            first = (at if lists is None else tl.load(lists.block + at)) * COLUMNS
            there = _inside(first, sizes.kv_length, COLUMNS)
            some = _read(_row(keys, k, first), k.strides, there, COLUMNS, HEAD_DIM, HEAD_WIDTH)
            products = _product(queries, tl.trans(some), None, PRECISION)
            score = _score(
                products, scores, row_bias, slope, batch, head, first_row, rows, first, columns, sizes
            )
            p, _ = _sigmoid(score)
            if masked:
                p = tl.where(_allowed(lists, at, rows, columns, ROWS), p, 0.0)
            some = _read(_row(values, v, first), v.strides, there, COLUMNS, VALUE_DIM, VALUE_WIDTH)
            y = _product(p.to(some.dtype), some, y, PRECISION)
    _write(_at(out, batch, head, first_row), out.strides, y, inside, ROWS, VALUE_DIM, VALUE_WIDTH)


@jit
@no_type_check
def backward_queries(
    q,
    k,
    v,
    grad,
    grad_q,
    grad_rows,
    scores,
    lists,
    sizes,
    HEAD_DIM: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of one block of queries, and, if ``grad_rows`` is there, of what they all add."""
    block, head, batch = _place(sizes.q_length, sizes.heads, ROWS)
    kv_head = head // sizes.groups
    first_row = block * ROWS
    inside = _inside(first_row, sizes.q_length, ROWS)
    queries = _read(_at(q, batch, head, first_row), q.strides, inside, ROWS, HEAD_DIM, HEAD_WIDTH)
    grads = _read(_at(grad, batch, head, first_row), grad.strides, inside, ROWS, VALUE_DIM, VALUE_WIDTH)
    keys, values = _at(k, batch, kv_head, 0), _at(v, batch, kv_head, 0)
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    row_bias, slope = _of_rows(scores, batch, head, first_row, rows, sizes.q_length)
    dq = tl.zeros((ROWS, HEAD_WIDTH), tl.float32)
    d_rows = tl.zeros((ROWS,), tl.float32)
    start, partial, stop = _range(lists, batch, head, block, sizes.q_length, sizes.kv_length, ROWS, COLUMNS)
    for masked in tl.static_range(1 if lists is None else 2):
        for at in range(partial if masked else start, stop if masked else partial):
            first = (at if lists is None else tl.load(lists.block + at)) * COLUMNS
            there = _inside(first, sizes.kv_length, COLUMNS)
            some = _read(_row(keys, k, first), k.strides, there, COLUMNS, HEAD_DIM, HEAD_WIDTH)
            products = _product(queries, tl.trans(some), None, PRECISION)
            score = _score(
                products, scores, row_bias, slope, batch, head, first_row, rows, first, columns, sizes
            )
            _, ds = _sigmoid(score)
            value = _read(_row(values, v, first), v.strides, there, COLUMNS, VALUE_DIM, VALUE_WIDTH)
            ds *= _product(grads, tl.trans(value), None, PRECISION)
            if masked:
                ds = tl.where(_allowed(lists, at, rows, columns, ROWS), ds, 0.0)
            if grad_rows is not None:
                d_rows += tl.sum(ds, 1)
            dq = _product(ds.to(some.dtype), some, dq, PRECISION)
    dq *= scores.scale
    _write(_at(grad_q, batch, head, first_row), grad_q.strides, dq, inside, ROWS, HEAD_DIM, HEAD_WIDTH)
    if grad_rows is not None:
        at = (batch * sizes.heads + head) * sizes.q_length + first_row + tl.arange(0, ROWS)
        tl.store(grad_rows + at, d_rows, mask=inside)


@jit
@no_type_check
def backward_keys(
    q,
    k,
    v,
    grad,
    grad_k,
    grad_v,
    scores,
    lists,
    sizes,
    HEAD_DIM: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute the gradients of one block of keys and values, from all heads of queries that they serve.

    Tiles lie on their side here: keys downward, queries to the right.
    """
    block, kv_head, batch = _place(sizes.kv_length, sizes.heads // sizes.groups, COLUMNS)
    first = block * COLUMNS
    inside = _inside(first, sizes.kv_length, COLUMNS)
    some = _read(_at(k, batch, kv_head, first), k.strides, inside, COLUMNS, HEAD_DIM, HEAD_WIDTH)
    values = _read(_at(v, batch, kv_head, first), v.strides, inside, COLUMNS, VALUE_DIM, VALUE_WIDTH)
    rows = tl.arange(0, ROWS)[None, :]
    columns = tl.arange(0, COLUMNS)[:, None]
    dk = tl.zeros((COLUMNS, HEAD_WIDTH), tl.float32)
    dv = tl.zeros((COLUMNS, VALUE_WIDTH), tl.float32)
    for head in range(kv_head * sizes.groups, (kv_head + 1) * sizes.groups):
        queries, grads = _at(q, batch, head, 0), _at(grad, batch, head, 0)
        start, partial, stop = _range(
            lists, batch, head, block, sizes.kv_length, sizes.q_length, COLUMNS, ROWS
        )
        for masked in tl.static_range(1 if lists is None else 2):
            for at in range(partial if masked else start, stop if masked else partial):
                first_row = (at if lists is None else tl.load(lists.block + at)) * ROWS
                there = _inside(first_row, sizes.q_length, ROWS)
                row_bias, slope = _of_rows(scores, batch, head, first_row, rows, sizes.q_length)
                query = _read(_row(queries, q, first_row), q.strides, there, ROWS, HEAD_DIM, HEAD_WIDTH)
                products = _product(some, tl.trans(query), None, PRECISION)
                score = _score(
                    products, scores, row_bias, slope, batch, head, first_row, rows, first, columns, sizes
                )
                p, ds = _sigmoid(score)
                if masked:
                    allowed = _allowed(lists, at, rows, columns, ROWS)
                    p = tl.where(allowed, p, 0.0)
                    ds = tl.where(allowed, ds, 0.0)
                g = _read(_row(grads, grad, first_row), grad.strides, there, ROWS, VALUE_DIM, VALUE_WIDTH)
                dv = _product(p.to(g.dtype), g, dv, PRECISION)
                ds *= _product(values, tl.trans(g), None, PRECISION)
                dk = _product(ds.to(query.dtype), query, dk, PRECISION)
    dk *= scores.scale
    _write(_at(grad_k, batch, kv_head, first), grad_k.strides, dk, inside, COLUMNS, HEAD_DIM, HEAD_WIDTH)
    _write(_at(grad_v, batch, kv_head, first), grad_v.strides, dv, inside, COLUMNS, VALUE_DIM, VALUE_WIDTH)


# --- weights ---


@jit
@no_type_check
def _of_rows(scores, batch, head, first_row, rows, q_length):
    """Read what all scores of a query have added, and the slope of its head, both times log2(e)."""
    log2e = 1.4426950408889634
    strides = scores.row_bias.strides
    place = batch * strides[0] + head * strides[1] + (first_row + rows).to(tl.int64) * strides[2]
    row_bias = tl.load(scores.row_bias.data + place, mask=first_row + rows < q_length, other=0.0) * log2e
    slope = 0.0
    if scores.slopes is not None:
        strides = scores.slopes.strides
        slope = tl.load(scores.slopes.data + batch * strides[0] + head * strides[1]) * log2e
    return row_bias, slope


@jit
@no_type_check
def _score(products, scores, row_bias, slope, batch, head, first_row, rows, first, columns, sizes):
    """Scores of a tile, times log2(e); ``rows`` and ``columns`` count from 0, along one axis each."""
    score = products * scores.scale_log2 + row_bias
    if scores.pair_bias is not None:
        strides = scores.pair_bias.strides
        i, j = first_row + rows, first + columns
        start = scores.pair_bias.data + batch * strides[0] + head * strides[1]
        inside = (i < sizes.q_length) & (j < sizes.kv_length)
        bias = tl.load(start + i.to(tl.int64) * strides[2] + j * strides[3], mask=inside, other=0.0)
        score += bias.to(tl.float32) * 1.4426950408889634
    if scores.slopes is not None:
        # Positions are subtracted as integers: near keys of a long sequence are at their exact distance.
        position = (rows + (first_row - first + scores.query_offset)).to(tl.float32)
        score -= slope * tl.abs(position - columns.to(tl.float32))
    return score


@jit
@no_type_check
def _sigmoid(score):
    """Sigmoid and its derivative, accurate at both ends; ``score`` is times log2(e)."""
    t = tl.exp2(-tl.abs(score))
    large = 1.0 / (1.0 + t)
    small = t * large
    return tl.where(score >= 0, large, small), small * large


@jit
@no_type_check
def _product(left, right, total, PRECISION: tl.constexpr):
    """The matrix product of two blocks, in float32, added to ``total`` if that is there."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    return tl.dot(left, right, total, input_precision=PRECISION)


# --- lists ---


@jit
@no_type_check
def _range(lists, batch, head, block, length, other_length, SIZE: tl.constexpr, OTHER_SIZE: tl.constexpr):
    """Where the list of a block begins, where in it tiles begin to have masks, and where it ends."""
    if lists is None:
        start = 0
        partial = tl.cdiv(other_length, OTHER_SIZE)
        stop = partial
    else:
        strides = lists.pattern_of.strides
        pattern = tl.load(lists.pattern_of.data + batch * strides[0] + head * strides[1])
        row = pattern * tl.cdiv(length, SIZE) + block
        start = tl.load(lists.start + row)
        partial = tl.load(lists.partial + row)
        stop = tl.load(lists.start + row + 1)
    return start, partial, stop


@jit
@no_type_check
def _allowed(lists, at, rows, columns, ROWS: tl.constexpr):
    """Which pairs of a tile the mask allows: bit ``j`` of the words of a query is key ``j`` of the tile."""
    words = lists.masks + (tl.load(lists.mask + at).to(tl.int64) * ROWS + rows) * 2
    word = tl.where(columns < 32, tl.load(words), tl.load(words + 1))
    return (word >> (columns & 31)) & 1 != 0


# --- memory ---


@jit
@no_type_check
def _place(length, heads, SIZE: tl.constexpr):
    """Which block, head and sequence this program computes."""
    blocks = tl.cdiv(length, SIZE)
    place = tl.program_id(0)
    return place % blocks, place // blocks % heads, (place // (blocks * heads)).to(tl.int64)


@jit
@no_type_check
def _at(tensor, batch, head, row):
    """Where a row of a sequence and a head begins; offsets may be beyond 32 bits."""
    head, row = tl.cast(head, tl.int64), tl.cast(row, tl.int64)
    return tensor.data + batch * tensor.strides[0] + head * tensor.strides[1] + row * tensor.strides[2]


@jit
@no_type_check
def _row(start, tensor, row):
    """Where a row begins, in the sequence and the head that begin at ``start``."""
    return start + tl.cast(row, tl.int64) * tensor.strides[2]


@jit
@no_type_check
def _inside(first, length, SIZE: tl.constexpr):
    """Which rows of a block are in the sequence."""
    return first + tl.arange(0, SIZE) < length


@jit
@no_type_check
def _read(start, strides, inside, SIZE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Read a block of rows, with zeros beyond the sequence and beyond the channels."""
    channels = tl.arange(0, WIDTH)
    places = tl.arange(0, SIZE)[:, None] * strides[2] + channels[None, :]
    if DIM == WIDTH:
        return tl.load(start + places, mask=inside[:, None], other=0.0)
    return tl.load(start + places, mask=inside[:, None] & (channels < DIM)[None, :], other=0.0)


@jit
@no_type_check
def _write(start, strides, value, inside, SIZE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write a block of rows, but for what is beyond the sequence or the channels."""
    channels = tl.arange(0, WIDTH)
    places = tl.arange(0, SIZE)[:, None] * strides[2] + channels[None, :]
    value = value.to(start.dtype.element_ty)
    tl.store(start + places, value, mask=inside[:, None] & (channels < DIM)[None, :])
