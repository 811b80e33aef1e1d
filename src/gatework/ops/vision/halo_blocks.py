"""The operator under halo attention: one window of keys per block of queries, forward and backward.

The map is cut into blocks; all queries of a block share one rectangle of keys, of which the part that lies
on the map is read. Nothing larger than a few blocks of scores exists at any time, and the scores are
recomputed in the backward pass, so that memory is linear in the size of the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Scores that are in flight at once: few enough to stay in a CPU's cache, enough to fill a GPU.
_SCORES_IN_FLIGHT = {"cpu": 2**20}
_SCORES_IN_FLIGHT_ELSEWHERE = 2**26

#: The scores are kept in units of log 2: exp2 takes half the time of exp.
_LOG2E = math.log2(math.e)

#: The arguments of the operators, written out: PyTorch cannot read annotations through a decorator.
_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? down, Tensor? across, Tensor? padding, float scale, SymInt[] sizes"
)


class Axis(NamedTuple):
    """How one axis of a map is cut.

    Attributes:
        block: Keys from the start of a window to the start of the next.
        queries: Queries in a block.
        window: Keys in a window.
        origin: Where the window of the first block starts on the map of keys; 0 or less.
    """

    block: int
    queries: int
    window: int
    origin: int


class Run(NamedTuple):
    """Neighbouring blocks along one axis that read the same part ``low:high`` of their windows."""

    first: int
    blocks: int
    low: int
    high: int
    queries: int


def runs(axis: Axis, q_length: int, kv_length: int) -> list[Run]:
    """Group the blocks of an axis by the part of their windows that lies on the map."""
    found: list[Run] = []
    for index in range(-(-q_length // axis.queries)):
        start = index * axis.block + axis.origin
        low, high = max(0, -start), min(axis.window, kv_length - start)
        queries = min(axis.queries, q_length - index * axis.queries)
        if found and found[-1][2:] == (low, high, queries):
            found[-1] = found[-1]._replace(blocks=found[-1].blocks + 1)
        else:
            found.append(Run(index, 1, low, high, queries))
    return found


class Chunk(NamedTuple):
    """Blocks that are computed together: sequences ``batch``, and a run of blocks along each axis."""

    batch: slice
    axes: tuple[Axis, Axis]
    parts: tuple[Run, Run]

    def queries(self, tensor: Tensor) -> Tensor:
        """View (batch, heads, rows, columns, queries down, queries across, dim) of a map of queries."""
        for dim, axis, part in zip((2, 4), self.axes, self.parts, strict=True):
            start = part.first * axis.queries
            tensor = tensor.narrow(dim, start, part.blocks * part.queries)
            tensor = tensor.unflatten(dim, (part.blocks, part.queries))
        return tensor[self.batch].transpose(3, 4)

    def keys(self, tensor: Tensor) -> Tensor:
        """View (batch, heads, rows, columns, keys down, keys across, dim), windows overlapping."""
        for dim, axis, part in zip((2, 3), self.axes, self.parts, strict=True):
            size = part.high - part.low
            start = part.first * axis.block + axis.origin + part.low
            tensor = tensor.narrow(dim, start, (part.blocks - 1) * axis.block + size)
            tensor = tensor.unfold(dim, size, axis.block)
        return tensor[self.batch].permute(0, 1, 2, 3, 5, 6, 4)

    def windows(self, tensor: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """The windows of :meth:`keys` one by one, as parts of the map that can be added to."""
        (down, across), (rows, columns) = self.axes, self.parts
        tensor = tensor[self.batch]
        for row, column in itertools.product(range(rows.blocks), range(columns.blocks)):
            y = (rows.first + row) * down.block + down.origin
            x = (columns.first + column) * across.block + across.origin
            yield (
                (row, column),
                tensor[:, :, y + rows.low : y + rows.high, x + columns.low : x + columns.high],
            )


def chunks(q: Tensor, k: Tensor, axes: tuple[Axis, Axis]) -> Iterator[Chunk]:
    """Cut the work into pieces whose scores fit into the memory there is."""
    most = _SCORES_IN_FLIGHT.get(q.device.type, _SCORES_IN_FLIGHT_ELSEWHERE)
    parts = [runs(axis, q.shape[dim], k.shape[dim]) for dim, axis in zip((2, 3), axes, strict=True)]
    for down, across in itertools.product(*parts):
        scores = q.shape[1] * down.queries * across.queries
        scores *= (down.high - down.low) * (across.high - across.low)
        sequences = min(q.shape[0], max(1, most // max(scores, 1)))
        blocks = max(1, most // max(scores * sequences, 1))
        columns = min(across.blocks, blocks)
        rows = min(down.blocks, max(1, blocks // columns))
        pieces = itertools.product(
            range(0, q.shape[0], max(sequences, 1)), _cut(down, rows), _cut(across, columns)
        )
        for start, rows_now, columns_now in pieces:
            yield Chunk(slice(start, start + sequences), axes, (rows_now, columns_now))


def _cut(run: Run, most: int) -> Iterator[Run]:
    for start in range(0, run.blocks, most):
        yield run._replace(first=run.first + start, blocks=min(most, run.blocks - start))


class Workspace:
    """Memory that one chunk after the other uses: fresh pages for each would cost as much as the work."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._expansions: dict[tuple[int, ...], Tensor] = {}

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A tensor of that shape with anything in it, valid until its name is asked for again."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)

    def expansion(self, height: int, width: int, padded: bool, extra: int) -> Tensor:
        """The matrix that carries what belongs to a row or a column of a window to each of its keys.

        Its rows are the rows of the window, its columns, the padding if there is any, and ``extra`` rows of
        ones; its columns are the keys, the padding last.
        """
        shape = (height, width, int(padded), extra)
        if shape not in self._expansions:
            keys = height * width
            expansion = self._like.new_zeros(height + width + padded + extra, keys + padded)
            rows, columns = (torch.eye(size, device=expansion.device) for size in (height, width))
            expansion[:height, :keys] = rows.repeat_interleave(width, 1)
            expansion[height : height + width, :keys] = columns.repeat(1, height)
            expansion[height + width :, keys:] = 1
            expansion[len(expansion) - extra :] = 1
            self._expansions[shape] = expansion
        return self._expansions[shape]


