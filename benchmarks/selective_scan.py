"""Selective scan (Mamba) and WKV (RWKV-4): against their loops, against attention, and their memory.

Both sides of every comparison are checked to agree before they are timed, and take turns:

- each engine against the definition, a loop over the tokens: forward, and forward with backward;
- whole layers against a layer of softmax attention of equal width, at growing lengths: the exponent of the
  growth, and the crossover, the first length where the layer is faster;
- peak memory of a forward and a backward pass at two lengths, in processes of their own.

    python benchmarks/selective_scan.py [--length 4096] [--longest 16384] [--turns 5] [--no-memory] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gatework
from _crossover import against_attention
from _timing import settle_allocator, take_turns
from gatework.bench.memory import PeakMeter
from gatework.ops.recurrence import kernels as scan_kernels
from gatework.ops.recurrence.selective_scan import selective_scan, selective_scan_reference
from gatework.ops.recurrence.wkv import wkv, wkv_reference

DIM, HEADS, STATES, THREADS = 128, 2, 16, 2
OPERATORS = {"selective_scan": (selective_scan, selective_scan_reference), "wkv": (wkv, wkv_reference)}
MIXERS: Mapping[str, dict[str, Any]] = {"attention": {"num_heads": HEADS}, "mamba": {}, "rwkv4": {}}
Side = Callable[[], object]


def inputs(name: str, length: int) -> list[torch.Tensor]:
    """Arguments of an operator as in a layer of 128 channels, which for Mamba are 256 inner ones."""
    gen = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen)

    if name == "wkv":
        tensors = [normal(1, length, DIM), normal(1, length, DIM), -normal(DIM).exp(), normal(DIM)]
    else:
        steps = 0.1 * torch.rand(1, length, 2 * DIM, generator=gen)
        rates = -torch.arange(1.0, STATES + 1).repeat(2 * DIM, 1)
        weights = [normal(1, length, STATES) for _ in range(2)]
        tensors = [normal(1, length, 2 * DIM), steps, rates, *weights, normal(2 * DIM)]
    return [tensor.requires_grad_() for tensor in tensors]


def forward(side: Side) -> None:
    with torch.no_grad():
        side()


def against_loop(name: str, length: int, turns: int) -> dict[str, Any]:
    """Milliseconds of the loop and of every engine, and how much faster than the loop it is."""
    fast, definition = OPERATORS[name]
    tensors = inputs(name, length)
    engines = ["chunked-torch", *(["chunked-numba"] if scan_kernels.is_available() else [])]
    sides: dict[str, Side] = {engine: partial(fast, *tensors, engine=engine) for engine in engines}
    sides["loop"] = partial(definition, *tensors)

    def gradients(side: Callable[[], Any]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(side()[0].square().sum(), tensors)

    for engine in engines:
        for ours, theirs in zip(gradients(sides[engine]), gradients(sides["loop"]), strict=True):
            assert (ours - theirs).abs().max() <= 2e-4 * theirs.abs().max(), f"{name}: {engine} is wrong"
    works = {"forward": forward, "train": gradients}
    results: dict[str, Any] = {}
    for work, run in works.items():
        timings = take_turns({side: partial(run, call) for side, call in sides.items()}, turns)
        results[work] = {
            side: {
                "ms": timing.median,
                "fastest": timing.fastest,
                "slowest": timing.slowest,
                "ratio": timings["loop"].median / timing.median,
            }
            for side, timing in timings.items()
        }
    return results


def layers() -> dict[str, torch.nn.Module]:
    """Whole layers, attention among them."""
    return {name: gatework.create_mixer(name, DIM, **options) for name, options in MIXERS.items()}


def training(description: Mapping[str, Any]) -> tuple[Side, Side]:
    """What :class:`PeakMeter` measures: a short and a long pass, forward and backward."""
    mixer = gatework.create_mixer(description["mixer"], DIM, **MIXERS[description["mixer"]])
    short, long = (torch.randn(1, length, DIM) for length in (256, description["length"]))

    def both_ways(x: torch.Tensor) -> None:
        mixer(x).sum().backward()

    return partial(both_ways, short), partial(both_ways, long)


def memory(lengths: list[int]) -> dict[str, Any]:
    """Peak megabytes of training by length, and the last over the first."""
    # The process that measures imports this file by its name.
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    results: dict[str, Any] = {}
    with PeakMeter("selective_scan:training", num_threads=THREADS) as meter:
        for name in MIXERS:
            peaks = {}
            for length in lengths:
                peak, reason = meter.measure({"mixer": name, "length": length})
                assert peak is not None, reason
                peaks[length] = peak / 2**20
            results[name] = {"mb": peaks, "growth": peaks[lengths[-1]] / max(peaks[lengths[0]], 1e-9)}
    return results


def print_tables(results: Mapping[str, Any], lengths: list[int]) -> None:
    for name, works in results["loop"].items():
        for work, sides in works.items():
            for side, row in sides.items():
                spread = f"({row['fastest']:.1f} - {row['slowest']:.1f})"
                print(
                    f"{name:16}{work:9}{side:9}{row['ms']:9.1f} ms {spread:22}{row['ratio']:7.1f}x the loop"
                )
    for work in ("forward", "train"):
        print(f"\n{work:12}" + "".join(f"{length:>10}" for length in lengths) + "  exponent  crossover")
        for name, row in results[work].items():
            times = "".join(f"{ms:10.1f}" for ms in row["ms"].values())
            crossover = "-" if name == "attention" else row["crossover"] or f"above {lengths[-1]}"
            print(f"{name:12}{times}{row['exponent']:10.2f}  {crossover}")
    for name, row in results.get("memory", {}).items():
        sizes = ", ".join(f"{mb:.1f} MB at {length}" for length, mb in row["mb"].items())
        print(f"{name:12}training needs {sizes}: {row['growth']:.2f} times as much")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens of the comparison with the loop")
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest sequence of layers")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    settle_allocator()
    torch.manual_seed(0)
    lengths = [512 * 2**i for i in range(10) if 512 * 2**i <= options.longest]
    results: dict[str, Any] = {
        "loop": {name: against_loop(name, options.length, options.turns) for name in OPERATORS},
        "forward": against_attention(layers(), DIM, lengths, options.turns, train=False),
        "train": against_attention(layers(), DIM, lengths, options.turns, train=True),
    }
    if not options.no_memory:
        results["memory"] = memory([options.length, 2 * options.length, 4 * options.length])
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{DIM} channels, {THREADS} threads, batch 1 (medians, the fastest and the slowest turn)")
    print_tables(results, lengths)


if __name__ == "__main__":
    main()
