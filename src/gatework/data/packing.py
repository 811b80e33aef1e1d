"""Documents in rows: packed end to end, or one to a row and padded.

A row has labels, and as inputs the token before each. The token before the first of a document is the end
token, whatever the documents' order, so that every token of a split is a label once. ``seq_idx`` says which
document a position belongs to; a position may look at those of its row and document alone.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor
from torch.utils.data import Dataset

from gatework.checks import check_int, check_seed
from gatework.data.segment import IGNORED
from gatework.data.tokens import TokenSplit

#: ``seq_idx`` of padding.
PADDING = -1


class PackedRows(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """The documents of a split, shuffled and laid end to end, cut where rows end.

    Item ``i`` is row ``i`` of ``length`` positions as ``(inputs, labels, seq_idx)``. Only the last row has
    padding: inputs ``end_id``, labels -100, ``seq_idx`` -1.

    Args:
        split: The documents.
        end_id: The token that ends them.
        length: Positions per row.
        seed: Seed of their order.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If ``length`` is below 1, ``seed`` is out of range, or there is no document.
    """

    def __init__(self, split: TokenSplit, end_id: int, length: int, *, seed: int) -> None:
        check_seed(seed)
        self._rows = _Rows(split, end_id, length)
        sizes = _document_sizes(split)
        self.order = np.random.default_rng(seed).permutation(len(sizes))
        # Where each document begins in the shuffled stream, and where the stream ends.
        self._begins = np.concatenate([[0], np.cumsum(sizes[self.order])])
        self.length = length

    def __len__(self) -> int:
        return -(-int(self._begins[-1]) // self.length)

    def __getitem__(
        self, index: int
    ) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        _check_index(index, len(self))
        start = index * self.length
        end = min(start + self.length, int(self._begins[-1]))
        first = int(np.searchsorted(self._begins, start, side="right")) - 1
        last = int(np.searchsorted(self._begins, end, side="left"))
        counts = np.diff(np.clip(self._begins[first : last + 1], start, end))
        offsets = np.arange(start, end) - np.repeat(self._begins[first:last], counts)
        return self._rows.row(np.repeat(self.order[first:last], counts), offsets)


class PaddedRows(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """One document per row, or up to ``length`` tokens of one, padded at the right.

    Items are ``(inputs, labels, seq_idx)`` as those of :class:`PackedRows`, in the order of the documents. A
    document of ``n`` tokens, its end included, takes ``ceil(n / length)`` rows.

    Args:
        split: The documents.
        end_id: The token that ends them, and the input at padding.
        length: Positions per row.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If ``length`` is below 1, or there is no document.
    """

    def __init__(self, split: TokenSplit, end_id: int, length: int) -> None:
        self._rows = _Rows(split, end_id, length)
        self._sizes = _document_sizes(split)
        # The first row of each document, and the number of rows.
        self._first = np.concatenate([[0], np.cumsum(-(-self._sizes // length))])
        self.length = length

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(
        self, index: int
    ) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        _check_index(index, len(self))
        document = int(np.searchsorted(self._first, index, side="right")) - 1
        begin = (index - int(self._first[document])) * self.length
        offsets = np.arange(begin, min(begin + self.length, int(self._sizes[document])), dtype=np.int64)
        return self._rows.row(np.full(len(offsets), document, dtype=np.int64), offsets)


class _Rows:
    """Makes a row of what its positions are labelled with."""

    def __init__(self, split: TokenSplit, end_id: int, length: int) -> None:
        check_int("end_id", end_id, at_least=0)
        check_int("length", length, at_least=1)
        if len(split.starts) == 0:
            raise ValueError("split must have a document, got one without tokens")
        self.split, self.end_id, self.length = split, end_id, length

    def row(
        self, documents: Int64[np.ndarray, " labelled"], offsets: Int64[np.ndarray, " labelled"]
    ) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        """Label the positions with token ``offsets`` of ``documents``, and pad the rest of the row."""
        positions = self.split.starts[documents] + offsets
        inputs = np.full(self.length, self.end_id, dtype=np.int64)
        labels = np.full(self.length, IGNORED, dtype=np.int64)
        seq_idx = np.full(self.length, PADDING, dtype=np.int64)
        used = slice(len(positions))
        # A split may begin within a document, and end within one: nothing is before position 0, and what the
        # shuffled stream has before a document need not be its end.
        inputs[used] = np.where(offsets == 0, self.end_id, self.split.tokens[np.maximum(positions - 1, 0)])
        labels[used] = self.split.tokens[positions]
        seq_idx[used] = documents
        return torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(seq_idx)


def _document_sizes(split: TokenSplit) -> Integer[np.ndarray, " documents"]:
    """Return the number of tokens of each document, with its end."""
    return np.diff(split.starts, append=len(split.tokens))


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"index must be in 0 .. {size - 1}, got {index}")
