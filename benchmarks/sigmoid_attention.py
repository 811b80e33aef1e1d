"""Sigmoid attention on a CPU, against PyTorch's fused softmax attention and the plain formula.

The sides take turns in one process, causal or not: ``scaled_dot_product_attention``, the formula over all
pairs at once, our engine with PyTorch's operators, and our engine with compiled kernels. Before anything is
timed, the last three must agree. Then the memory that each side needs, in a process of its own.

    python benchmarks/sigmoid_attention.py [--length 2048] [--turns 9] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from _timing import take_turns
from gatework.bench.memory import Calls, PeakMeter
from gatework.ops import sigmoid_attention, sigmoid_attention_reference
from gatework.ops.attention import kernels

HEADS, HEAD_DIM = 8, 64
#: Seconds of one turn at least; quick sides are called several times.
TURN = 0.2
CASES = {
    "causal": (True, torch.float32),
    "all pairs": (False, torch.float32),
    "causal bf16": (True, torch.bfloat16),
}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sides(length: int, *, is_causal: bool) -> dict[str, Attention]:
    bias = -math.log(length)
    allowed = torch.ones(length, length, dtype=torch.bool).tril() if is_causal else None

    def ours(engine: str) -> Attention:
        return lambda *qkv: sigmoid_attention(*qkv, bias=bias, is_causal=is_causal, engine=engine)

    found: dict[str, Attention] = {
        "softmax": lambda *qkv: scaled_dot_product_attention(*qkv, is_causal=is_causal),
        "formula": lambda q, k, v: sigmoid_attention_reference(
            q, k, v, bias, mask=None if allowed is None else allowed[: q.shape[2], : k.shape[2]]
        ),
        "torch": ours("blocked-torch"),
    }
    return found | ({"numba": ours("blocked-numba")} if kernels.is_available() else {})


def inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    gen = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, length, HEAD_DIM, generator=gen).to(dtype) for _ in range(3)]


def measure(name: str, length: int, turns: int) -> dict[str, Any]:
    """Time the forward pass without gradients, and the backward pass alone."""
    is_causal, dtype = CASES[name]
    qkv = inputs(length, dtype)
    found = sides(length, is_causal=is_causal)
    expected = found["formula"](*(x.float() for x in qkv))
    for side in [*found][2:]:
        error = (found[side](*qkv).float() - expected).abs().max() / expected.abs().max()
        if error > (1e-5 if dtype == torch.float32 else 0.01):
            raise SystemExit(f"{name}: {side} is wrong by {error:.1e} of the largest number")
    with torch.no_grad():
        forward = take_turns({side: lambda f=f: f(*qkv) for side, f in found.items()}, turns, least=TURN)
    timed = {key: f for key, f in found.items() if key != "formula"}
    backward = take_turns({key: backward_of(f, qkv) for key, f in timed.items()}, turns, least=TURN)
    return {
        "case": name,
        "forward": {side: asdict(timing) for side, timing in forward.items()},
        "backward": {side: asdict(timing) for side, timing in backward.items()},
        "over_softmax": {s: forward[s].median / forward["softmax"].median for s in [*found][1:]},
        "over_formula": {s: forward[s].median / forward["formula"].median for s in [*found][2:]},
        "backward_over_forward": {s: backward[s].median / forward[s].median for s in timed},
    }


def backward_of(attend: Attention, qkv: list[Tensor]) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_() for x in qkv]
    y = attend(*leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True)


def memory_calls(description: Mapping[str, Any]) -> Calls:
    """Make the calls whose memory is measured: a short one first, which imports and compiles."""
    attend = sides(description["length"], is_causal=True)[description["side"]]
    qkv = inputs(description["length"], torch.float32)
    return lambda: attend(*(x[:, :, :256] for x in qkv)), lambda: attend(*qkv)


def peaks(length: int, threads: int) -> dict[str, dict[int, float | None]]:
    """MiB beyond the inputs of one forward pass of two lengths, each in a process of its own."""
    folder = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    found: dict[str, dict[int, float | None]] = {}
    with PeakMeter("sigmoid_attention:memory_calls", num_threads=threads) as meter:
        for side in sides(1, is_causal=True):
            for tokens in (length, 2 * length):
                peak, reason = meter.measure({"side": side, "length": tokens})
                if reason is not None:
                    print(reason, file=sys.stderr)
                found.setdefault(side, {})[tokens] = None if peak is None else peak / 2**20
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=2048, help="tokens")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [measure(name, options.length, options.turns) for name in CASES]
    memory = peaks(options.length, options.threads)
    if options.json:
        print(json.dumps({"cases": results, "peak_mib": memory}, indent=2))
        return
    print(f"{options.length} tokens, {HEADS} heads of {HEAD_DIM}, {options.threads} threads: milliseconds")
    for result in results:
        print(f"{result['case']}:")
        for side, timing in result["forward"].items():
            line = "  {0:8} forward {median:8.2f} ({fastest:.2f} - {slowest:.2f})".format(side, **timing)
            if side != "softmax":
                line += f", {result['over_softmax'][side]:.2f}x the time of softmax"
            if side in result["over_formula"]:
                line += f", {result['over_formula'][side]:.2f}x that of the formula"
            if side in result["backward"]:
                line += f"; backward {result['backward'][side]['median']:.2f}"
                line += f", {result['backward_over_forward'][side]:.2f}x forward"
            print(line)
    for side, found in memory.items():
        shown = ", ".join(f"{n} tokens {mib:.0f} MiB" for n, mib in found.items() if mib is not None)
        print(f"{side:8} causal, peak beyond the inputs: {shown}")


if __name__ == "__main__":
    main()