class _Inputs(NamedTuple):
    """The tensors of a call; see :func:`halo_blocks`."""

    q: Tensor
    k: Tensor
    v: Tensor
    down: Tensor | None
    across: Tensor | None
    padding: Tensor | None
    scale: float


class _Gathered(NamedTuple):
    """What a chunk needs, side by side: one matrix per block and head."""

    q: Tensor
    k: Tensor
    v: Tensor
    biases: Tensor
    expansion: Tensor


def _gather(inputs: _Inputs, chunk: Chunk, workspace: Workspace, lse: Tensor | None) -> _Gathered:
    """Copy queries, keys, values and the terms of the bias; padding is a key and a value of zeros."""
    padded = int(inputs.padding is not None)
    keys, values = chunk.keys(inputs.k), chunk.keys(inputs.v)
    shape, (height, width) = keys.shape[:4], keys.shape[4:6]
    blocks, count = math.prod(shape), height * width + padded
    q = chunk.queries(inputs.q)
    queries = q.shape[4] * q.shape[5]
    own_q = workspace.buffer("q", blocks, queries, q.shape[-1])
    own_q.view(q.shape).copy_(q)
    own_k = workspace.buffer("k", blocks, count, keys.shape[-1])
    own_v = workspace.buffer("v", blocks, count, values.shape[-1])
    real = height * width
    own_k[:, :real].unflatten(0, shape).unflatten(4, (height, width)).copy_(keys)
    own_v[:, :real].unflatten(0, shape).unflatten(4, (height, width)).copy_(values)
    if padded:
        own_k[:, real:], own_v[:, real:] = 0, 0

    extra = int(lse is not None)
    expansion = workspace.expansion(height, width, bool(padded), extra)
    biases = workspace.buffer("biases", *q.shape[:-1], len(expansion))
    for tensor, part, start in ((inputs.down, chunk.parts[0], 0), (inputs.across, chunk.parts[1], height)):
        own = biases[..., start : start + part.high - part.low]
        own.copy_(chunk.queries(tensor)[..., part.low : part.high]) if tensor is not None else own.zero_()
    if inputs.padding is not None:
        biases[..., height + width].copy_(chunk.queries(inputs.padding[..., None])[..., 0])
    biases.mul_(_LOG2E)
    if lse is not None:
        biases[..., -1] = chunk.queries(lse[..., None])[..., 0] * -_LOG2E
    return _Gathered(own_q, own_k, own_v, biases.view(blocks * queries, -1), expansion)


def _scores(gathered: _Gathered, workspace: Workspace, scale: float) -> Tensor:
    """``scale * q . k`` and the biases, in units of log 2."""
    q, k = gathered.q, gathered.k
    scores = workspace.buffer("scores", q.shape[0], q.shape[1], k.shape[1])
    torch.mm(gathered.biases, gathered.expansion, out=scores.view(-1, k.shape[1]))
    return scores.baddbmm_(q, k.mT, alpha=scale * _LOG2E)


