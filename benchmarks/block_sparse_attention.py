"""Attention over learned blocks, and the pooled map that selects them, against causal attention over all.

Every call has a pattern that it has not seen before: random blocks of 64 below the diagonal and the diagonal,
equally many in each row, others for each head. The mask is made, planned and computed in the time that is
measured. The base is PyTorch's ``scaled_dot_product_attention(is_causal=True)``, forward alone and with the
backward pass; all sides take turns, and must agree with the definition before they are timed. "planning" is
what making and planning the mask takes of the forward pass. The pooled map is compared with the same base,
and the memory that it needs with the size of its inputs.

    python benchmarks/block_sparse_attention.py [--length 4096] [--heads 8] [--densities 0.1 0.23 0.43]
                                                [--turns 7] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from _timing import Timing, take_turns
from gatework.bench import memory
from gatework.masks import BlockSparse, Causal
from gatework.ops import block_sparse_attention, pooled_attention_map, pooled_attention_rows
from gatework.ops.attention import blocked, kernels
from gatework.ops.attention.plan import digest, pack
from gatework.ops.attention.planning import make_plan
from gatework.ops.attention_pooling import pooled_attention_map_reference

BLOCK, HEAD_DIM = 64, 64
#: Seconds of one turn at least.
TURN = 0.2
#: Patterns that are made before the timing, more than are ever remembered.
PATTERNS = 24

ENGINES = ["blocked-torch", *(["blocked-numba"] if kernels.is_available() else [])]


def pattern(length: int, heads: int, density: float, seed: int) -> Tensor:
    """A map of which ``density`` of the causal triangle is selected, as near as equal rows come to it."""
    blocks = -(-length // BLOCK)
    kept = max(1, round((1 - (1 - density) ** 0.5) * blocks))  # rows shorter than this are whole
    scores = torch.rand(1, heads, blocks, blocks, generator=torch.Generator().manual_seed(seed))
    scores.masked_fill_(torch.ones(blocks, blocks, dtype=torch.bool).triu(1), -1.0)
    scores.diagonal(dim1=-2, dim2=-1).fill_(2.0)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(kept, -1).indices, True).tril()


def share_of_triangle(block_map: Tensor) -> float:
    blocks = block_map.shape[-1]
    return float(block_map.sum()) / (block_map.shape[1] * blocks * (blocks + 1) / 2)


def with_backward(function: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    function(*leaves).backward(grad)


def planning(block_map: Tensor, engine: str, length: int) -> None:
    """All that happens before numbers are computed, but for the list of steps."""
    mask = BlockSparse.from_map(block_map, BLOCK, q_length=length, kv_length=length) & Causal()
    digest(pack(make_plan(mask, length, length, blocked.tile_size("numba" in engine))))


def sides(tensors: list[Tensor], maps: Iterator[Tensor]) -> dict[str, Callable[..., Tensor]]:
    """What is compared, by name."""
    found: dict[str, Callable[..., Tensor]] = {
        "dense": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)
    }
    for engine in ENGINES:
        found[engine] = lambda q, k, v, engine=engine: block_sparse_attention(
            q, k, v, next(maps), block_size=BLOCK, engine=engine
        )
    return found


def check(tensors: list[Tensor], block_map: Tensor) -> None:
    """Engines must agree with the definition, which may take long: on a part of the sequence."""
    length = min(1024, tensors[0].shape[2])
    parts = [tensor[:, :, :length] for tensor in tensors]
    blocks = block_map[:, :, : -(-length // BLOCK), : -(-length // BLOCK)]
    wanted = block_sparse_attention(*parts, blocks, block_size=BLOCK, engine="reference")
    for engine in ENGINES:
        error = (block_sparse_attention(*parts, blocks, block_size=BLOCK, engine=engine) - wanted).abs().max()
        if not error < 1e-4:
            raise SystemExit(f"{engine} differs from the definition by {error}")


def measure_density(density: float, options: argparse.Namespace) -> dict[str, Any]:
    """Times of all sides for one density, forward alone and with the backward pass."""
    tensors = [torch.randn(1, options.heads, options.length, HEAD_DIM) for _ in range(3)]
    made = [pattern(options.length, options.heads, density, seed) for seed in range(PATTERNS)]
    check(tensors, made[0])
    maps = itertools.cycle(made)
    compared = sides(tensors, maps)
    forward = take_turns(
        {name: lambda f=f: f(*tensors) for name, f in compared.items()}, options.turns, least=TURN
    )
    grad = torch.randn_like(tensors[0])
    backward = take_turns(
        {name: lambda f=f: with_backward(f, tensors, grad) for name, f in compared.items()},
        options.turns,
        least=TURN,
    )
    plans = take_turns(
        {e: lambda e=e: planning(next(maps), e, options.length) for e in ENGINES}, options.turns
    )
    return {
        "density": share_of_triangle(made[0]),
        "forward": with_ratios(forward),
        "forward and backward": with_ratios(backward),
        "planning": {name: plans[name].median / forward[name].median for name in ENGINES},
    }


def with_ratios(timings: dict[str, Timing]) -> dict[str, Any]:
    base = timings["dense"].median
    return {name: asdict(timing) | {"ratio": timing.median / base} for name, timing in timings.items()}


# --- the pooled map ---


def measure_pooling(options: argparse.Namespace) -> dict[str, Any]:
    """Times of both pooled maps, and the memory of a process that makes one."""
    q, k, v = (torch.randn(1, options.heads, options.length, HEAD_DIM) for _ in range(3))
    part = [tensor[:, :, : min(1024, options.length)] for tensor in (q, k)]
    error = (pooled_attention_map(*part) - pooled_attention_map_reference(*part)).abs().max()
    if not error < 1e-4:
        raise SystemExit(f"pooled_attention_map differs from the definition by {error}")
    compared: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
        "by tile": lambda: pooled_attention_map(q, k, block_size=BLOCK),
        "by query": lambda: pooled_attention_rows(q, k, block_size=BLOCK),
    }
    return {
        "times": with_ratios(take_turns(compared, options.turns, least=TURN)),
        "megabytes": {
            length: peak_growth(length, options.heads) for length in (options.length, 2 * options.length)
        },
    }


def peak_growth(length: int, heads: int) -> float | None:
    """Megabytes that one pooled map needs in a fresh process, its result included; ``None`` if unknown."""
    if not memory.is_available():
        return None
    program = f"""
