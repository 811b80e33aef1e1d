"""Long convolutions against a plain formulation by real Fourier transforms.

The plain side transforms inputs and filter at twice the length along the last axis, as published code does,
and multiplies. Inputs are ``(batch, length, channels)`` for both sides, results equal to rounding, which is
checked before they are timed; they take turns. ``eval`` needs no gradients; ``train`` is a forward and a
backward pass. ``decode`` is one more token of a Hyena layer after the whole sequence, with its filter
remembered, and computed again.

    python benchmarks/long_conv.py [--length 4096] [--batch 4] [--dim 128] [--turns 15] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import gatework
from _timing import settle_allocator, take_turns
from gatework.layers.sequence.filter_cache import FilterCache
from gatework.ops.long_conv import causal_conv


def plain(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Transform everything at twice the length, multiply, and transform back."""
    length = x.shape[1]
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)


def measure(batch: int, length: int, dim: int, turns: int) -> dict[str, Any]:
    """Time both sides in evaluation and in training."""
    torch.manual_seed(0)
    x = torch.randn(batch, length, dim, requires_grad=True)
    kernel = torch.randn(dim, length, requires_grad=True)
    grad = torch.randn(batch, length, dim)
    sides = {"plain": plain, "gatework": causal_conv}

    def evaluate(side: Callable[..., torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return side(x, kernel)

    def train(side: Callable[..., torch.Tensor]) -> torch.Tensor:
        return torch.autograd.grad(side(x, kernel), (x, kernel), grad)[1]

    results: dict[str, Any] = {}
    for name, work in (("eval", evaluate), ("train", train)):
        expected, found = (work(side) for side in sides.values())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        timings = take_turns({key: partial(work, side) for key, side in sides.items()}, turns, least=0.05)
        results[name] = {key: asdict(timing) for key, timing in timings.items()}
        results[name]["ratio"] = timings["plain"].median / timings["gatework"].median
    return results


def measure_decoding(length: int, dim: int, turns: int) -> dict[str, Any]:
    """Time a step of Hyena after ``length`` tokens, with and without a remembered filter."""
    mixer = gatework.create_mixer("hyena", dim, max_length=2 * length).eval()
    with torch.no_grad():
        _, state = mixer.prefill(torch.randn(1, length, dim))
        token = torch.randn(1, dim)

        def forgetful() -> None:
            mixer.filter_cache = FilterCache()
            mixer.step(token, state)

        sides = {"computed": forgetful, "remembered": partial(mixer.step, token, state)}
        timings = take_turns(sides, turns, least=0.05)
    result: dict[str, Any] = {name: asdict(timing) for name, timing in timings.items()}
    result["ratio"] = timings["computed"].median / timings["remembered"].median
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence, and taps of a filter")
    parser.add_argument("--dim", type=int, default=128, help="channels")
    parser.add_argument("--turns", type=int, default=15, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    settle_allocator()
    results = measure(options.batch, options.length, options.dim, options.turns)
    results["decode"] = measure_decoding(options.length, options.dim, options.turns)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"milliseconds, batch {options.batch}, {options.length} tokens, {options.dim} channels, two threads "
        "(median, fastest - slowest)"
    )
    for name, result in results.items():
        columns = "  ".join(
            f"{side} {ms['median']:8.2f} ({ms['fastest']:.2f} - {ms['slowest']:.2f})"
            for side, ms in result.items()
            if side != "ratio"
        )
        print(f"{name:8} {columns}  ratio {result['ratio']:5.2f}x")


if __name__ == "__main__":
    main()
