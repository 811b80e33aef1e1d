"""WKV of RWKV-4, forward and backward: sums of values and of weights, as multiples of a power of two.

Exponents are in base 2 within this file. A state is a triple: numerator and denominator, both to be
multiplied by ``2 ** exponent``; so is its gradient. Slow decay multiplies the two rather than being added to
the exponent, where it would be rounded the same way at every token; they are doubled when they get small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gatework.ops.cpu.machine import exp2, fetch_add, floats, integers, jit
from gatework.ops.recurrence.kernels import layout as at
from gatework.ops.recurrence.kernels.rows import WIDTH, load, store

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
LOG2E, LARGEST = np.float32(1.4426950408889634), np.float32(64)
#: Rows of scratch memory, one number per channel.
(
    P, Q, E, DECAY, DECAY_STEP, DECAY_FACTOR, BONUS, K, V, Y,
    Y_GRAD, P_GRAD, Q_GRAD, E_GRAD, DECAY_GRAD, BONUS_GRAD, K_GRAD, V_GRAD, NUM_ROWS,
) = range(0, 19 * WIDTH, WIDTH)  # fmt: skip
#: Numbers of a state.
TRIPLE = 3 * WIDTH


@jit
def scale(s: Any, row: int, factor: Any) -> None:
    """Multiply a row, which turns exponents of one base into those of another."""
    for w in range(WIDTH):
        s[row + w] *= factor


@jit
def load_triple(s: Any, row: int, p: Any, field: int, place: int, width: int) -> None:
    """Load a state, whose numbers are ``channels`` apart, with its exponent in base 2."""
    for part in range(3):
        load(s, row + part * WIDTH, p[field] + 4 * (place + part * p[at.CHANNELS]), width)
    scale(s, row + 2 * WIDTH, LOG2E)


@jit
def store_triple(s: Any, row: int, p: Any, field: int, place: int, width: int) -> None:
    """Store a state, with its exponent in base e."""
    scale(s, row + 2 * WIDTH, ONE / LOG2E)
    for part in range(3):
        store(s, row + part * WIDTH, p[field] + 4 * (place + part * p[at.CHANNELS]), width)
    scale(s, row + 2 * WIDTH, LOG2E)


@jit
def init_item(s: Any, p: Any, first: int, width: int) -> None:
    """Clear the rows (channels that fill up the last group stay finite), load decay and bonus."""
    for i in range(NUM_ROWS):
        s[i] = ZERO
    load(s, DECAY, p[at.DECAY] + 4 * first, width)
    load(s, BONUS, p[at.BONUS] + 4 * first, width)
    scale(s, DECAY, LOG2E)
    scale(s, BONUS, LOG2E)
    for w in range(WIDTH):
        slow = s[DECAY + w] > -HALF
        s[DECAY_STEP + w] = ZERO if slow else s[DECAY + w]
        s[DECAY_FACTOR + w] = exp2(s[DECAY + w]) if slow else ONE
    for w in range(width, WIDTH):
        s[Q + w] = ONE


@jit
def load_token(s: Any, p: Any, place: int, width: int) -> None:
    """Load key and value of a token, ``place`` being its first channel's."""
    load(s, K, p[at.K] + 4 * place, width)
    load(s, V, p[at.V] + 4 * place, width)
    scale(s, K, LOG2E)


@jit
def read(s: Any) -> None:
    """The mean of the values, the present one with its bonus."""
    for w in range(WIDTH):
        ahead = s[E + w] - s[BONUS + w] - s[K + w]
        lesser = exp2(-abs(ahead))
        past, now = (ONE if ahead >= ZERO else lesser), (lesser if ahead >= ZERO else ONE)
        s[Y + w] = (past * s[P + w] + now * s[V + w]) / (past * s[Q + w] + now)


@jit
def step(s: Any) -> None:
    """Let the past decay, and add the present."""
    for w in range(WIDTH):
        exponent = s[E + w] + s[DECAY_STEP + w]
        ahead = exponent - s[K + w]
        lesser = exp2(-abs(ahead))
        past, now = (ONE if ahead >= ZERO else lesser), (lesser if ahead >= ZERO else ONE)
        past *= s[DECAY_FACTOR + w]
        weight = past * s[Q + w] + now
        small = weight < HALF
        unit = TWO if small else ONE
        s[P + w] = unit * (past * s[P + w] + now * s[V + w])
        s[Q + w] = unit * weight
        s[E + w] = (exponent if ahead >= ZERO else s[K + w]) - (ONE if small else ZERO)


@jit
def forward_item(p: Any, s: Any, item: int) -> None:
    """Walk one group of channels through one sequence."""
    channels, length = p[at.CHANNELS], p[at.LENGTH]
    sequence, first = item // p[at.BLOCKS], item % p[at.BLOCKS] * WIDTH
    width = min(WIDTH, channels - first)
    init_item(s, p, first, width)
    load_triple(s, P, p, at.START, 3 * sequence * channels + first, width)
    chunks = (length + p[at.CHUNK] - 1) // p[at.CHUNK]
    for t in range(length):
        if t % p[at.CHUNK] == 0:
            chunk = sequence * chunks + t // p[at.CHUNK]
            store_triple(s, P, p, at.KEPT, 3 * chunk * channels + first, width)
        place = (sequence * length + t) * channels + first
        load_token(s, p, place, width)
        read(s)
        step(s)
        store(s, Y, p[at.Y] + 4 * place, width)
    store_triple(s, P, p, at.LAST, 3 * sequence * channels + first, width)


