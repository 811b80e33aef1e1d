"""Lengths of documents for benchmarks: one fixed list, and a rule to draw others.

The rule is that of arXiv:2510.17896, section 3.1. Its histograms of real corpora are not part of this
package; :data:`DOCUMENT_HISTOGRAM` is a log-normal law of our own, of similar documents.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import pairwise

from gatework.checks import check_int, check_positive

#: Share of documents with ``first ... last`` tokens, both included.
Bin = tuple[int, int, float]

#: Ten documents of 4096 tokens in all, drawn by the rule from the lengths of a web corpus. Every benchmark of
#: document masks at 4096 tokens has them, so that runs compare.
DOCUMENT_LENGTHS = (68, 159, 638, 397, 33, 1539, 192, 465, 526, 79)


def log_normal_histogram(median: float, spread: float, *, longest: int = 1 << 15) -> tuple[Bin, ...]:
    """Sort a log-normal law of lengths into bins that double every second time, from 1 to ``longest``.

    The share of ``first ... last`` is ``F(last + 1) - F(first)``, where ``F(x)`` is the normal distribution
    function of ``log(x / median) / spread``; what lies outside is left out.

    Args:
        median: Tokens of the middle document.
        spread: Standard deviation of the logarithm of the length.
        longest: Most tokens of a document.

    Raises:
        TypeError: If a number is none, or ``longest`` not an integer.
        ValueError: If a number is not positive.
    """
    check_positive(median=median, spread=spread)
    check_int("longest", longest, at_least=1)
    bounds = sorted({round(2 ** (step / 2)) for step in range(2 * math.ceil(math.log2(longest)))})
    ends = [*(bound for bound in bounds if bound <= longest), longest + 1]

    def share(length: int) -> float:
        return 0.5 * (1 + math.erf(math.log(length / median) / spread / math.sqrt(2)))

    return tuple((start, stop - 1, share(stop) - share(start)) for start, stop in pairwise(ends))


#: Short documents and few long ones: half have fewer than 290 tokens, one in twenty more than 2200.
DOCUMENT_HISTOGRAM = log_normal_histogram(290, 1.25)


def sample_document_lengths(
    total: int, histogram: Iterable[Bin] = DOCUMENT_HISTOGRAM, seed: int | random.Random = 0
) -> tuple[int, ...]:
    """Draw lengths of documents until they are ``total`` tokens together; the last one is cut.

    A bin is chosen by its share, then a length in it, all equally likely.

    Args:
        total: Tokens of all documents.
        histogram: Bins ``(first, last, share)``; shares need not add up to 1.
        seed: What the random numbers begin with, or a generator to go on with.

    Returns:
        The lengths, each at least 1.

    Raises:
        ValueError: If ``total`` is negative, a bin is empty or below 1, or no share is positive.
    """
    check_int("total", total, at_least=0)
    histogram = tuple(histogram)
    bins, shares = [(first, last) for first, last, _ in histogram], [share for *_, share in histogram]
    if any(not 1 <= first <= last for first, last in bins):
        raise ValueError(f"histogram must have bins of 1 <= first <= last tokens, got {bins!r:.200}")
    if not shares or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise ValueError(f"histogram must have shares of at least 0, not all 0, got {shares!r:.200}")
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    lengths: list[int] = []
    left = total
    while left:
        (bounds,) = rng.choices(bins, shares)
        lengths.append(min(rng.randint(*bounds), left))
        left -= lengths[-1]
    return tuple(lengths)
