"""The layout of what a kernel is given: a block of 64-bit integers, and its thread's workspace.

The names number the entries. This file is all that both sides, Python and compiled code, need to agree on.
"""

from __future__ import annotations

import numpy as np

#: The block of integers that describes a call. Addresses are in bytes, strides in elements.
(
    BLAS, ITEMS, COUNT, COUNTER, SCALARS, FACTORS, MORE_FACTORS, MAX_SCORES, MAX_COLUMNS,
    DIM, VALUE_DIM, HEADS, KV_HEADS, Q_LENGTH, KV_LENGTH,
    Q, Q_BATCH, Q_HEAD, Q_ROW, K, K_BATCH, K_HEAD, K_ROW, V, V_BATCH, V_HEAD, V_ROW, OUT, LSE,
    TILE_QUERY, QUERY, TILE_RUN, RUN_START, RUN_LENGTH,
    TILE_PIECE, PIECE_COLUMN, PIECE_WIDTH, PIECE_MASK, POOL,
    BIAS, BIAS_BATCH, BIAS_HEAD, BIAS_ROW, SLOPES, OFFSET,
    SHIFT, SHIFT_BATCH, SHIFT_HEAD, SHIFT_ROW, SHIFT_GRAD,
    GRAD, GRAD_BATCH, GRAD_HEAD, GRAD_ROW, DELTA, DQ, DK, DV, PARTS, PARTS_DONE, PARTIAL_DK, PARTIAL_DV,
    WORKSPACE, SEGMENTS, KEYS, S_BUFFER, G_BUFFER, T_BUFFER, Q_BUFFER, O_BUFFER, D_BUFFER, M_BUFFER, L_BUFFER,
    K_BUFFER, V_BUFFER, DK_BUFFER, DV_BUFFER,
) = range(END := 77)  # fmt: skip

#: The numbers at address ``SCALARS``, which are kept in ``FACTORS`` and the entry after it: what queries are
#: multiplied by, the cap of the scores in base 2 (0: none), and what turns a product with the gradient of the
#: scores into the gradient of queries and of keys.
Q_SCALE, CAP, DQ_SCALE, DK_SCALE = range(4)

#: A stretch of keys of a chunk, at address ``SEGMENTS``: first key, number of keys, which rows of the item
#: need any of them.
START, LENGTH, LOW, HIGH = range(SEGMENT := 4)

#: The workspace of a thread: arguments of the matrix product (gemm), its place in a tile's keys, its item.
(
    M_ARG, N_ARG, K_ARG, A_STEP, B_STEP, C_STEP, TRANS_FLAGS, ALPHA_BETA,
    RUN, WITHIN, COLUMNS, PADDED, NUM_SEGMENTS, PIECE, DIRECT,
    SEQUENCE, HEAD, NUM_HEADS, TILE, FIRST, NUM_QUERIES, ROWS, STEP, LIMIT, DONE,
) = range(25)  # fmt: skip

#: Score of a pair that is not allowed, and where a running maximum begins: ``exp2`` of their difference is 0.
MASKED, INITIAL_MAX = np.float32(-1e30), np.float32(-1e29)
LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
#: In the precision of the scores: a plain number would turn what it meets into float64.
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