@jit
def step_backward(s: Any) -> None:
    """Take the gradient of a state one token back; find those of the token's key and value."""
    for w in range(WIDTH):
        limit = s[BONUS + w] + s[K + w]
        ahead = s[E + w] - limit
        lesser = exp2(-abs(ahead))
        past, now = (ONE if ahead >= ZERO else lesser), (lesser if ahead >= ZERO else ONE)
        inverse = ONE / (past * s[Q + w] + now)
        sum_grad = s[Y_GRAD + w] * inverse
        weights_grad = -sum_grad * (past * s[P + w] + now * s[V + w]) * inverse
        bonus_grad = now * (sum_grad * s[V + w] + weights_grad)
        # A token is a part of what later ones read: only rounding of huge numbers makes a share large.
        share = s[K + w] + s[E_GRAD + w]
        written = exp2(LARGEST if share > LARGEST else share)
        share = s[DECAY + w] + s[E + w] + s[E_GRAD + w]
        decayed = exp2(LARGEST if share > LARGEST else share)
        s[BONUS_GRAD + w] += bonus_grad
        s[K_GRAD + w] = bonus_grad + written * (s[P_GRAD + w] * s[V + w] + s[Q_GRAD + w])
        s[V_GRAD + w] = now * sum_grad + written * s[P_GRAD + w]
        s[DECAY_GRAD + w] += decayed * (s[P_GRAD + w] * s[P + w] + s[Q_GRAD + w] * s[Q + w])
        exponent, other = s[E_GRAD + w] + s[DECAY_STEP + w], -(s[E + w] if ahead >= ZERO else limit)
        ahead = exponent - other
        lesser = exp2(-abs(ahead))
        later, here = (ONE if ahead >= ZERO else lesser), (lesser if ahead >= ZERO else ONE)
        later *= s[DECAY_FACTOR + w]
        numerator = later * s[P_GRAD + w] + here * sum_grad
        denominator = later * s[Q_GRAD + w] + here * weights_grad
        small = abs(numerator) + abs(denominator) < HALF
        unit = TWO if small else ONE
        s[P_GRAD + w] = unit * numerator
        s[Q_GRAD + w] = unit * denominator
        s[E_GRAD + w] = (exponent if ahead >= ZERO else other) - (ONE if small else ZERO)


@jit
def backward_chunk(p: Any, s: Any, item: int, chunk: int) -> None:
    """Recompute the states of a chunk from the one kept before it, and walk back through it."""
    channels, length = p[at.CHANNELS], p[at.LENGTH]
    sequence, first = item // p[at.BLOCKS], item % p[at.BLOCKS] * WIDTH
    width, start = min(WIDTH, channels - first), chunk * p[at.CHUNK]
    stop, chunks = min(start + p[at.CHUNK], length), (length + p[at.CHUNK] - 1) // p[at.CHUNK]
    load_triple(s, P, p, at.KEPT, 3 * (sequence * chunks + chunk) * channels + first, width)
    for t in range(start, stop):
        for i in range(TRIPLE):
            s[NUM_ROWS + (t - start) * TRIPLE + i] = s[P + i]
        load_token(s, p, (sequence * length + t) * channels + first, width)
        step(s)
    for back in range(stop - start):
        t = stop - 1 - back
        for i in range(TRIPLE):
            s[P + i] = s[NUM_ROWS + (t - start) * TRIPLE + i]
        place = (sequence * length + t) * channels + first
        load_token(s, p, place, width)
        load(s, Y_GRAD, p[at.Y_GRAD] + 4 * place, width)
        step_backward(s)
        store(s, K_GRAD, p[at.K_GRAD] + 4 * place, width)
        store(s, V_GRAD, p[at.V_GRAD] + 4 * place, width)


@jit
def backward_item(p: Any, s: Any, item: int) -> None:
    """Walk one group of channels back through one sequence."""
    channels = p[at.CHANNELS]
    sequence, first = item // p[at.BLOCKS], item % p[at.BLOCKS] * WIDTH
    width = min(WIDTH, channels - first)
    init_item(s, p, first, width)
    load_triple(s, P_GRAD, p, at.LAST_GRAD, 3 * sequence * channels + first, width)
    chunks = (p[at.LENGTH] + p[at.CHUNK] - 1) // p[at.CHUNK]
    for back in range(chunks):
        backward_chunk(p, s, item, chunks - 1 - back)
    store_triple(s, P_GRAD, p, at.START_GRAD, 3 * sequence * channels + first, width)
    store(s, DECAY_GRAD, p[at.DECAY_GRAD] + 4 * (sequence * channels + first), width)
    store(s, BONUS_GRAD, p[at.BONUS_GRAD] + 4 * (sequence * channels + first), width)


def forward(params: int, scratch: int) -> None:
    """Take groups of channels until none is left."""
    p, s = integers(params), floats(scratch)
    item = fetch_add(params + 8 * at.COUNTER)
    while item < p[at.COUNT]:
        forward_item(p, s, item)
        item = fetch_add(params + 8 * at.COUNTER)


def backward(params: int, scratch: int) -> None:
    """Take groups of channels until none is left."""
    p, s = integers(params), floats(scratch)
    item = fetch_add(params + 8 * at.COUNTER)
    while item < p[at.COUNT]:
        backward_item(p, s, item)
        item = fetch_add(params + 8 * at.COUNTER)
