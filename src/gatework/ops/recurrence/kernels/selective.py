"""The selective scan, forward and backward: ``h <- exp(dt A) h + dt x B``, ``y = C . h``.

The states of a group of channels are kept as one row of channels per state, in the nearest cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gatework.ops.cpu.machine import exp2, fetch_add, floats, integers, jit
from gatework.ops.recurrence.kernels import layout as at
from gatework.ops.recurrence.kernels.rows import WIDTH, load, store

ZERO = np.float32(0)
LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
#: Rows of a group, one number per channel: of the token, then of each state. They lie at fixed distances, so
#: that the compiler can tell that they do not overlap.
DT, DX, X, Y, DX_GRAD, DT_GRAD, TOKEN_ROWS = range(0, 7 * WIDTH, WIDTH)
H, RATE, G, RATE_GRAD, STATE_ROWS = range(0, 5 * WIDTH, WIDTH)


@jit
def load_states(rows: Any, kind: int, address: int, states: int, width: int) -> None:
    """Copy ``(channels, states)`` into one row of channels per state."""
    source = floats(address)
    for w in range(width):
        for n in range(states):
            rows[n * STATE_ROWS + kind + w] = source[w * states + n]


@jit
def store_states(rows: Any, kind: int, address: int, states: int, width: int) -> None:
    """Copy rows of channels back to ``(channels, states)``."""
    target = floats(address)
    for w in range(width):
        for n in range(states):
            target[w * states + n] = rows[n * STATE_ROWS + kind + w]


@jit
def init_item(scratch: int, p: Any, first: int, width: int) -> None:
    """Clear the rows (channels that fill up the last group stay finite), load the rates in base 2."""
    s, rows = floats(scratch), floats(scratch + 4 * TOKEN_ROWS)
    for i in range(TOKEN_ROWS + p[at.STATES] * STATE_ROWS):
        s[i] = ZERO
    load_states(rows, RATE, p[at.RATES] + 4 * first * p[at.STATES], p[at.STATES], width)
    for n in range(p[at.STATES]):
        for w in range(WIDTH):
            rows[n * STATE_ROWS + RATE + w] *= LOG2E


@jit
def load_token(s: Any, p: Any, place: int, width: int) -> None:
    """Load step and input of a token, ``place`` being its first channel's."""
    load(s, DT, p[at.DT] + 4 * place, width)
    load(s, X, p[at.X] + 4 * place, width)
    for w in range(WIDTH):
        s[DX + w] = s[DT + w] * s[X + w]


@jit
def step_and_read(s: Any, base: int, b: Any, c: Any, states: int) -> None:
    """Take a group one token further, and read its outputs."""
    for w in range(WIDTH):
        s[Y + w] = ZERO
    for n in range(states):
        r, b_n, c_n = floats(base + 4 * n * STATE_ROWS), b[n], c[n]
        for w in range(WIDTH):
            value = exp2(s[DT + w] * r[RATE + w]) * r[H + w] + s[DX + w] * b_n
            r[H + w] = value
            s[Y + w] += value * c_n


