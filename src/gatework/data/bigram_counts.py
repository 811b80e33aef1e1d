"""Counts of bigrams in a stream of tokens of any length, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from gatework.checks import check_int

# A table of all pairs up to this many, sorted keys of the pairs that occur above.
_MOST_PAIRS = 2**22
# Tokens that are counted at a time.
_PIECE = 2**20


@dataclass(frozen=True, eq=False)
class BigramCounts:
    """How often each pair of neighbouring tokens occurs in a stream of training tokens.

    Made by :meth:`count` or :meth:`from_table`.

    Attributes:
        vocab_size: Tokens are ``0 .. vocab_size - 1``.
        num_tokens: Length of the stream.
        keys: ``first * vocab_size + second`` of the pairs that are held, ascending; ``None`` if ``counts``
            is a table of all pairs.
        counts: Count of each of them.
        complete: Whether a pair that is not held has the count 0. Otherwise it was not asked for.
    """

    vocab_size: int
    num_tokens: int
    keys: Int64[np.ndarray, " pairs"] | None
    counts: Int64[np.ndarray, " pairs"]
    complete: bool = True

    @classmethod
    def count(
        cls,
        chunks: Iterable[Integer[np.ndarray, " _"]],
        vocab_size: int,
        *,
        among: Int64[np.ndarray, " keys"] | None = None,
    ) -> BigramCounts:
        """Count the bigrams of a stream, in memory that follows the number of different ones.

        Args:
            chunks: The stream in pieces of any length, memory-mapped ones included. The pair of the last
                token of a chunk and the first of the next counts too.
            vocab_size: Number of tokens of the vocabulary.
            among: Count only these pairs, as :func:`~gatework.data.ar_slices.candidate_bigrams` gives them:
                then memory follows their number, however long the stream.

        Raises:
            TypeError: If ``vocab_size`` or the tokens are not integers.
            ValueError: If ``vocab_size`` is below 1, or a token is not in ``0 .. vocab_size - 1``.
        """
        check_int("vocab_size", vocab_size, at_least=1)
        counter: _Among | _Table | _Runs
        if among is not None:
            counter = _Among(np.unique(among))
        elif vocab_size**2 <= _MOST_PAIRS:
            counter = _Table(vocab_size)
        else:
            counter = _Runs()
        num_tokens, last = 0, np.empty(0, np.int64)
        for piece in _pieces(chunks):
            check_tokens("chunks", piece, vocab_size)
            num_tokens += len(piece)
            stream = np.concatenate([last, piece])
            counter.add(stream[:-1] * vocab_size + stream[1:])
            last = stream[-1:]
        keys, counts = counter.result()
        return cls(vocab_size, num_tokens, keys, counts, complete=among is None)

    @classmethod
    def from_table(cls, table: Integer[np.ndarray, "vocab vocab"]) -> BigramCounts:
        """Take counts from elsewhere, ``table[first, second]``, of a stream one token longer than their sum.

        Raises:
            ValueError: If the table is not square, empty, or holds a negative number.
        """
        if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.size or table.min() < 0:
            raise ValueError(f"table must be (vocab, vocab) counts of at least 0, got shape {table.shape}")
        counts = np.ascontiguousarray(table, np.int64).ravel()
        return cls(len(table), int(counts.sum()) + 1, None, counts)

    def of(
        self, first: Int64[np.ndarray, "*shape"], second: Int64[np.ndarray, "*shape"]
    ) -> Int64[np.ndarray, "*shape"]:
        """Return the count of each pair ``(first, second)``.

        Raises:
            ValueError: If a token is not in the vocabulary, or a pair is not ``among`` those counted.
        """
        check_tokens("first", first, self.vocab_size)
        check_tokens("second", second, self.vocab_size)
        wanted = first * self.vocab_size + second
        if self.keys is None:
            return np.asarray(self.counts[wanted])
        # One more key, above all pairs, so that every search ends at a key that exists.
        place = np.searchsorted(self.keys, wanted)
        found = np.append(self.keys, self.vocab_size**2)[place] == wanted
        if not self.complete and not found.all():
            pair = divmod(int(wanted[~found][0]), self.vocab_size)
            raise ValueError(f"pair {pair} is not among the bigrams that were counted")
        return np.where(found, np.append(self.counts, 0)[place], 0)


class _Table:
    """Counts of all pairs of a small vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size**2, np.int64)

    def add(self, keys: Int64[np.ndarray, " pairs"]) -> None:
        self.counts += np.bincount(keys, minlength=len(self.counts))

    def result(self) -> tuple[None, Int64[np.ndarray, " pairs"]]:
        return None, self.counts


class _Among:
    """Counts of given pairs."""

    def __init__(self, keys: Int64[np.ndarray, " keys"]) -> None:
        self.keys, self.counts = keys, np.zeros(len(keys), np.int64)

    def add(self, keys: Int64[np.ndarray, " pairs"]) -> None:
        if len(self.keys):
            # Sorted keys are looked up several times faster: neighbours share the memory they touch.
            unique, counts = np.unique(keys, return_counts=True)
            place = np.searchsorted(self.keys, unique).clip(max=len(self.keys) - 1)
            found = self.keys[place] == unique
            self.counts[place[found]] += counts[found]

    def result(self) -> tuple[Int64[np.ndarray, " keys"], Int64[np.ndarray, " keys"]]:
        return self.keys, self.counts


class _Runs:
    """Counts of the pairs that occur, in sorted runs that are merged as they reach the same size."""

    def __init__(self) -> None:
        self.runs: list[tuple[Int64[np.ndarray, " run"], Int64[np.ndarray, " run"]]] = []

    def add(self, keys: Int64[np.ndarray, " pairs"]) -> None:
        self.runs.append(np.unique(keys, return_counts=True))
        while len(self.runs) > 1 and len(self.runs[-2][0]) <= 2 * len(self.runs[-1][0]):
            self._merge_last_two()

    def result(self) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
        while len(self.runs) > 1:
            self._merge_last_two()
        return self.runs[0] if self.runs else (np.empty(0, np.int64), np.empty(0, np.int64))

    def _merge_last_two(self) -> None:
        (first_keys, first_counts), (second_keys, second_counts) = self.runs[-2:]
        keys = np.concatenate([first_keys, second_keys])
        order = np.argsort(keys, kind="stable")  # linear for two ascending runs
        keys, counts = keys[order], np.concatenate([first_counts, second_counts])[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        self.runs[-2:] = [(keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts)]


def _pieces(chunks: Iterable[Integer[np.ndarray, " _"]]) -> Iterator[Int64[np.ndarray, " _"]]:
    for chunk in chunks:
        if not np.issubdtype(chunk.dtype, np.integer):
            raise TypeError(f"chunks must be arrays of integers, got {chunk.dtype}")
        if chunk.ndim != 1:
            raise ValueError(f"chunks must have one dimension, got shape {chunk.shape}")
        for start in range(0, len(chunk), _PIECE):
            yield chunk[start : start + _PIECE].astype(np.int64)


def check_tokens(name: str, tokens: Int64[np.ndarray, "*shape"], vocab_size: int) -> None:
    """Refuse what is not in the vocabulary.

    Raises:
        ValueError: If a token is not in ``0 .. vocab_size - 1``.
    """
    if tokens.size and not 0 <= (low := tokens.min()) <= (high := tokens.max()) < vocab_size:
        raise ValueError(f"{name} must be tokens 0 .. {vocab_size - 1}, got {low if low < 0 else high}")
