"""How fast bigrams are counted and AR hits found: vectorised, against the definition as a plain loop.

Tokens follow Zipf's law, as words do. Both sides are checked to agree, then take turns on the same tokens,
so that a busy machine slows both; the loop gets fewer of them. Counting is timed in full and among the
bigrams that the sliced text repeats, which is all that slicing asks for; peak memory is what numpy and Python
allocate beyond the tokens themselves. The table shows medians with the slowest and fastest turn, in millions
of tokens per second on one core, and the ratio last.

    python benchmarks/ar_slices.py [--tokens 8000000] [--turns 7] [--vocab 50257] [--length 1024] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

# Before numpy is imported: one core is what is measured.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import torch

from gatework.data.ar_slices import BigramCounts, candidate_bigrams, default_max_train_count, recalled_bigrams

# The loop is this many times slower or more, and gets as many times fewer tokens.
LOOP_SHARE = 16


def zipf_tokens(count: int, vocab: int, seed: int) -> np.ndarray:
    """Draw tokens with probability proportional to 1 / rank."""
    weights = 1 / np.arange(1, vocab + 1)
    draws = np.random.default_rng(seed).random(count)
    return np.searchsorted(np.cumsum(weights) / weights.sum(), draws).clip(max=vocab - 1).astype(np.uint16)


def with_repeats(tokens: np.ndarray, seed: int) -> np.ndarray:
    """Repeat phrases as texts repeat names: 8 of every 64 tokens are those of 32 to 512 places before."""
    repeated = tokens.copy()
    starts = np.arange(512, len(tokens) - 64, 64)
    back = np.random.default_rng(seed).integers(32, 512, len(starts))
    for offset in range(8):
        repeated[starts + offset] = tokens[starts + offset - back]
    return repeated


def loop_counts(tokens: list[int]) -> Counter[tuple[int, int]]:
    """Count bigrams as one would write it down."""
    return Counter(pairwise(tokens))


def loop_hits(
    inputs: list[list[int]], labels: list[list[int]], counts: Counter[tuple[int, int]], most: int
) -> list[list[bool]]:
    """Find AR hits as one would write it down."""
    rows = []
    for row in zip(inputs, labels, strict=True):
        seen: set[tuple[int, int]] = set()
        hits = []
        for pair in zip(*row, strict=True):
            hits.append(pair in seen and counts[pair] <= most)
            seen.add(pair)
        rows.append(hits)
    return rows


def peak_memory(work: Callable[[], Any]) -> float:
    """Measure the largest amount of memory that ``work`` holds at a time, in MiB."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def measure(tokens: int, vocab: int, length: int, turns: int) -> dict[str, Any]:
    """Time counting and slicing on both sides, taking turns, in millions of tokens per second."""
    train = zipf_tokens(tokens, vocab, 0)
    text = with_repeats(zipf_tokens(tokens // 4 + 1, vocab, 1).astype(np.int64), 2)
    rows = max(1, (len(text) - 1) // length)
    inputs, labels = (
        torch.from_numpy(text[start : start + rows * length].reshape(rows, length)) for start in (0, 1)
    )
    most = max(1, default_max_train_count(tokens))
    few = train[: tokens // LOOP_SHARE].tolist()
    some = max(1, rows // LOOP_SHARE)
    rows_in, rows_out = inputs[:some].tolist(), labels[:some].tolist()

    candidates = candidate_bigrams(inputs, labels, vocab)
    full, among = BigramCounts.count([train], vocab), BigramCounts.count([train], vocab, among=candidates)
    slow = loop_counts(train.tolist())
    hits = recalled_bigrams(inputs, labels, among, max_train_count=most)
    if not torch.equal(hits, recalled_bigrams(inputs, labels, full, max_train_count=most)):
        raise SystemExit("counts of all bigrams and of some give different hits")
    if hits[:some].tolist() != loop_hits(rows_in, rows_out, slow, most):
        raise SystemExit("AR hits differ from those of the definition")

    work: dict[str, tuple[int, Callable[[], Any]]] = {
        "count": (tokens, lambda: BigramCounts.count([train], vocab)),
        "count among": (tokens, lambda: BigramCounts.count([train], vocab, among=candidates)),
        "count, loop": (len(few), lambda: loop_counts(few)),
        "candidates": (inputs.numel(), lambda: candidate_bigrams(inputs, labels, vocab)),
        "slice": (inputs.numel(), lambda: recalled_bigrams(inputs, labels, among, max_train_count=most)),
        "slice, loop": (some * length, lambda: loop_hits(rows_in, rows_out, slow, most)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, (count, call) in work.items():
            start = time.perf_counter()
            call()
            speeds[name].append(count / (time.perf_counter() - start) / 1e6)
    return {
        "tokens": tokens,
        "sliced": inputs.numel(),
        "vocab": vocab,
        "length": length,
        "share": float(hits.double().mean()),
        "bigrams": {"all": len(full.counts), "candidates": len(candidates)},
        "speeds": {
            name: {"median": float(np.median(taken)), "slowest": min(taken), "fastest": max(taken)}
            for name, taken in speeds.items()
        },
        "peak": {name: peak_memory(call) for name, (_, call) in work.items() if "loop" not in name},
    }


def table(result: dict[str, Any]) -> str:
    """Lay the numbers out; loops are what the ratio of the lines above them is to."""
    lines = [
        f"{result['tokens']:,} training tokens and {result['sliced']:,} sliced in contexts of "
        f"{result['length']:,}, vocabulary {result['vocab']:,}: {result['bigrams']['all']:,} different "
        f"bigrams, {result['bigrams']['candidates']:,} repeated in a context; {result['share']:.1%} AR hits",
        f"{'':14}{'M tokens/s':>10}  {'(range)':>15}  {'peak MiB':>8}  {'ratio':>7}",
    ]
    for name, speed in result["speeds"].items():
        loop = result["speeds"]["count, loop" if name.startswith("count") else "slice, loop"]
        peak = result["peak"].get(name)
        lines.append(
            f"{name:14}{speed['median']:10.2f}  {speed['slowest']:6.2f} - {speed['fastest']:6.2f}  "
            f"{'' if peak is None else format(peak, '.0f'):>8}  {speed['median'] / loop['median']:6.1f}x"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8_000_000, help="training tokens")
    parser.add_argument("--turns", type=int, default=7, help="turns of each side")
    parser.add_argument("--vocab", type=int, default=50257, help="size of the vocabulary, at most 65536")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a context")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.tokens, options.vocab, options.length, options.turns)
    print(json.dumps(result, indent=2) if options.json else table(result))


if __name__ == "__main__":
    main()
