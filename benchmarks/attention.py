"""Attention under masks on a CPU: the blocked engine against PyTorch's fused attention over all pairs.

Three sides take turns in one process: PyTorch's ``scaled_dot_product_attention`` (without a mask, or with the
mask as booleans where the case says so), our engine with PyTorch's operators, and our engine with compiled
kernels; in one case FlexAttention, compiled, too. Before anything is timed they must agree. The ideal is the
time of all pairs without a mask, times the share of pairs that the mask allows.

    python benchmarks/attention.py [--cases window ...] [--turns 5] [--threads 2] [--shrink 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from _timing import take_turns
from gatework import masks
from gatework.masks import Mask, sample_document_lengths
from gatework.ops import attention

#: Seconds of one turn at least; quick sides are called several times.
TURN = 0.05


@dataclass(frozen=True)
class Case:
    """One mask and one shape; the batch is 1.

    Attributes:
        mask: Makes the mask for a length; of a grid for the length of its side.
        length: Tokens, or the side of a square grid.
        heads: Number of heads.
        head_dim: Channels of a head.
        dtype: Of queries, keys and values.
        boolean: Whether the base is given the mask as booleans; else it computes all pairs.
        backward: Whether gradients are computed too.
        grid: Whether ``length`` is the side of a grid.
        flex: Whether FlexAttention takes part.
    """

    mask: Callable[[int], Mask]
    length: int
    heads: int = 4
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    boolean: bool = False
    backward: bool = False
    grid: bool = False
    flex: bool = False


def window(length: int) -> Mask:
    return masks.SlidingWindow(min(256, length), min(256, length))


def causal_window(length: int) -> Mask:
    return masks.SlidingWindow(min(256, length), 0)


def blocks(size: int) -> Callable[[int], Mask]:
    return lambda length: masks.BlockSparse.random(length, length, min(size, length // 16), 0.1, heads=4)


def neighborhood(side: int) -> Mask:
    return masks.Neighborhood((side, side), 7)


def windows_of_1024(side: int) -> Mask:
    size = min(32, side // 4)
    return masks.Neighborhood((side, side), size, stride=size)


def documents(seed: int) -> Callable[[int], Mask]:
    return lambda length: masks.CausalDocument(sample_document_lengths(length, seed=seed))


BF16 = torch.bfloat16
CASES = {
    "window": Case(window, 8192, flex=True),
    "window backward": Case(window, 8192, backward=True),
    "128-blocks": Case(blocks(128), 16384),
    "64-blocks": Case(blocks(64), 16384),
    "128-blocks 32k": Case(blocks(128), 32768),
    "128-blocks bf16": Case(blocks(128), 16384, dtype=BF16),
    "64-blocks bf16": Case(blocks(64), 16384, dtype=BF16),
    "neighborhood": Case(neighborhood, 56, heads=2, head_dim=32, grid=True),
    "neighborhood backward": Case(neighborhood, 56, heads=2, head_dim=32, grid=True, backward=True),
    "causal window": Case(causal_window, 4096, boolean=True),
    **{f"documents {seed}": Case(documents(seed), 4096, boolean=True) for seed in range(8)},
    "windows of 1024": Case(windows_of_1024, 128, heads=2, head_dim=32, grid=True),
}


def sides(case: Case, mask: Mask, length: int) -> dict[str, Callable[[], Any]]:
    """What is timed, each on the same tensors."""
    gen = torch.Generator().manual_seed(0)
    shape = (1, case.heads, length, case.head_dim)
    q, k, v, grad = (torch.randn(shape, generator=gen).to(case.dtype) for _ in range(4))
    dense = mask.to_dense(length, length) if case.boolean else None

    def timed(compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        def forward() -> Tensor:
            with torch.no_grad():
                return compute(q, k, v)

        def both() -> tuple[Tensor, ...]:
            leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            return torch.autograd.grad(compute(*leaves), leaves, grad)

        return both if case.backward else forward

    engines = ["blocked-torch", "blocked-numba", *(["flex"] if case.flex else [])]
    return {
        "all pairs": timed(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=dense)),
        **{name: timed(lambda q, k, v, e=name: attention(q, k, v, mask=mask, engine=e)) for name in engines},
    }


def check(case: Case, mask: Mask, length: int, engines: dict[str, Callable[[], Any]]) -> None:
    """Engines must agree with each other, which tests hold to the definition."""
    first, *others = (engines[name]() for name in engines if name != "all pairs")
    tolerance = 2e-2 if case.dtype == BF16 else 1e-4  # a rounding of bfloat16; sums in another order
    for other in others:
        torch.testing.assert_close(other, first, rtol=tolerance, atol=tolerance)


def measure(name: str, turns: int, shrink: int) -> dict[str, Any]:
    case = CASES[name]
    side = case.length // shrink
    mask = case.mask(side)
    length = side * side if case.grid else side
    engines = sides(case, mask, length)
    check(case, mask, length, engines)
    times = take_turns(engines, turns, least=TURN)
    base = times["all pairs"].median
    density = mask.density(length, length)
    return {
        "case": name,
        "length": length,
        "density": density,
        "times": {key: asdict(time) for key, time in times.items()},
        "ratio": {key: base / time.median for key, time in times.items()},
        # With booleans the base is slower than all pairs without a mask: no ideal follows from it.
        "share": None if case.boolean else {key: base * density / t.median for key, t in times.items()},
    }


def show(row: dict[str, Any]) -> None:
    ideal = 1 / row["density"]
    print(f"{row['case']}: {row['length']} tokens, ideal {ideal:.1f}x")
    for key, time in row["times"].items():
        share = f"{row['share'][key]:7.0%} of the ideal" if row["share"] else ""
        print(f"  {key:14s} {time['median']:9.2f} ms  {row['ratio'][key]:6.2f}x {share}")


def summary(rows: list[dict[str, Any]]) -> None:
    """The median over the documents, and what the backward pass costs besides the forward pass."""
    drawn = [row for row in rows if row["case"].startswith("documents")]
    for key in ("blocked-torch", "blocked-numba") if drawn else ():
        ratio = statistics.median(row["ratio"][key] for row in drawn)
        print(f"documents, median of {len(drawn)} draws: {key} {ratio:.2f}x")
    by_name = {row["case"]: row["times"] for row in rows}
    if {"window", "window backward"} <= by_name.keys():
        for key in ("all pairs", "blocked-torch", "blocked-numba"):
            both, forward = (by_name[name][key]["median"] for name in ("window backward", "window"))
            print(f"window, backward / forward: {key} {both / forward - 1:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shrink", type=int, default=1, help="divide every length by this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.cases:
        rows.append(measure(name, options.turns, options.shrink))
        if not options.json:
            show(rows[-1])
    if options.json:
        print(json.dumps(rows))
    else:
        summary(rows)


if __name__ == "__main__":
    main()
