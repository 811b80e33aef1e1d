"""The loss of a language model's head: in pieces, against all logits at once and PyTorch's chunked loss.

All compute the same loss and gradients, which is checked before they are timed; they take turns. The first
side is ``cross_entropy`` of all logits, as most training code has it; ``torch`` is
``torch.nn.functional.linear_cross_entropy`` with its default options, where this PyTorch has it.

    python benchmarks/head_loss.py [--rows 32768] [--dim 128] [--vocab 4096] [--turns 5] [--threads 2]
        [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _timing import settle_allocator, take_turns
from gatework.models.language import head_loss as ours

Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]


def whole(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden), labels)


def chunked_by_torch(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, head.weight, labels, options=options)


def train(loss: Loss, head: nn.Linear, hidden: Tensor, labels: Tensor) -> None:
    loss(head, hidden, labels).backward()


def gradients(loss: Loss, head: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(head, hidden, labels), (hidden, head.weight))


def measure(rows: int, dim: int, vocab: int, turns: int) -> dict[str, Any]:
    """Time forward and backward pass of every side."""
    torch.manual_seed(0)
    head = nn.Linear(dim, vocab, bias=False)
    hidden, labels = torch.randn(rows, dim).requires_grad_(), torch.randint(vocab, (rows,))
    sides: dict[str, Loss] = {"whole": whole, "pieces": ours.head_loss}
    if hasattr(F, "linear_cross_entropy"):
        sides["torch"] = chunked_by_torch
    expected = gradients(whole, head, hidden, labels)
    for loss in sides.values():
        torch.testing.assert_close(gradients(loss, head, hidden, labels), expected, rtol=1e-3, atol=1e-6)
    timings = take_turns(
        {name: partial(train, loss, head, hidden, labels) for name, loss in sides.items()}, turns
    )
    result: dict[str, Any] = {name: asdict(timing) for name, timing in timings.items()}
    result["ratio"] = {name: timings["whole"].median / timing.median for name, timing in timings.items()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32768, help="labelled positions")
    parser.add_argument("--dim", type=int, default=128, help="channels")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens of the vocabulary")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settle_allocator()
    ours._MOST_LOGITS = 0  # in pieces however few they are
    result = measure(options.rows, options.dim, options.vocab, options.turns)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"milliseconds, forward and backward, {options.rows} rows, {options.dim} channels, ", end="")
    print(f"{options.vocab} tokens, {options.threads} threads (median, range; times as fast as whole)")
    for name, ratio in result["ratio"].items():
        timing = result[name]
        spread = f"({timing['fastest']:.1f} - {timing['slowest']:.1f})"
        print(f"{name:8} {timing['median']:9.1f} {spread:22} {ratio:5.2f}x")


if __name__ == "__main__":
    main()
