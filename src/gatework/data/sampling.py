"""Random draws of the recall tasks: as numpy's legacy generator makes them, and vectorised.

Both kinds follow the same laws. The ``choice_rows`` kind reproduces the numbers of data made by the
authors of the tasks; the others give other numbers, many times faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from gatework.checks import check_number


def slot_probabilities(num_slots: int, power_a: float) -> Float64[np.ndarray, " slots"]:
    """Return the power law of the gap before a query: ``p[j] ~ power_a * (j + 1) ** (power_a - 1)``.

    Args:
        num_slots: Number of places a query can take.
        power_a: 1 is the uniform law; towards 0, ``p[j]`` tends to ``1 / (j + 1)``.

    Raises:
        TypeError: If ``power_a`` is not a number.
        ValueError: If ``power_a`` gives some slot no finite positive probability.
    """
    check_number("power_a", power_a)
    with np.errstate(all="ignore"):
        weights = power_a * np.arange(1, num_slots + 1) ** (float(power_a) - 1)
        p: np.ndarray = weights / weights.sum()
    if not (math.isfinite(power_a) and np.all(np.isfinite(p)) and np.all(p > 0)):
        raise ValueError(
            f"power_a must give all {num_slots} slots a positive probability (1 is uniform), got {power_a}"
        )
    return p


def choice_rows(
    rng: np.random.RandomState,
    pool: int | Int64[np.ndarray, " pool"],
    rows: int,
    size: int,
    p: Float64[np.ndarray, " pool"] | None = None,
) -> Int64[np.ndarray, "rows size"]:
    """Draw without replacement, row by row, with the numbers of numpy's legacy stream."""
    drawn = np.empty((rows, size), dtype=np.int64)
    for row in drawn:
        row[:] = rng.choice(pool, size, replace=False, p=p)
    return drawn


def integers_below(
    rng: np.random.Generator, bound: int, rows: int, size: int
) -> Integer[np.ndarray, "rows size"]:
    """Draw numbers ``0 .. bound - 1``, equally likely, several times as fast as numpy does.

    A random word gives four numbers below ``2**16``. The largest multiple of ``bound`` of them is shared
    out evenly, and those beyond it are drawn again.
    """
    if bound > 2**16:
        return rng.integers(bound, size=(rows, size))
    words = rng.integers(2**64, size=rows * size // 4 + 1, dtype=np.uint64).view(np.uint16)
    drawn = words[: rows * size] // np.uint16(min(2**16 // bound, 2**16 - 1))
    beyond = np.flatnonzero(drawn >= bound)
    drawn[beyond] = rng.integers(bound, size=beyond.size)
    return drawn.reshape(rows, size)


def distinct_rows(
    rng: np.random.Generator, pools: Sequence[tuple[int, int]], rows: int, size: int
) -> list[Int64[np.ndarray, "rows size"]]:
    """Draw ``size`` different numbers per row and pool, every ordered choice equally likely.

    Numbers are drawn independently, and those that repeat another of their row are drawn again until
    none does. No step prefers one number to another, so relabelling a pool leaves the law as it is;
    and some relabelling takes any ordered choice to any other.

    Args:
        rng: Source of randomness.
        pools: Smallest number and one above the largest of each pool, of at least ``size`` numbers.
        rows: Number of independent choices.
        size: Numbers per choice, at least 1.

    Returns:
        The numbers from each pool.
    """
    bounds = [high - low for low, high in pools]
    assert 1 <= size <= min(bounds), (pools, size)
    drawn = np.concatenate([integers_below(rng, bound, rows, size) for bound in bounds])
    row, place = _repetitions(drawn, max(bounds))
    bound = np.repeat(bounds, rows)
    while row.size:
        again = rng.integers(bound[row]).astype(drawn.dtype)
        drawn[row, place] = again
        clash = np.count_nonzero(drawn[row] == again[:, None], axis=1) > 1
        row, place = row[clash], place[clash]
    split = drawn.reshape(len(pools), rows, size)
    return [np.add(part, low, dtype=np.int64) for part, (low, _) in zip(split, pools, strict=True)]


def _repetitions(
    drawn: Integer[np.ndarray, "rows size"], bound: int
) -> tuple[Int64[np.ndarray, " found"], Integer[np.ndarray, " found"]]:
    """Return row and place of every number that repeats one of its row; one of several is left out."""
    size = drawn.shape[1]
    bits = (size - 1).bit_length()
    # 32-bit numbers sort twice as fast, wherever number and place fit into one.
    dtype = np.int32 if bound << bits < 2**31 else np.int64
    tagged: Integer[np.ndarray, "rows size"] = drawn.astype(dtype)
    tagged <<= bits
    tagged |= np.arange(size, dtype=dtype)
    tagged.sort(axis=1)
    # Neighbours that differ in their places only.
    row, column = np.divmod(np.flatnonzero((tagged[:, 1:] ^ tagged[:, :-1]) < 1 << bits), max(size - 1, 1))
    return row, tagged[row, column + 1] & ((1 << bits) - 1)


def successive_rows(
    rng: np.random.Generator, p: Float64[np.ndarray, " slots"], rows: int, size: int
) -> Int64[np.ndarray, "rows size"]:
    """Draw ``size`` slots per row one after another, each in proportion to ``p`` among those still free.

    Slot ``j`` is given an exponential arrival time of rate ``p[j]``. The first arrival is ``j`` with
    probability ``p[j]``, and having no memory the rest race on from there, so the order of arrival is
    exactly the order of successive draws without replacement (Yellott 1977; the Gumbel top-k law).
    """
    arrival = rng.standard_exponential((rows, len(p)))
    arrival /= p
    # Positive floats sort like the integers of their bits. Put in place of the lowest bits, on which only
    # times that agree to ten digits depend, the slot comes out of a plain sort, which is faster than argsort.
    bits = max(len(p) - 1, 0).bit_length()
    tagged = arrival.view(np.int64)
    tagged &= -1 << bits
    tagged |= np.arange(len(p))
    tagged.sort(axis=1)
    return tagged[:, :size] & ((1 << bits) - 1)


def filler_tokens(
    vocab_size: int, rows: int, length: int, seed: int, filler: torch.Generator | None
) -> Int64[Tensor, "rows length"]:
    """Draw the tokens that fill the places a task leaves empty, all of the vocabulary equally likely.

    Args:
        vocab_size: Number of tokens.
        rows: Number of examples.
        length: Tokens per example.
        seed: Seed of the segment; without ``filler``, the tokens follow from it.
        filler: Generator to draw from instead. ``torch.Generator().manual_seed(s)`` gives the tokens that
            the authors' code gives after ``torch.manual_seed(s)``.
    """
    if filler is None:
        # Torch and numpy start the same Mersenne twister from the same seed: seeded alike, the filler
        # would repeat the bits that chose the keys. A hash of the seed keeps the two apart.
        hashed = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0]
        filler = torch.Generator().manual_seed(int(hashed >> np.uint64(1)))
    return torch.randint(vocab_size, (rows, length), generator=filler)