@jit
def forward_item(p: Any, scratch: int, item: int) -> None:
    """Walk one group of channels through one sequence."""
    states, channels, length = p[at.STATES], p[at.CHANNELS], p[at.LENGTH]
    sequence, first = item // p[at.BLOCKS], item % p[at.BLOCKS] * WIDTH
    width = min(WIDTH, channels - first)
    s, base = floats(scratch), scratch + 4 * TOKEN_ROWS
    init_item(scratch, p, first, width)
    load_states(floats(base), H, p[at.START] + 4 * (sequence * channels + first) * states, states, width)
    chunks = (length + p[at.CHUNK] - 1) // p[at.CHUNK]
    for t in range(length):
        token = sequence * length + t
        if t % p[at.CHUNK] == 0:
            kept = (sequence * chunks + t // p[at.CHUNK]) * channels + first
            store_states(floats(base), H, p[at.KEPT] + 4 * kept * states, states, width)
        load_token(s, p, token * channels + first, width)
        b, c = floats(p[at.B] + 4 * token * states), floats(p[at.C] + 4 * token * states)
        step_and_read(s, base, b, c, states)
        store(s, Y, p[at.Y] + 4 * (token * channels + first), width)
    store_states(floats(base), H, p[at.LAST] + 4 * (sequence * channels + first) * states, states, width)


@jit
def step(s: Any, base: int, before: Any, b: Any, states: int) -> None:
    """Take a group one token further, and remember what its states were."""
    for n in range(states):
        r, b_n, row = floats(base + 4 * n * STATE_ROWS), b[n], n * WIDTH
        for w in range(WIDTH):
            h = r[H + w]
            before[row + w] = h
            r[H + w] = exp2(s[DT + w] * r[RATE + w]) * h + s[DX + w] * b_n


@jit
def step_backward(
    s: Any, base: int, before: Any, b: Any, c: Any, b_grad: Any, c_grad: Any, states: int
) -> None:
    """Take the gradient of a group's states one token back; ``s[Y]`` holds that of the outputs."""
    for w in range(WIDTH):
        s[DX_GRAD + w] = ZERO
    for w in range(WIDTH):
        s[DT_GRAD + w] = ZERO
    for n in range(states):
        r, b_n, c_n, row = floats(base + 4 * n * STATE_ROWS), b[n], c[n], n * WIDTH
        total_b, total_c = ZERO, ZERO
        for w in range(WIDTH):
            here, h = r[G + w] + s[Y + w] * c_n, before[row + w]
            decay = exp2(s[DT + w] * r[RATE + w])
            total_c += s[Y + w] * (decay * h + s[DX + w] * b_n)
            total_b += here * s[DX + w]
            carried = here * decay
            exponent = carried * h
            r[G + w] = carried
            r[RATE_GRAD + w] += exponent * s[DT + w]
            s[DX_GRAD + w] += here * b_n
            s[DT_GRAD + w] += exponent * r[RATE + w]
        b_grad[n] = total_b
        c_grad[n] = total_c


@jit
def backward_chunk(p: Any, scratch: int, item: int, chunk: int) -> None:
    """Recompute the states of a chunk from the one kept before it, and walk back through it."""
    states, channels, length = p[at.STATES], p[at.CHANNELS], p[at.LENGTH]
    sequence, first = item // p[at.BLOCKS], item % p[at.BLOCKS] * WIDTH
    width, size = min(WIDTH, channels - first), 4 * states * WIDTH
    s, base = floats(scratch), scratch + 4 * TOKEN_ROWS
    history = base + 4 * states * STATE_ROWS
    start, chunks = chunk * p[at.CHUNK], (length + p[at.CHUNK] - 1) // p[at.CHUNK]
    stop = min(start + p[at.CHUNK], length)
    kept = (sequence * chunks + chunk) * channels + first
    load_states(floats(base), H, p[at.KEPT] + 4 * kept * states, states, width)
    for t in range(start, stop):
        token = sequence * length + t
        load_token(s, p, token * channels + first, width)
        b = floats(p[at.B] + 4 * token * states)
        step(s, base, floats(history + (t - start) * size), b, states)
    for back in range(stop - start):
        t = stop - 1 - back
        token = sequence * length + t
        place = token * channels + first
        load_token(s, p, place, width)
        load(s, Y, p[at.Y_GRAD] + 4 * place, width)
        b, c = floats(p[at.B] + 4 * token * states), floats(p[at.C] + 4 * token * states)
        row = 4 * (token * p[at.BLOCKS] + item % p[at.BLOCKS]) * states
        b_grad, c_grad = floats(p[at.B_GRAD] + row), floats(p[at.C_GRAD] + row)
        step_backward(s, base, floats(history + (t - start) * size), b, c, b_grad, c_grad, states)
        for w in range(WIDTH):
            dt_grad = s[DT_GRAD + w] * LN2 + s[DX_GRAD + w] * s[X + w]
            s[DX_GRAD + w] *= s[DT + w]
            s[DT_GRAD + w] = dt_grad
        store(s, DX_GRAD, p[at.X_GRAD] + 4 * place, width)
        store(s, DT_GRAD, p[at.DT_GRAD] + 4 * place, width)


@jit
def backward_item(p: Any, scratch: int, item: int) -> None:
    """Walk one group of channels back through one sequence."""
    states, channels = p[at.STATES], p[at.CHANNELS]
    first = item % p[at.BLOCKS] * WIDTH
    width, rows = min(WIDTH, channels - first), floats(scratch + 4 * TOKEN_ROWS)
    init_item(scratch, p, first, width)
    place = 4 * (item // p[at.BLOCKS] * channels + first) * states
    load_states(rows, G, p[at.LAST_GRAD] + place, states, width)
    chunks = (p[at.LENGTH] + p[at.CHUNK] - 1) // p[at.CHUNK]
    for back in range(chunks):
        backward_chunk(p, scratch, item, chunks - 1 - back)
    store_states(rows, G, p[at.START_GRAD] + place, states, width)
    store_states(rows, RATE_GRAD, p[at.RATES_GRAD] + place, states, width)


def forward(params: int, scratch: int) -> None:
    """Take groups of channels until none is left."""
    p = integers(params)
    item = fetch_add(params + 8 * at.COUNTER)
    while item < p[at.COUNT]:
        forward_item(p, scratch, item)
        item = fetch_add(params + 8 * at.COUNTER)


def backward(params: int, scratch: int) -> None:
    """Take groups of channels until none is left."""
    p = integers(params)
    item = fetch_add(params + 8 * at.COUNTER)
    while item < p[at.COUNT]:
        backward_item(p, scratch, item)
        item = fetch_add(params + 8 * at.COUNTER)