@torch.library.custom_op("gatework::halo_blocks", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)")
def halo_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    down: Tensor | None,
    across: Tensor | None,
    padding: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Attend from every block of queries to its window: ``softmax(scale * q . k + down + across) v``.

    Args:
        q: Queries, (batch, heads, q_height, q_width, head_dim).
        k: Keys, (batch, heads, height, width, head_dim).
        v: Values, (batch, heads, height, width, value_dim).
        down: What is added to the scores of row ``j`` of the window, (..., q_height, q_width, window height).
        across: The same for its columns.
        padding: Logit that takes part in the softmax and has no value, (batch, heads, q_height, q_width);
            finite.
        scale: Factor on ``q . k``.
        sizes: The two :class:`Axis`, one after the other.

    Returns:
        The outputs, and the log-sum-exp of the logits.
    """
    inputs, workspace = _Inputs(q, k, v, down, across, padding, scale), Workspace(q)
    out, lse = _outputs(q, v)
    for chunk in chunks(q, k, _axes(sizes)):
        gathered = _gather(inputs, chunk, workspace, None)
        scores = _scores(gathered, workspace, scale)
        highest = scores.amax(-1, keepdim=True)
        scores.sub_(highest).exp2_()
        total = scores.sum(-1, keepdim=True)
        mixed = torch.bmm(scores, gathered.v, out=workspace.buffer("mixed", *scores.shape[:2], v.shape[-1]))
        own = chunk.queries(out)
        own.copy_(mixed.div_(total).view(own.shape))
        own_lse = chunk.queries(lse[..., None])
        own_lse.copy_(((highest + total.log2()) / _LOG2E).view(own_lse.shape))
    return out, lse


@torch.library.custom_op(
    "gatework::halo_blocks_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor out, Tensor lse, {_INPUTS}) -> ({', '.join(['Tensor'] * 6)})",
)
def halo_blocks_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    down: Tensor | None,
    across: Tensor | None,
    padding: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`halo_blocks` for its six tensors; empty ones where there is no tensor."""
    inputs, workspace = _Inputs(q, k, v, down, across, padding, scale), Workspace(q)
    grads = _gradients(q, k, v, down, across, padding)
    for tensor in grads:
        tensor.zero_()  # windows add up, and a bias is not read where the window leaves the map
    delta = (grad * out).sum(-1)
    for chunk in chunks(q, k, _axes(sizes)):
        _chunk_backward(chunk, inputs, workspace, grad, delta, lse, grads)
    return grads


def _chunk_backward(
    chunk: Chunk,
    inputs: _Inputs,
    workspace: Workspace,
    grad: Tensor,
    delta: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """Add the gradients of one chunk: with weights ``p``, ``ds = p * (grad . v - grad . out)``."""
    gathered = _gather(inputs, chunk, workspace, lse)
    weights = _scores(gathered, workspace, inputs.scale).exp2_()
    own = chunk.queries(grad)
    blocks, queries, value_dim = weights.shape[0], weights.shape[1], own.shape[-1]
    incoming = workspace.buffer("incoming", blocks, queries, value_dim)
    incoming.view(own.shape).copy_(own)
    d_scores = torch.bmm(incoming, gathered.v.mT, out=workspace.buffer("d_scores", *weights.shape))
    d_scores.sub_(chunk.queries(delta[..., None]).reshape(blocks, queries, 1)).mul_(weights)

    d_q = torch.bmm(d_scores, gathered.k, out=workspace.buffer("d_q", *gathered.q.shape)).mul_(inputs.scale)
    chunk.queries(grads[0]).copy_(d_q.view(*own.shape[:-1], -1))
    d_k = torch.bmm(d_scores.mT, gathered.q, out=workspace.buffer("d_k", *gathered.k.shape)).mul_(
        inputs.scale
    )
    d_v = torch.bmm(weights.mT, incoming, out=workspace.buffer("d_v", *gathered.v.shape))
    height, width = (part.high - part.low for part in chunk.parts)
    for target, windows in ((grads[1], d_k), (grads[2], d_v)):
        windows = windows[:, : height * width].unflatten(1, (height, width))
        windows = windows.unflatten(0, (own.shape[0], own.shape[1], own.shape[2], own.shape[3]))
        for (row, column), place in chunk.windows(target):
            place.add_(windows[:, :, row, column])

    if inputs.down is None and inputs.across is None and inputs.padding is None:
        return
    d_biases = torch.mm(d_scores.view(-1, d_scores.shape[-1]), gathered.expansion.mT)
    d_biases = d_biases.view(*own.shape[:-1], -1)
    for tensor, part, start in ((grads[3], chunk.parts[0], 0), (grads[4], chunk.parts[1], height)):
        if tensor.ndim == 5:
            size = part.high - part.low
            chunk.queries(tensor)[..., part.low : part.high].copy_(d_biases[..., start : start + size])
    if inputs.padding is not None:
        chunk.queries(grads[5][..., None])[..., 0].copy_(d_biases[..., height + width])


def _axes(sizes: Sequence[int]) -> tuple[Axis, Axis]:
    return Axis(*sizes[:4]), Axis(*sizes[4:])


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for outputs, with the heads of a pixel together as a projection wants them, and log-sum-exp."""
    batch, heads, height, width = q.shape[:4]
    out = v.new_empty(batch, height, width, heads, v.shape[-1]).permute(0, 3, 1, 2, 4)
    return out, q.new_empty(batch, heads, height, width)


def _gradients(*tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    first = tensors[0]
    assert first is not None, "queries are always given"
    q, k, v, *biases = (
        first.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in tensors
    )
    return q, k, v, biases[0], biases[1], biases[2]


@halo_blocks.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    down: Tensor | None,
    across: Tensor | None,
    padding: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@halo_blocks_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    down: Tensor | None,
    across: Tensor | None,
    padding: Tensor | None,
    scale: float,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients(q, k, v, down, across, padding)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.sizes = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    grads = halo_blocks_backward(grad, out, lse, *tensors, ctx.scale, ctx.sizes)
    return *(None if t is None else g for t, g in zip(tensors, grads, strict=True)), None, None


halo_blocks.register_autograd(_backward, setup_context=_save)