import torch
from gatework.bench.memory import peak_of
from gatework.ops import pooled_attention_map
torch.set_num_threads(2)
q, k = torch.randn(2, 1, {heads}, {length}, {HEAD_DIM})
print(peak_of(lambda: pooled_attention_map(q[:, :, :64], k[:, :, :64]), lambda: pooled_attention_map(q, k)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens")
    parser.add_argument("--heads", type=int, default=8, help="heads, of 64 channels each")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[0.1, 0.23, 0.43], help="selected share"
    )
    parser.add_argument("--turns", type=int, default=7, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    densities = [measure_density(density, options) for density in options.densities]
    pooling = measure_pooling(options)
    if options.json:
        print(json.dumps({"densities": densities, "pooling": pooling}, indent=2))
        return
    report(densities, pooling, options)


def report(densities: list[dict[str, Any]], pooling: dict[str, Any], options: argparse.Namespace) -> None:
    print(
        f"milliseconds, {options.length} tokens, {options.heads} heads of {HEAD_DIM}, blocks of {BLOCK}, "
        f"{options.threads} threads: median (range); ratio to dense causal attention"
    )
    for result in densities:
        print(f"{result['density']:.2f} of the blocks up to the diagonal, new in every call")
        for passes in ("forward", "forward and backward"):
            for name, side in result[passes].items():
                planned = (
                    f"  planning {result['planning'][name]:5.1%}"
                    if name != "dense" and passes == "forward"
                    else ""
                )
                print(f"  {passes:21} {row(name, side)}{planned}")
    print("pooled attention map")
    for name, side in pooling["times"].items():
        print(f"  {'forward':21} {row(name, side)}")
    for length, megabytes in pooling["megabytes"].items():
        inputs = 2 * 4 * options.heads * length * HEAD_DIM / 2**20
        needed = "unknown on this system" if megabytes is None else f"{megabytes:.0f} MB"
        print(f"  needs at {length:6} tokens: {needed}; queries and keys have {inputs:.0f} MB")


def row(name: str, side: dict[str, Any]) -> str:
    return "{0:14} {median:8.1f} ({fastest:.1f} - {slowest:.1f})  ratio {ratio:.2f}".format(name, **side)


if __name__ == "__main__":
    main()
