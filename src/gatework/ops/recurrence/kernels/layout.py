"""Where a kernel finds what: fields of the block of 64-bit integers that describes a call."""

from __future__ import annotations

#: Channels that walk through the sequence together: two vectors of AVX-512, four of AVX.
WIDTH = 32

#: The next work item, how many there are, and the sizes.
COUNTER, COUNT, LENGTH, CHANNELS, STATES, CHUNK, BLOCKS = range(7)
#: Addresses of the inputs of the selective scan, then of what the forward pass makes.
X, DT, RATES, B, C, START, Y, LAST, KEPT = range(7, 16)
#: Addresses of the backward pass: gradients that come in, then those that go out.
Y_GRAD, LAST_GRAD, X_GRAD, DT_GRAD, RATES_GRAD, B_GRAD, C_GRAD, START_GRAD = range(16, 24)
#: Addresses of WKV, which shares those of states and outputs.
K, V, DECAY, BONUS, K_GRAD, V_GRAD, DECAY_GRAD, BONUS_GRAD = range(24, 32)
END = 32
