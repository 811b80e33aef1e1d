"""The gate before any timing: an engine must give the right numbers first.

What is right is :func:`~gatework.ops.attention.attention_reference` in float64, on the very inputs. Of long
sequences a sample of query rows is computed, over all keys: those rows of the output are exact. The gradient
of the output is zero in all other rows, so that the gradients of queries, keys and values can be checked
everywhere: they are exact too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gatework.bench.attention.problem import Tensors
from gatework.masks import Mask
from gatework.ops.attention import attention, attention_reference

#: Up to so many queries all are checked; of more, so many are sampled.
ALL_ROWS = 512
SAMPLED_ROWS = 128
#: Largest error that passes, as a share of the largest right value: what rounding explains, with room for
#: another order of summation.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.float16: 8e-3,
    torch.bfloat16: 4e-2,
}


class Verdict(NamedTuple):
    """What the gate found.

    Attributes:
        errors: Largest error of each result, as a share of its largest right value; ``None`` if a number
            is not finite.
        tolerance: What passes.
        first_call: Seconds of the engine's first call, which may plan or compile.
    """

    errors: dict[str, float | None]
    tolerance: float
    first_call: float

    @property
    def wrong(self) -> str | None:
        """What is wrong, in words; ``None`` if all is right."""
        for name, error in self.errors.items():
            if error is None:
                return f"{name} has numbers that are not finite"
            if error > self.tolerance:
                return (
                    f"{name} is off by {error:.2g} of its largest value, "
                    f"where {self.tolerance:.0e} would pass"
                )
        return None


def sample_rows(length: int) -> Tensor:
    """Choose the query rows to check: all of a short sequence, else the ends and one of each stretch."""
    if length <= ALL_ROWS:
        return torch.arange(length)
    edges = torch.linspace(0, length, SAMPLED_ROWS - 1).round().long()
    spread = torch.rand(SAMPLED_ROWS - 2, generator=torch.Generator().manual_seed(0))
    inner = edges[:-1] + (spread * (edges[1:] - edges[:-1])).long()
    rows: Tensor = torch.cat([torch.tensor([0]), inner, torch.tensor([length - 1])]).unique()
    return rows


class Gate:
    """The right numbers of one problem, which every engine is held to.

    Args:
        tensors: The inputs.
        mask: The mask.
    """

    def __init__(self, tensors: Tensors, mask: Mask) -> None:
        self._tensors = tensors
        self._mask = mask
        self._rows = sample_rows(tensors.q.shape[2])
        self._grad = torch.zeros_like(tensors.grad)
        self._grad[:, :, self._rows] = tensors.grad[:, :, self._rows]
        self._right: dict[bool, dict[str, Tensor]] = {}

    def check(self, engine: str, *, gradients: bool) -> Verdict:
        """Compare an engine's numbers with the right ones.

        Args:
            engine: Name of the engine.
            gradients: Also compare gradients; without, the engine runs under ``no_grad``, as it is timed.

        Raises:
            ValueError: If the engine refuses what it is asked.
        """
        start = time.perf_counter()
        found = self._found(engine, gradients=gradients)
        first_call = time.perf_counter() - start
        if gradients not in self._right:
            self._right[gradients] = self._definition(gradients=gradients)
        right = self._right[gradients]
        errors = {name: _error(found[name], right[name]) for name in right}
        if not _all_finite(found["all outputs"]):
            errors["output"] = None
        return Verdict(errors, TOLERANCES[self._tensors.q.dtype], first_call)

    def _found(self, engine: str, *, gradients: bool) -> dict[str, Tensor]:
        inputs = [tensor.detach().requires_grad_(gradients) for tensor in self._tensors[:3]]
        with torch.set_grad_enabled(gradients):
            output = attention(*inputs, mask=self._mask, engine=engine)
        found = {"output": output.detach()[:, :, self._rows], "all outputs": output.detach()}
        if gradients:
            names = ("gradient of q", "gradient of k", "gradient of v")
            found |= dict(zip(names, torch.autograd.grad(output, inputs, self._grad), strict=True))
        return found

    def _definition(self, *, gradients: bool) -> dict[str, Tensor]:
        """The right numbers, one group of heads that share keys after the other, to bound memory."""
        q, k, v = (tensor.detach().double() for tensor in self._tensors[:3])
        q, grad = q[:, :, self._rows], self._grad[:, :, self._rows].double()
        allowed = self._mask.pairs(self._rows, torch.arange(k.shape[2]))
        groups = q.shape[1] // k.shape[1]
        allowed = allowed.expand(*q.shape[:3], k.shape[2])
        output = torch.empty_like(q)
        slopes = [torch.zeros_like(tensor) for tensor in (q, k, v)]
        for batch in range(q.shape[0]):
            for head in range(k.shape[1]):
                heads = slice(head * groups, (head + 1) * groups)
                places = [(batch, heads), (batch, slice(head, head + 1)), (batch, slice(head, head + 1))]
                parts = [
                    tensor[place][None].requires_grad_(gradients)
                    for tensor, place in zip((q, k, v), places, strict=True)
                ]
                y, _ = attention_reference(*parts, mask=allowed[batch, heads][None])
                output[batch, heads] = y.detach()[0]
                if gradients:
                    pieces = torch.autograd.grad(y, parts, grad[batch, heads][None])
                    for slope, place, piece in zip(slopes, places, pieces, strict=True):
                        slope[place] = piece[0]
        if not gradients:
            return {"output": output}
        grad_q = torch.zeros(self._tensors.q.shape, dtype=torch.float64)
        grad_q[:, :, self._rows] = slopes[0]
        names = ("output", "gradient of q", "gradient of k", "gradient of v")
        return dict(zip(names, (output, grad_q, *slopes[1:]), strict=True))


def _error(found: Tensor, right: Tensor) -> float | None:
    """The largest difference, as a share of the largest right value; of zeros, the difference itself."""
    if not _all_finite(found):
        return None
    if not right.numel():
        return 0.0
    scale = float(right.abs().max()) or 1.0
    return float((found.double() - right).abs().max()) / scale


def _all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
