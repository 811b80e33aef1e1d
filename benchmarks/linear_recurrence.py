"""Linear recurrences in chunks against their loops and causal attention of equal width, and their growth.

Every form is checked against its loop before it is timed. Loops are timed forward, at the length of the
table; times are of two heads of 64 channels, batch 1, in float32. The exponent is fitted from 1k tokens up.

    python benchmarks/linear_recurrence.py [--length 4096] [--longest 16384] [--turns 5] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from _timing import settle_allocator, take_turns
from gatework.ops.recurrence import linear_recurrence as ops

HEADS, HEAD_DIM = 2, 64
#: Form -> fast function, loop, names of its tensors.
FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "no decay": (ops.gated_linear_attention, ops.gated_linear_attention_reference, ("q", "k", "v")),
    "per head (RetNet, Mamba-2)": (
        ops.gated_linear_attention,
        ops.gated_linear_attention_reference,
        ("q", "k", "v", "head_decay"),
    ),
    "per channel (GLA)": (
        ops.gated_linear_attention,
        ops.gated_linear_attention_reference,
        ("q", "k", "v", "channel_decay"),
    ),
    "bonus (RWKV-5)": (
        ops.gated_linear_attention,
        ops.gated_linear_attention_reference,
        ("q", "k", "v", "channel_decay", "bonus"),
    ),
    "delta rule (DeltaNet)": (ops.delta_rule, ops.delta_rule_reference, ("q", "k", "v", "beta")),
    "gated delta rule": (ops.delta_rule, ops.delta_rule_reference, ("q", "k", "v", "beta", "head_decay")),
    "low rank (RWKV-7)": (
        ops.low_rank_recurrence,
        ops.low_rank_recurrence_reference,
        ("q", "k", "v", "channel_decay", "a", "b"),
    ),
}


def make_tensors(length: int) -> dict[str, Tensor]:
    """Tokens as mixers make them: keys of length one, decays close to one."""
    shape = (1, HEADS, length, HEAD_DIM)
    tensors = {name: torch.randn(shape) for name in ("q", "v", "grad")}
    tensors["k"] = F.normalize(torch.randn(shape), dim=-1)
    tensors["a"] = -F.normalize(torch.randn(shape), dim=-1)
    tensors["b"] = -tensors["a"] * torch.rand(shape)
    tensors["beta"], tensors["head_decay"] = torch.rand(shape[:3]), -0.1 * torch.rand(shape[:3])
    tensors["channel_decay"], tensors["bonus"] = -0.1 * torch.rand(shape), torch.rand(HEADS, HEAD_DIM)
    return tensors


def call(function: Callable[..., Any], names: tuple[str, ...], tensors: dict[str, Tensor]) -> Tensor:
    given = [tensors[name] for name in names if name != "bonus"]
    outputs: Tensor = function(*given, **({"bonus": tensors["bonus"]} if "bonus" in names else {}))[0]
    return outputs


def attend(tensors: dict[str, Tensor]) -> Tensor:
    return F.scaled_dot_product_attention(tensors["q"], tensors["k"], tensors["v"], is_causal=True)


def forward(side: Callable[[dict[str, Tensor]], Tensor], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        side(tensors)


def both_passes(side: Callable[[dict[str, Tensor]], Tensor], tensors: dict[str, Tensor]) -> None:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    side(leaves).backward(tensors["grad"])


def check_against_loops() -> None:
    """Stop if a form and its loop differ."""
    tensors = make_tensors(200)
    for fast, loop, names in FORMS.values():
        torch.testing.assert_close(
            call(fast, names, tensors), call(loop, names, tensors), rtol=1e-3, atol=1e-4
        )


def measure(length: int, lengths: list[int], turns: int) -> dict[str, Any]:
    """Time every form and causal attention at every length, all taking turns, and the loops once per turn."""
    sides: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
        name: lambda tensors, fast=fast, names=names: call(fast, names, tensors)
        for name, (fast, _, names) in FORMS.items()
    }
    sides["causal attention"] = attend
    results: dict[str, Any] = {name: {"forward": {}, "both": {}} for name in sides}
    for tokens in sorted({length, *lengths}):
        tensors = make_tensors(tokens)
        for key, passes in (("forward", forward), ("both", both_passes)):
            timings = take_turns({n: partial(passes, side, tensors) for n, side in sides.items()}, turns)
            for name, timing in timings.items():
                results[name][key][tokens] = timing.median
    tensors = make_tensors(length)
    loops = {
        name: partial(forward, partial(call, loop, names), tensors)
        for name, (_, loop, names) in FORMS.items()
    }
    for name, timing in take_turns(loops, min(turns, 2)).items():
        results[name]["loop_ratio"] = timing.median / results[name]["forward"][length]
    for result in results.values():
        for key in ("forward", "both"):
            attention = results["causal attention"][key][length]
            result[f"{key}_ratio"] = attention / result[key][length]
            logs = np.log(lengths), np.log([result[key][tokens] for tokens in lengths])
            result[f"{key}_exponent"] = float(np.polyfit(*logs, 1)[0])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens of the table")
    parser.add_argument("--longest", type=int, default=16384, help="tokens of the longest sequence")
    parser.add_argument("--turns", type=int, default=5, help="turns of each form and length")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settle_allocator()
    torch.manual_seed(0)
    check_against_loops()
    lengths = [tokens for tokens in (1024, 2048, 4096, 8192, 16384) if tokens <= options.longest]
    results = measure(options.length, lengths, options.turns)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"{options.length} tokens, {options.threads} threads (median of {options.turns} turns); exponent from"
    )
    print(
        f"{lengths[0]} to {lengths[-1]} tokens. Ratios: time of attention, or the loop, over that of the form"
    )
    print(f"{'':28}{'forward':>22}{'exp.':>6}{'forward + backward':>26}{'exp.':>6}{'loop':>8}")
    for name, result in results.items():
        cells = [
            f"{result[key][options.length]:12.2f} ms {result[f'{key}_ratio']:6.2f}x"
            f"{result[f'{key}_exponent']:6.2f}"
            for key in ("forward", "both")
        ]
        loop = f"{result['loop_ratio']:7.1f}x" if "loop_ratio" in result else ""
        print(f"{name:28}{cells[0]}{cells[1]:>32}{loop:>8}")


if __name__ == "__main__":
    main()
