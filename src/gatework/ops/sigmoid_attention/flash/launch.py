"""How the kernels of FlashSigmoid are launched: their arguments, and the sizes of their tiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatework.ops.sigmoid_attention.flash.blocks import BlockLists


class Strided(NamedTuple):
    """A tensor as kernels take it; the stride of the last axis of queries, keys and values is 1."""

    data: Any
    strides: tuple[Any, ...]


class Scores(NamedTuple):
    """What makes a score besides a query and a key; ``scale_log2`` is the scale times log2(e)."""

    row_bias: Strided
    pair_bias: Strided | None
    slopes: Strided | None
    query_offset: Any
    scale: Any
    scale_log2: Any


class Sizes(NamedTuple):
    """Query heads, query heads to a head of keys, and lengths."""

    heads: Any
    groups: Any
    q_length: Any
    kv_length: Any


class Tile(NamedTuple):
    """The size of a tile, and how a kernel is compiled for it."""

    rows: int
    columns: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the three kernels; the first two share lists of tiles, and so the sizes."""

    forward: Tile
    backward_queries: Tile
    backward_keys: Tile


# Nothing could be measured where this was written, so nothing is tuned. These are large tiles with which, as
# benchmarks/flash_sigmoid_cubin.py prints, kernels keep all that they compute with in registers (halves of up
# to 128 channels, compute capability 8.0 and 9.0), but for a few bytes where every option is used at once.
_HALVES = {
    32: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(32, 32, 4, 2)),
    64: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 64, 4, 2)),
    128: Tiles(Tile(128, 32, 8, 3), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2)),
    256: Tiles(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 1)),
}
_SINGLES = {
    64: Tiles(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
    128: Tiles(Tile(32, 16, 8, 2), Tile(32, 16, 8, 2), Tile(16, 32, 8, 1)),
    256: Tiles(Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)),
}


def tiles(head_dim: int, value_dim: int, dtype: torch.dtype) -> Tiles:
    """Return the sizes of tiles for heads of these dimensions, at most 256."""
    table = _SINGLES if dtype == torch.float32 else _HALVES
    return table[next(most for most in table if max(head_dim, value_dim) <= most)]


@functools.cache
def is_interpreted() -> bool:
    """Tell whether kernels are run by Triton's interpreter, which is settled when they are defined."""
    from triton.runtime.interpreter import InterpretedFunction

    from gatework.ops.sigmoid_attention.flash import kernels

    return isinstance(kernels.forward, InterpretedFunction)


class Call(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: Its name in :mod:`gatework.ops.sigmoid_attention.flash.kernels`.
        programs: How many of it run, one for each block of queries, or of keys.
        arguments: What it reads and writes.
        options: What it is compiled for, by name.
    """

    kernel: str
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch the kernel on the device of its tensors."""
        from gatework.ops.sigmoid_attention.flash import kernels

        with torch.cuda.device_of(self.arguments[0].data):
            getattr(kernels, self.kernel)[(self.programs,)](*self.arguments, **self.options)


def forward(
    q: Tensor, k: Tensor, v: Tensor, scores: Scores, lists: Sequence[Tensor], size: Tiles
) -> tuple[Tensor, Call]:
    """Return memory for the outputs, and the call that computes them; nothing may be empty."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    arguments = (*map(strided, (q, k, v, out)), scores, _listed(lists), _sizes(q, k))
    tile = size.forward
    return out, Call("forward", _blocks(q, tile.rows), arguments, _options(q, v, tile))


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    scores: Scores,
    lists: Sequence[Tensor],
    key_lists: Sequence[Tensor],
    size: Tiles,
    *,
    needs_row_grad: bool,
) -> tuple[list[Tensor], list[Call]]:
    """Return memory for gradients, and the calls that compute them.

    The gradients are those of q, k and v and, if asked for, of what is added to each row of scores.
    """
    grads = [part.new_empty(part.shape) for part in (q, k, v)]
    rows = [q.new_empty(q.shape[:3], dtype=torch.float32)] if needs_row_grad else []
    inputs = tuple(map(strided, (q, k, v, grad)))
    grad_q, grad_k, grad_v = map(strided, grads)
    sizes = _sizes(q, k)
    query_arguments = (*inputs, grad_q, rows[0] if rows else None, scores, _listed(lists), sizes)
    key_arguments = (*inputs, grad_k, grad_v, scores, _listed(key_lists), sizes)
    tile, other = size.backward_queries, size.backward_keys
    return [*grads, *rows], [
        Call("backward_queries", _blocks(q, tile.rows), query_arguments, _options(q, v, tile)),
        Call("backward_keys", _blocks(k, other.columns), key_arguments, _options(q, v, other)),
    ]


def scoring(
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    query_offset: int,
    scale: float,
) -> Scores:
    """Put together what makes scores; biases of rank 3 and 4 and slopes of rank 2 broadcast."""
    return Scores(
        _broadcasting(row_bias),
        None if pair_bias is None else _broadcasting(pair_bias),
        None if slopes is None else _broadcasting(slopes),
        query_offset,
        scale,
        scale * math.log2(math.e),
    )


def strided(tensor: Tensor) -> Strided:
    """Take a tensor ``(batch, heads, length, dim)`` as it lies in memory, if its channels are neighbours."""
    if tensor.shape[3] > 1 and tensor.stride(3) != 1:
        tensor = tensor.contiguous()
    return Strided(tensor, tensor.stride()[:3])


def _broadcasting(tensor: Tensor) -> Strided:
    """Strides of a tensor that every axis of size 1 broadcasts."""
    return Strided(
        tensor, tuple(s if size > 1 else 0 for s, size in zip(tensor.stride(), tensor.shape, strict=True))
    )


def _listed(lists: Sequence[Tensor]) -> BlockLists | None:
    """Lists as kernels take them: whatever axis of the patterns is of size 1 broadcasts."""
    if not lists:
        return None
    pattern_of, *others = lists
    return BlockLists(_broadcasting(pattern_of), *others)  # type: ignore[arg-type]


def _options(q: Tensor, v: Tensor, tile: Tile) -> dict[str, Any]:
    """What a kernel is compiled for."""
    # The tensor cores would round float32 to 10 bits; for other dtypes "tf32" says nothing.
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    if q.dtype == torch.bfloat16 and is_interpreted():
        precision = "widened"  # the interpreter takes bfloat16 for integers where it multiplies matrices
    return {
        "HEAD_DIM": q.shape[3],
        "HEAD_WIDTH": _width(q.shape[3]),
        "VALUE_DIM": v.shape[3],
        "VALUE_WIDTH": _width(v.shape[3]),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "PRECISION": precision,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _sizes(q: Tensor, k: Tensor) -> Sizes:
    return Sizes(q.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2])


def _blocks(tensor: Tensor, size: int) -> int:
    """How many blocks there are in all sequences and heads."""
    return tensor.shape[0] * tensor.shape[1] * -(-tensor.shape[2] // size)


def _width(dim: int) -> int:
    """The least power of two that matrix products of this many channels take."""
    return max(16, 1 << (dim - 1).bit_length())
