"""Documents packed into the rows of a batch: where each one lies, and how mixers read each one alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from gatework.masks import CausalDocument

_Ints = NDArray[np.int64]

#: What a group by itself costs a mixer (calls, small operators), in positions that it reads in the same time.
_GROUP_COST = 256
#: Lengths that are told apart when groups are made, which takes time by the square of their number.
_MOST_LENGTHS = 256


class _Places(NamedTuple):
    """Where in one matrix the rows of another come from, and which of these are zeros."""

    source: Tensor
    empty: Tensor

    @classmethod
    def make(cls, index: _Ints, device: torch.device) -> _Places:
        """From indices that are -1 where there is nothing to take."""
        empty = np.flatnonzero(index < 0)
        places = torch.from_numpy(np.maximum(index, 0)), torch.from_numpy(empty)
        return cls(*(each.to(device) for each in places))

    def take(self, x: Tensor) -> Tensor:
        """Return the rows of ``x`` in the new order."""
        if len(x) == 0:
            return x.new_zeros(len(self.source), *x.shape[1:])
        y = x.index_select(0, self.source)
        return y.index_fill_(0, self.empty, 0) if len(self.empty) else y


class _Rearrange(torch.autograd.Function):
    """``places.take(x)`` where no row is taken twice: the gradient takes the rows back, which is as fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: _Places, back: _Places) -> Tensor:
        ctx.places, ctx.back = places, back
        return places.take(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Rearrange.apply(grad, ctx.back, ctx.places), None, None


def _rearranged(x: Tensor, places: _Places, back: _Places) -> Tensor:
    y: Tensor = _Rearrange.apply(x, places, back)
    return y


class _Layout(NamedTuple):
    """A way to lay all documents out in one matrix.

    Attributes:
        to: Which position of the rows each row of the matrix is.
        back: Which row of the matrix each position is.
        shapes: Number and longest length of the documents of each group, one after another in the matrix.
    """

    to: _Places
    back: _Places
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class PackedDocuments:
    """The documents in the rows of one batch; made once per batch, used by all layers.

    Attributes:
        rows: Number of rows.
        row_length: Positions of a row, padding included.
        starts: Where each document begins in all rows laid end to end.
        lengths: Tokens of each document; none goes on in the next row.
        positions: Place of each position in its document, counted from 0; 0 at padding.
    """

    rows: int
    row_length: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    positions: Int[Tensor, "rows length"]

    @classmethod
    def from_seq_idx(cls, seq_idx: Int[Tensor, "rows length"]) -> PackedDocuments:
        """Find the documents: stretches of one number along a row.

        Args:
            seq_idx: Number of the document that each position belongs to, -1 at padding. A new document
                begins wherever the number changes along a row, also where it has occurred before, and with
                every row.

        Raises:
            TypeError: If ``seq_idx`` does not hold integers.
            ValueError: If it has another rank than 2, or a number below -1.
        """
        if seq_idx.is_floating_point() or seq_idx.is_complex() or seq_idx.dtype == torch.bool:
            raise TypeError(f"seq_idx must hold the integer numbers of documents, got {seq_idx.dtype}")
        if seq_idx.ndim != 2:
            raise ValueError(f"seq_idx must have shape (rows, length), got {tuple(seq_idx.shape)}")
        numbers = seq_idx.detach().cpu().numpy()
        if numbers.size and numbers.min() < -1:
            raise ValueError(f"seq_idx must be at least 0, or -1 at padding, got {numbers.min()}")
        begins = np.ones(numbers.shape, dtype=bool)
        begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=numbers.size)
        positions = np.arange(numbers.size) - starts.repeat(lengths)
        positions[numbers.reshape(-1) < 0] = 0
        real = numbers.reshape(-1)[starts] >= 0
        return cls(
            numbers.shape[0],
            numbers.shape[1],
            tuple(starts[real].tolist()),
            tuple(lengths[real].tolist()),
            torch.from_numpy(positions).reshape(numbers.shape).to(seq_idx.device),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, padding not counted."""
        return sum(self.lengths)

    @property
    def are_whole_rows(self) -> bool:
        """Whether every row is one document without padding: nothing has to be rearranged."""
        return self.lengths == (self.row_length,) * self.rows

    @cached_property
    def mask(self) -> CausalDocument:
        """Who may attend to whom in the stream: the past of the same document."""
        return CausalDocument(self.lengths)

    @cached_property
    def concatenated_positions(self) -> Int[Tensor, " tokens"]:
        """Place of each token of the stream in its document."""
        if self.num_tokens == self.positions.numel():
            return self.positions.reshape(-1)
        return self._concatenated.to.take(self.positions.reshape(-1))

    def concatenate(self, x: Float[Tensor, "rows length channels"]) -> Float[Tensor, "one tokens channels"]:
        """Lay all documents end to end in one row, without padding."""
        flat = x.flatten(0, 1)
        if self.num_tokens < flat.shape[0]:
            flat = _rearranged(flat, self._concatenated.to, self._concatenated.back)
        return flat.unsqueeze(0)

    def split_to_rows(self, y: Float[Tensor, "one tokens channels"]) -> Float[Tensor, "rows length channels"]:
        """Bring the tokens of :meth:`concatenate` back to their rows, with zeros at padding."""
        flat = y.squeeze(0)
        if self.num_tokens < self.rows * self.row_length:
            flat = _rearranged(flat, self._concatenated.back, self._concatenated.to)
        return flat.reshape(self.rows, self.row_length, *flat.shape[1:])

    def group(self, x: Tensor) -> list[Tensor]:
        """Pad the documents in groups of similar lengths, on the right with zeros.

        There are as many groups as make the time for padding, and for a group by itself, least together.

        Args:
            x: A number or some channels for each position, ``(rows, length, ...)``.

        Returns:
            One tensor ``(documents, longest, ...)`` per group, at least one.
        """
        if self.are_whole_rows:
            return [x]
        layout = self._groups
        flat = _rearranged(x.flatten(0, 1), layout.to, layout.back)
        parts = flat.split([count * longest for count, longest in layout.shapes])
        return [
            part.reshape(*shape, *part.shape[1:]) for part, shape in zip(parts, layout.shapes, strict=True)
        ]

    def ungroup(self, parts: Sequence[Tensor]) -> Tensor:
        """Bring what became of the groups of :meth:`group` back to its rows, with zeros at padding."""
        if self.are_whole_rows:
            return parts[0]
        flat = torch.cat([part.flatten(0, 1) for part in parts]) if len(parts) > 1 else parts[0].flatten(0, 1)
        flat = _rearranged(flat, self._groups.back, self._groups.to)
        return flat.reshape(self.rows, self.row_length, *flat.shape[1:])

    @cached_property
    def _concatenated(self) -> _Layout:
        starts = np.cumsum((0, *self.lengths))[:-1]
        return self._layout(starts, self.num_tokens, ((1, self.num_tokens),))

    @cached_property
    def _groups(self) -> _Layout:
        lengths = np.array(self.lengths, dtype=np.int64)
        order = lengths.argsort(kind="stable")
        starts, shapes, size = np.zeros_like(lengths), [], 0
        for group in np.split(order, _cuts(lengths[order])):
            count, longest = len(group), int(lengths[group].max(initial=0))
            starts[group] = size + np.arange(count) * longest
            shapes.append((count, longest))
            size += count * longest
        return self._layout(starts, size, tuple(shapes))

    def _layout(self, starts: _Ints, size: int, shapes: tuple[tuple[int, int], ...]) -> _Layout:
        """A layout in a matrix of ``size`` rows, where each document begins at its row of ``starts``."""
        lengths = np.array(self.lengths, dtype=np.int64)
        offsets = np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)
        source = np.array(self.starts, dtype=np.int64).repeat(lengths) + offsets
        target = starts.repeat(lengths) + offsets
        to, back = np.full(size, -1), np.full(self.rows * self.row_length, -1)
        to[target], back[source] = source, target
        device = self.positions.device
        return _Layout(_Places.make(to, device), _Places.make(back, device), shapes)


def _cuts(lengths: _Ints) -> list[int]:
    """Where to cut increasing lengths into groups so that padding and groups together cost least."""
    steps = lengths
    if len(lengths) and len(np.unique(lengths)) > _MOST_LENGTHS:
        step = -(-int(lengths[-1]) // _MOST_LENGTHS)
        steps = -(-lengths // step) * step
    longest, counts = np.unique(steps, return_counts=True)
    before = np.concatenate([[0], counts.cumsum()])
    cost, begin = np.zeros(len(longest) + 1), np.zeros(len(longest) + 1, dtype=np.int64)
    for end in range(1, len(longest) + 1):
        options = cost[:end] + (before[end] - before[:end]) * longest[end - 1] + _GROUP_COST
        begin[end] = options.argmin()
        cost[end] = options[begin[end]]
    cuts, end = [], int(begin[len(longest)])
    while end > 0:
        cuts.append(int(before[end]))
        end = int(begin[end])
    return cuts[::-1]
