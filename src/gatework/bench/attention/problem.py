"""An attention problem as tensors, and the calls that are timed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatework.bench.attention.expressions import parse_mask
from gatework.bench.attention.plan import DTYPES, BenchPlan, Problem
from gatework.bench.memory import Calls
from gatework.masks import Causal, Full, Mask, SlidingWindow
from gatework.ops.attention import attention

#: Bytes that an engine over all pairs needs for each, in the dtype of the inputs: scores and their softmax,
#: and their gradients.
_SCORES = {"forward": 3, "backward": 5, "both": 5}
#: Length of the small call that loads and compiles code before memory is measured.
_SMALL = 256


class Tensors(NamedTuple):
    """Inputs of one problem, and a gradient of its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor


class Shape(NamedTuple):
    """The sizes that a problem does not state: they are the same for the whole benchmark."""

    batch_size: int
    num_heads: int
    num_kv_heads: int

    @classmethod
    def of(cls, plan: BenchPlan) -> Shape:
        """The sizes of a plan."""
        return cls(plan.batch_size, plan.num_heads, plan.num_kv_heads)


def make_tensors(problem: Problem, shape: Shape) -> Tensors:
    """Draw standard normal inputs, the same in every process."""
    seed = hashlib.sha256(repr((problem, shape)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:4], "big"))
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads, shape.num_heads)
    sizes = [(shape.batch_size, count, problem.length, problem.head_dim) for count in heads]
    drawn = [torch.randn(size, generator=generator).to(DTYPES[problem.dtype]) for size in sizes]
    return Tensors(*drawn)


def timed(kind: str, tensors: Tensors, mask: Mask | None, engine: str) -> Callable[[], float]:
    """Return a function that does one pass and returns the seconds it took.

    A backward pass needs a forward pass before it, which is not timed.

    Args:
        kind: ``"forward"``, ``"backward"`` or ``"both"``.
        tensors: The inputs.
        mask: The mask; ``None`` for attention over all pairs.
        engine: Name of the engine.
    """
    if kind == "forward":
        return lambda: _forward(tensors, mask, engine)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:3]]

    def train() -> float:
        start = time.perf_counter()
        output = attention(*leaves, mask=mask, engine=engine)
        between = time.perf_counter()
        torch.autograd.grad(output, leaves, tensors.grad)
        end = time.perf_counter()
        return end - (start if kind == "both" else between)

    return train


def _forward(tensors: Tensors, mask: Mask | None, engine: str) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        attention(*tensors[:3], mask=mask, engine=engine)
        return time.perf_counter() - start


def needed_bytes(engine: str, kind: str, problem: Problem, shape: Shape, mask: Mask) -> int:
    """Estimate the bytes that an engine needs for all pairs of queries and keys at once; 0 if it does not.

    The definition holds the scores of every head. The dense engine holds the mask, once as booleans and once
    as the numbers that PyTorch's kernels add to the scores, unless they know the mask themselves.
    """
    pairs, itemsize = problem.length**2, DTYPES[problem.dtype].itemsize
    if engine == "reference":
        return shape.batch_size * shape.num_heads * pairs * (_SCORES[kind] * itemsize + 1)
    if engine == "dense" and not isinstance(mask, Full | Causal):
        return (mask.batch_size or 1) * (mask.num_heads or 1) * pairs * (itemsize + 1)
    return 0


def prepare_memory(description: Mapping[str, Any]) -> Calls:
    """Make the calls whose memory is measured; for :class:`~gatework.bench.memory.PeakMeter`.

    Args:
        description: ``problem`` and ``shape`` as lists of their fields, ``kind`` and ``engine``.
    """
    problem, shape = Problem(*description["problem"]), Shape(*description["shape"])
    kind, engine = description["kind"], description["engine"]
    tensors, mask = make_tensors(problem, shape), parse_mask(problem.expression, problem.length)
    small = make_tensors(problem._replace(length=min(_SMALL, problem.length)), shape)
    return lambda: _warm_up(kind, small, engine), timed(kind, tensors, mask, engine)


def _warm_up(kind: str, tensors: Tensors, engine: str) -> None:
    """Run an engine once, on whichever of some simple masks it takes."""
    for mask in (SlidingWindow(16, 16), Causal(), Full()):
        with suppress(ValueError):
            timed(kind, tensors, mask, engine)()
            return
