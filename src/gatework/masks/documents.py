"""Masks over documents packed into one sequence, as in the long-context attention benchmark.

The patterns are those of arXiv:2510.17896, section 3.1. Below ``document(x)`` is the number of the document
that position ``x`` belongs to, and ``offset(x)`` its place in it, both counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from gatework.checks import check_compat, check_int, check_ints
from gatework.masks.algebra import Allowed, Classes, Cuts, Edges, Index, Mask
from gatework.masks.blocks import range_states, refined, states
from gatework.masks.sequence import Causal
from gatework.masks.values import Table, keep

Lengths = Sequence[int] | Tensor

_Kind = TypeVar("_Kind", bound="Document")


@dataclass(frozen=True, init=False)
class Document(Mask):
    """Queries attend to their own document: ``document(i) == document(j)``.

    Attributes:
        lengths: Tokens of each document, in order; queries and keys are the same tokens.

    Raises:
        TypeError: If the lengths are no integers.
        ValueError: If a length is negative.
    """

    lengths: tuple[int, ...]
    _starts: Table = field(init=False, repr=False, compare=False)
    _start_of: Table = field(init=False, repr=False, compare=False)

    def __init__(self, lengths: Lengths) -> None:
        keep(self, lengths=check_ints("lengths", lengths, at_least=0))
        sizes = torch.tensor(self.lengths, dtype=torch.int64)
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        start_of = starts[:-1].repeat_interleave(sizes)
        # One entry more than there are positions, for whatever lies outside.
        keep(self, _starts=Table(starts), _start_of=Table(torch.cat([start_of, start_of.new_tensor([-1])])))

    @classmethod
    def from_lengths(cls: type[_Kind], lengths: Lengths, **options: Any) -> _Kind:
        """Build the mask from the tokens of each document; the same as the constructor."""
        return cls(lengths, **options)

    @classmethod
    def from_cu_seqlens(cls: type[_Kind], cu_seqlens: Lengths, **options: Any) -> _Kind:
        """Build the mask from the documents' cumulative lengths, ``[0, first, first + second, ...]``.

        Raises:
            ValueError: If they do not begin with 0, or decrease.
        """
        ends = check_ints("cu_seqlens", cu_seqlens, at_least=0)
        if not ends or ends[0] != 0 or any(end < start for start, end in pairwise(ends)):
            raise ValueError(f"cu_seqlens must begin with 0 and never decrease, got {list(ends)!r:.200}")
        return cls([end - start for start, end in pairwise(ends)], **options)

    @property
    def q_size(self) -> int:
        """Tokens of all documents."""
        return sum(self.lengths)

    @property
    def kv_size(self) -> int:
        """Tokens of all documents."""
        return self.q_size

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both are of the same document."""
        return self._same(self._start(q_idx), self._start(kv_idx))

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where documents begin."""
        cuts = self._starts.tensor.unique()
        return cuts, cuts

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By the documents of the first and the last position of each block, exactly."""
        q_first, q_last = (start[:, None] for start in self._ends(q_edges))
        kv_first, kv_last = self._ends(kv_edges)
        empty = (kv_first > q_last) | (kv_last < q_first)
        return states(empty, (kv_first == q_last) & (kv_last == q_first))

    def _start(self, index: Tensor) -> Tensor:
        """Where the document of a position starts; -1 outside of all documents."""
        size = self.q_size
        inside = (index >= 0) & (index < size)
        return self._start_of.on(index.device)[torch.where(inside, index, size)]

    @staticmethod
    def _same(q_start: Tensor, kv_start: Tensor) -> Tensor:
        return (q_start == kv_start) & (q_start >= 0)

    def _ends(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Where the documents of the first and of the last position of each block start."""
        return self._start(edges[:-1]), self._start(edges[1:] - 1)

    def _by_parts(
        self,
        of_document: Callable[[Tensor, Tensor], Tensor],
        q_edges: Tensor,
        kv_edges: Tensor,
        *cuts: Tensor,
    ) -> Tensor:
        """Classify pairs of one document by another rule; exact where the cut blocks are of one each."""

        def both(q_edges: Tensor, kv_edges: Tensor) -> Tensor:
            return torch.minimum(Document.classify(self, q_edges, kv_edges), of_document(q_edges, kv_edges))

        starts = self._starts.tensor
        return refined(both, q_edges, kv_edges, starts, torch.cat([starts, *cuts]))


@dataclass(frozen=True, init=False)
class CausalDocument(Document):
    """Queries attend to the past of their own document: the same document, and ``j <= i``."""

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both are of the same document, the key no later than the query."""
        return super().__call__(batch, head, q_idx, kv_idx) & (kv_idx <= q_idx)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Causal within a document."""
        return self._by_parts(Causal().classify, q_edges, kv_edges)

    def _count(self, q_length: int, kv_length: int) -> int:
        return sum(length * (length + 1) // 2 for length in self.lengths)


@dataclass(frozen=True, init=False)
class PrefixLMDocument(Document):
    """Causal documents whose first tokens are seen by the whole document.

    Allowed is the same document, and ``j <= i`` or ``offset(j) < prefix``.

    Attributes:
        lengths: Tokens of each document.
        prefix: Tokens at the start of every document that form its prefix.

    Raises:
        TypeError: If a length or the prefix is no integer.
        ValueError: If one is negative, or ``compat`` is unknown.
    """

    prefix: int

    def __init__(self, lengths: Lengths, prefix: int, *, compat: Literal["official"] | None = None) -> None:
        """Build the mask; ``compat="official"`` takes one token more, as the authors' predicate does."""
        super().__init__(lengths)
        keep(self, prefix=check_int("prefix", prefix, at_least=0) + check_compat(compat))

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both are of the same document, the key no later than the query or in the prefix."""
        start = self._start(kv_idx)
        early = (kv_idx <= q_idx) | (kv_idx - start < self.prefix)
        return self._same(self._start(q_idx), start) & early

    def edges(self, q_length: int, kv_length: int) -> Cuts:
        """Where documents begin, for keys also where prefixes end."""
        starts = self._starts.tensor
        ends = torch.minimum(starts[:-1] + self.prefix, starts[1:])
        return starts.unique(), torch.cat([starts, ends]).unique()

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Causal or in the prefix, within a document."""
        return self._by_parts(self._of_document, q_edges, kv_edges, self._starts.tensor[:-1] + self.prefix)

    def _of_document(self, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
        first, last = self._ends(kv_edges)
        outside = (first == last) & (kv_edges[:-1] - first >= self.prefix)
        inside = (first == last) & (kv_edges[1:] - first <= self.prefix)
        return torch.maximum(Causal().classify(q_edges, kv_edges), states(outside, inside))


@dataclass(frozen=True, init=False)
class SharedQuestion(Document):
    """Causal documents of which the first, the question, is seen by all others, the answers.

    Allowed is the same document and ``j <= i``, or ``document(j) == 0 != document(i)``.
    """

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The past of the same document, or a key of the question and a query of an answer."""
        start, question = self._start(q_idx), self.lengths[0] if self.lengths else 0
        past = self._same(start, self._start(kv_idx)) & (kv_idx <= q_idx)
        return past | ((start >= question) & (q_idx >= question) & (kv_idx >= 0) & (kv_idx < question))

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Causal documents, and the rectangle of answers that see the question."""
        question = self.lengths[0] if self.lengths else 0

        def both(q_edges: Tensor, kv_edges: Tensor) -> Tensor:
            answers = range_states(q_edges, question, self.q_size)[:, None]
            rectangle = torch.minimum(answers, range_states(kv_edges, 0, question))
            past = torch.minimum(
                Document.classify(self, q_edges, kv_edges), Causal().classify(q_edges, kv_edges)
            )
            return torch.maximum(past, rectangle)

        return refined(both, q_edges, kv_edges, *self.edges(self.q_size, self.kv_size))


@dataclass(frozen=True, init=False)
class CausalBlockwise(Document):
    """Causal documents of which the last, the test example, sees all others, the demonstrations.

    Allowed is the same document and ``j <= i``, or ``document(i)`` is the last and ``document(j)`` is not.
    """

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """The past of the same document, or a query of the last one."""
        start, kv_start = self._start(q_idx), self._start(kv_idx)
        last = self.q_size - (self.lengths[-1] if self.lengths else 0)
        of_last = (q_idx >= last) & (start >= 0) & (kv_start >= 0)
        return (self._same(start, kv_start) | of_last) & (kv_idx <= q_idx)

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """Causal, and of the same document or with a query of the last one."""
        last = self.q_size - (self.lengths[-1] if self.lengths else 0)

        def both(q_edges: Tensor, kv_edges: Tensor) -> Tensor:
            of_last = range_states(q_edges, last, self.q_size)[:, None]
            seen = torch.maximum(Document.classify(self, q_edges, kv_edges), of_last)
            return torch.minimum(seen, Causal().classify(q_edges, kv_edges))

        return refined(both, q_edges, kv_edges, *self.edges(self.q_size, self.kv_size))


@dataclass(frozen=True, init=False)
class BlockCausalDocument(Document):
    """Documents in blocks of ``block`` tokens that attend to themselves and to the earlier blocks.

    Allowed is the same document, and ``offset(j) < (offset(i) // block + 1) * block``. The last block of a
    document may be smaller.

    Attributes:
        lengths: Tokens of each document.
        block: Tokens of a block.

    Raises:
        TypeError: If a length or the block is no integer.
        ValueError: If a length is negative, or the block less than 1.
    """

    block: int

    def __init__(self, lengths: Lengths, block: int) -> None:
        super().__init__(lengths)
        keep(self, block=check_int("block", block, at_least=1))

    def __call__(self, batch: Index, head: Index, q_idx: Index, kv_idx: Index) -> Allowed:
        """Both are of the same document, the key's block no later than the query's."""
        start = self._start(q_idx)
        return self._same(start, self._start(kv_idx)) & (kv_idx < self._end(q_idx, start))

    def classify(self, q_edges: Edges, kv_edges: Edges) -> Classes:
        """By where the blocks of the first and the last query end."""
        return self._by_parts(self._of_document, q_edges, kv_edges)

    def _end(self, index: Tensor, start: Tensor) -> Tensor:
        return start + ((index - start) // self.block + 1) * self.block

    def _of_document(self, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
        # Ends do not decrease along the sequence once they are cut at the end of the document.
        ends = torch.cat([self._starts.tensor, self._starts.tensor[-1:] + 1])
        first, last = (
            torch.minimum(self._end(at, start), ends[torch.searchsorted(ends, start, right=True)])[:, None]
            for at, start in zip((q_edges[:-1], q_edges[1:] - 1), self._ends(q_edges), strict=True)
        )
        return states(kv_edges[:-1] >= last, kv_edges[1:] <= first)
