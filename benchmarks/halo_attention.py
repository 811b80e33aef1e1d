"""Halo attention: our layer, against timm's if it can be imported, or against the plain definition.

Both sides have the same weights and compute the same numbers, which is checked before they are timed; they
take turns. timm is no dependency: `pip install --target FOLDER --no-deps timm`, and put FOLDER on PYTHONPATH.

    python benchmarks/halo_attention.py [--batch 4] [--turns 9] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from _timing import take_turns
from gatework.layers.vision import halo as layers
from gatework.layers.vision.halo import HaloAttention
from gatework.ops.vision.halo import halo_attention_reference

#: Channels, heads and side of the map: the four stages of the paper's H1 at 256 pixels.
STAGES = [(64, 4, 64), (128, 8, 32), (256, 8, 16), (512, 8, 8)]


class Definition(HaloAttention):
    """Our layer around the definition of the operator."""

    def forward(self, x: Tensor) -> Tensor:
        """What the fast layer computes, by the definition."""
        fast, layers.halo_attention = layers.halo_attention, halo_attention_reference
        try:
            return super().forward(x)
        finally:
            layers.halo_attention = fast


def other_side() -> tuple[str, Callable[..., nn.Module]]:
    """Name and constructor of what ours is compared with."""
    try:
        from timm.layers.halo_attn import HaloAttn
    except ImportError:
        return "definition", Definition
    return "timm", HaloAttn


def measure(stage: tuple[int, int, int], batch: int, turns: int) -> dict[str, Any]:
    """Time both layers on one stage, forward, and forward with backward."""
    channels, heads, side = stage
    name, other = other_side()
    sides = {name: other(channels, num_heads=heads), "gatework": HaloAttention(channels, num_heads=heads)}
    sides["gatework"].load_state_dict(sides[name].state_dict())
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    outputs = [layer(x) for layer in sides.values()]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-4)

    def forward(layer: nn.Module) -> None:
        with torch.no_grad():
            layer(x)

    def train(layer: nn.Module) -> None:
        layer(x).sum().backward()

    result: dict[str, Any] = {"channels": channels, "heads": heads, "side": side, "against": name}
    for work in (forward, train):
        timings = take_turns({n: lambda s=s, w=work: w(s) for n, s in sides.items()}, turns)
        result[work.__name__] = {n: asdict(timing) for n, timing in timings.items()}
        result[work.__name__]["ratio"] = timings[name].median / timings["gatework"].median
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument(
        "--stages", type=int, default=len(STAGES), help="how many of the stages, the last ones"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    results = [measure(stage, options.batch, options.turns) for stage in STAGES[-options.stages :]]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"milliseconds, batch {options.batch}, blocks of 8, halo 3, {options.threads} threads (median, range)"
    )
    for row in results:
        for work in ("forward", "train"):
            columns = "  ".join(
                f"{name} {row[work][name]['median']:8.2f} "
                f"({row[work][name]['fastest']:.2f} - {row[work][name]['slowest']:.2f})"
                for name in (row["against"], "gatework")
            )
            place = f"C{row['channels']:<4} {row['side']:>2}x{row['side']:<2} {work:8}"
            print(f"{place} {columns}  ratio {row[work]['ratio']:5.2f}x")


if __name__ == "__main__":
    main()
