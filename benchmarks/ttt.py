"""Test-time training in mini-batches, against its definition token by token, and against attention.

Three sides that compute the same numbers, which is checked before they are timed: the definition, whose
gradients are those of automatic differentiation; the mixer's own steps, as in decoding (forward only); and
its parallel form. Then whole layers of equal width take turns with softmax attention over growing lengths:
the crossover is the first length where test-time training is faster.

    python benchmarks/ttt.py [--length 4096] [--longest 16384] [--turns 3] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import gatework
from _crossover import against_attention
from _timing import settle_allocator, take_turns
from gatework.ops.recurrence.ttt import ttt_linear, ttt_linear_reference, ttt_mlp, ttt_mlp_reference

DIM, HEADS, MINI_BATCH = 128, 2, 16
KINDS = {"ttt_linear": (ttt_linear, ttt_linear_reference), "ttt_mlp": (ttt_mlp, ttt_mlp_reference)}
Side = Callable[[], object]


def inputs(kind: str, length: int) -> list[torch.Tensor]:
    """Arguments of the operator for one sequence, with heads of 64 channels."""
    gen, width = torch.Generator().manual_seed(0), DIM // HEADS
    hidden = 4 * width
    shapes = [(width, width), (1, width)]
    if kind == "ttt_mlp":
        shapes = [(width, hidden), (1, hidden), (hidden, width), (1, width)]
    model = [0.02 * torch.randn(1, HEADS, *shape, generator=gen) for shape in shapes]
    q, k, v = (torch.randn(1, HEADS, length, width, generator=gen) for _ in range(3))
    rates = torch.rand(1, HEADS, length, generator=gen) / width
    norm = [torch.ones(HEADS, width), torch.zeros(HEADS, width)]
    tensors = [q, k, v, rates, 1 / torch.arange(1.0, MINI_BATCH + 1), *norm, *model]
    return [tensor.requires_grad_() for tensor in tensors]


def decode(mixer: Any, x: torch.Tensor) -> torch.Tensor:
    """Outputs of ``mixer`` token by token."""
    state, outputs = mixer.initial_state(x.shape[0]), []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


def without_gradients(side: Side) -> None:
    with torch.no_grad():
        side()


def against_definition(kind: str, length: int, turns: int) -> dict[str, Any]:
    """Milliseconds of the operator and of its definition, and of the layer and its steps."""
    fast, definition = KINDS[kind]
    tensors = inputs(kind, length)
    for ours, theirs in zip(fast(*tensors), definition(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    mixer = gatework.create_mixer(kind, DIM, num_heads=HEADS)
    x = torch.randn(1, length, DIM)
    with torch.no_grad():
        torch.testing.assert_close(decode(mixer, x), mixer(x), rtol=1e-3, atol=1e-3)

    def train(operator: Callable[..., tuple[torch.Tensor, ...]]) -> None:
        operator(*tensors)[0].sum().backward()

    sides: dict[str, dict[str, Side]] = {
        "forward": {
            "slow": partial(without_gradients, partial(definition, *tensors)),
            "fast": partial(without_gradients, partial(fast, *tensors)),
        },
        "train": {"slow": partial(train, definition), "fast": partial(train, fast)},
        "steps": {
            "slow": partial(without_gradients, partial(decode, mixer, x)),
            "fast": partial(without_gradients, partial(mixer, x)),
        },
    }
    results = {}
    for name, pair in sides.items():
        timings = take_turns(pair, turns)
        results[name] = {side: timing.median for side, timing in timings.items()}
        results[name]["ratio"] = timings["slow"].median / timings["fast"].median
    return results


def layers() -> dict[str, torch.nn.Module]:
    """Whole layers, attention among them."""
    return {name: gatework.create_mixer(name, DIM, num_heads=HEADS) for name in ("attention", *KINDS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens of the first comparison")
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest sequence of layers")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    settle_allocator()
    torch.manual_seed(0)
    lengths = [length for length in (1024, 2048, 4096, 8192, 16384, 32768) if length <= options.longest]
    results = {
        "definition": {kind: against_definition(kind, options.length, options.turns) for kind in KINDS},
        "forward": against_attention(layers(), DIM, lengths, options.turns, train=False),
        "train": against_attention(layers(), DIM, lengths, options.turns, train=True),
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{DIM} channels, {HEADS} heads, mini-batches of {MINI_BATCH}, two threads (medians)")
    for kind, works in results["definition"].items():
        for work, row in works.items():
            print(
                f"{kind:12}{work:9}token by token {row['slow']:9.1f} ms   mini-batches {row['fast']:8.1f} ms"
                f"   ratio {row['ratio']:6.1f}x   ({options.length} tokens)"
            )
    for work in ("forward", "train"):
        print(f"\n{work:12}" + "".join(f"{length:>10}" for length in lengths) + "  exponent  crossover")
        for name, row in results[work].items():
            times = "".join(f"{ms:10.1f}" for ms in row["ms"].values())
            crossover = "-" if name == "attention" else row["crossover"] or f"above {lengths[-1]}"
            print(f"{name:12}{times}{row['exponent']:10.2f}  {crossover}")


if __name__ == "__main__":
    main()
