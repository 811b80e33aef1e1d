"""Based's attention: in chunks, against its quadratic form.

Both compute the same numbers, which is checked before they are timed; they take turns.

    python benchmarks/based_chunked.py [--length 4096] [--turns 9] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

from _timing import take_turns
from gatework.ops.recurrence.taylor_attention import taylor_attention, taylor_attention_reference

SIDES = {"quadratic": taylor_attention_reference, "chunked": taylor_attention}


def inputs(length: int, feature_dim: int, value_dim: int) -> list[torch.Tensor]:
    """Queries, keys and values of one sequence and one head."""
    gen = torch.Generator().manual_seed(0)
    widths = (feature_dim, feature_dim, value_dim)
    return [torch.randn(1, 1, length, width, generator=gen).requires_grad_() for width in widths]


def measure(length: int, turns: int, *, feature_dim: int = 16, value_dim: int = 128) -> dict[str, Any]:
    """Time both forms, forward, and forward with backward."""
    tensors = inputs(length, feature_dim, value_dim)
    outputs = {name: side(*tensors) for name, side in SIDES.items()}
    torch.testing.assert_close(*outputs.values(), rtol=1e-4, atol=1e-4)

    def forward(side: Any) -> None:
        with torch.no_grad():
            side(*tensors)

    def train(side: Any) -> None:
        side(*tensors).sum().backward()

    result: dict[str, Any] = {"length": length, "feature_dim": feature_dim, "value_dim": value_dim}
    for work in (forward, train):
        timings = take_turns({name: lambda s=side, w=work: w(s) for name, side in SIDES.items()}, turns)
        result[work.__name__] = {name: asdict(timing) for name, timing in timings.items()}
        result[work.__name__]["ratio"] = timings["quadratic"].median / timings["chunked"].median
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    result = measure(options.length, options.turns)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"milliseconds, {options.length} tokens, features of 16, values of 128, two threads (median, range)"
    )
    for work in ("forward", "train"):
        row = result[work]
        columns = "  ".join(
            f"{name} {row[name]['median']:8.2f} ({row[name]['fastest']:.2f} - {row[name]['slowest']:.2f})"
            for name in SIDES
        )
        print(f"{work:8} {columns}  ratio {row['ratio']:5.1f}x")


if __name__ == "__main__":
    main()
