"""How fast recall data are made: vectorised, against the authors' numbers row by row.

Both generators follow one law, which is checked before they are timed. They take turns, so that a busy
machine slows both. The table shows medians with the fastest and slowest turn, and the ratio last.

    python benchmarks/mqar_data.py [--examples 4000] [--turns 9] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2_contingency

from gatework.data.mqar import MQARConfig, make_mqar
from gatework.data.mqar_statistics import mqar_statistics

SETTINGS = ((64, 4), (256, 64))


def same_law(config: MQARConfig) -> float:
    """Return the smallest p-value of a pair's slots having one law in both; stop if it cannot be."""
    fast, compat = (
        mqar_statistics(make_mqar(config, 1, mode=mode), config).slot_histogram for mode in ("fast", "compat")
    )
    p_values = []
    for table in np.stack([fast, compat], axis=1):
        often = table.sum(0) >= 20
        # One is added to the pooled rare slots, which may be none.
        pooled = np.column_stack([table[:, often], table[:, ~often].sum(1) + 1])
        p_values.append(float(chi2_contingency(pooled).pvalue))
    if min(p_values) < 1e-7:
        raise SystemExit(f"fast and compat data differ in law for {config}: p = {min(p_values):.1e}")
    return min(p_values)


def measure(config: MQARConfig, turns: int) -> dict[str, Any]:
    """Time both generators, taking turns, in microseconds per example."""
    result: dict[str, Any] = {"config": asdict(config), "same_law_p": same_law(config)}
    times: dict[str, list[float]] = {"compat": [], "fast": []}
    for seed in range(turns):
        for mode, taken in times.items():
            start = time.perf_counter()
            make_mqar(config, seed, mode=mode)
            taken.append((time.perf_counter() - start) / config.num_examples * 1e6)
    for mode, taken in times.items():
        result[mode] = {"median": float(np.median(taken)), "fastest": min(taken), "slowest": max(taken)}
    result["ratio"] = result["compat"]["median"] / result["fast"]["median"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=4000, help="examples per turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each generator")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    results = [
        measure(MQARConfig(8192, options.examples, length, pairs), options.turns)
        for length, pairs in SETTINGS
    ]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"microseconds per example, {options.turns} turns of {options.examples} examples, vocabulary 8192")
    print(
        f"{'length':>6} {'pairs':>5} {'compat':>8} {'(range)':>17} {'fast':>7} {'(range)':>15} {'ratio':>7}"
    )
    for result in results:
        compat, fast = result["compat"], result["fast"]
        print(
            f"{result['config']['input_seq_len']:6d} {result['config']['num_kv_pairs']:5d} "
            f"{compat['median']:8.1f} {compat['fastest']:8.1f}-{compat['slowest']:8.1f} "
            f"{fast['median']:7.2f} {fast['fastest']:7.2f}-{fast['slowest']:7.2f} {result['ratio']:6.1f}x"
        )


if __name__ == "__main__":
    main()
